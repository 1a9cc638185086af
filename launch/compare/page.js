// Comfort only: the page says everything without it. Tables are sorted by a click on a heading; of the images outputs are chosen, and
// each is enlarged by a click, with what differs from the clean one.
for (const table of document.querySelectorAll("table.numbers")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    heading.classList.add("sortable");
    heading.tabIndex = 0;
    let sign = heading.title.startsWith("lower") || !heading.classList.contains("n") ? 1 : -1;
    const key = (row) => {
      const cell = row.children[column];
      return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent.trim();
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
    };
    const sort = () => {
      for (const body of table.tBodies) body.append(...[...body.rows].filter((row) => !row.classList.contains("group")).sort(compare));
      table.querySelectorAll(".sorted").forEach((other) => other.classList.remove("sorted"));
      heading.classList.add("sorted");
      sign = -sign;
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

const GAIN = 4; // of differences, which are small
const chooser = document.querySelector(".chooser");
const rows = [...document.querySelectorAll(".pictures tr[data-output]")];

// The clean image of the column of one that answers to it, and so has a PSNR; drawn ones are other images.
const cleanOf = (image) => {
  const cell = image.closest("td");
  const clean = cell?.querySelector(".db") && image.closest("table").querySelector("tr[data-output=clean], tr[data-output=data]");
  return clean ? clean.cells[cell.cellIndex].querySelector("img") : null;
};

const pixels = (image) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [canvas, context, context.getImageData(0, 0, canvas.width, canvas.height)];
};

// Grey where both are the same, lighter or darker by GAIN times the difference.
const difference = (image, clean) => {
  const [canvas, context, own] = pixels(image);
  const other = pixels(clean)[2];
  if (own.data.length !== other.data.length) return null;
  own.data.forEach((value, i) => { if (i % 4 !== 3) own.data[i] = 128 + GAIN * (value - other.data[i]); });
  context.putImageData(own, 0, 0);
  return canvas.toDataURL();
};

const box = (text, checked, change) => {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "checkbox", checked });
  input.addEventListener("change", () => change(input.checked));
  label.append(input, text);
  chooser.append(label);
  chooser.hidden = false;
};

const outputs = [...new Set(rows.map((row) => row.dataset.output))].filter((name) => !["clean", "data"].includes(name));
if (chooser && outputs.length > 1) {
  for (const name of outputs) {
    const own = rows.filter((row) => row.dataset.output === name);
    box(name, own.some((row) => !row.hidden), (shown) => own.forEach((row) => { row.hidden = !shown; }));
  }
}
const compared = [...document.querySelectorAll(".pictures td img")].filter(cleanOf);
if (chooser && compared.length) {
  box(`difference from the clean image, ${GAIN} times`, false, (shown) => {
    for (const image of compared) {
      image.dataset.own ??= image.src;
      image.src = shown ? image.dataset.difference ??= difference(image, cleanOf(image)) ?? image.src : image.dataset.own;
    }
  });
}

const dialog = document.querySelector("dialog");
const figure = (source, words) => {
  const made = document.createElement("figure");
  const caption = Object.assign(document.createElement("figcaption"), { textContent: words });
  made.append(Object.assign(document.createElement("img"), { src: source, alt: words }), caption);
  return made;
};
for (const image of document.querySelectorAll(".pictures td img, .whole img, .cell img")) {
  image.classList.add("enlarges");
  image.addEventListener("click", () => {
    const own = image.dataset.own ?? image.src;
    const clean = cleanOf(image);
    const shown = [figure(own, [image.alt, image.nextElementSibling?.textContent].filter(Boolean).join(" · "))];
    if (clean) {
      image.dataset.difference ??= difference(image, clean) ?? ""; // of one that shows its difference it is there
      shown.push(figure(clean.dataset.own ?? clean.src, "clean"));
      if (image.dataset.difference) shown.push(figure(image.dataset.difference, `difference, ${GAIN} times`));
    }
    dialog.querySelector("div").replaceChildren(...shown);
    dialog.showModal();
  });
}
dialog?.addEventListener("click", () => dialog.close());
