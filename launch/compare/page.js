// Comfort only: the page says everything without it. Sort tables by a click on a heading, choose outputs of the images.
for (const table of document.querySelectorAll("table.numbers")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    heading.classList.add("sortable");
    heading.tabIndex = 0;
    let sign = heading.title.startsWith("lower") || !heading.classList.contains("n") ? 1 : -1;
    const sort = () => {
      const body = table.tBodies[0];
      const key = (row) => {
        const cell = row.children[column];
        return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent.trim();
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
      };
      body.append(...[...body.rows].sort(compare));
      table.querySelectorAll(".sorted").forEach((other) => other.classList.remove("sorted"));
      heading.classList.add("sorted");
      sign = -sign;
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

const chooser = document.querySelector(".chooser");
const rows = [...document.querySelectorAll(".pictures tr[data-output]")];
const outputs = [...new Set(rows.map((row) => row.dataset.output))].filter((name) => !["clean", "data"].includes(name));
if (chooser && outputs.length > 1) {
  chooser.hidden = false;
  for (const name of outputs) {
    const isShown = rows.some((row) => row.dataset.output === name && !row.hidden);
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: isShown });
    box.addEventListener("change", () => {
      rows.filter((row) => row.dataset.output === name).forEach((row) => { row.hidden = !box.checked; });
    });
    label.append(box, name);
    chooser.append(label);
  }
}
