// Run in the page's own component elements (element, props, trigger, watch are Gradio's); KIND says which one it is.
const MAX_BYTES = 10000000;

// A picture to choose, drop and, with props.drawing, to draw a hole on.
function picker() {
  let picture = null, hole = null, drawing = false, past = [], shown = null;
  const canvas = () => element.querySelector("canvas");
  const tell = (text) => { element.querySelector(".said").textContent = text; };

  function paint() {
    const c = canvas();
    if (!picture || !c) return;
    c.width = picture.width; c.height = picture.height;
    const pen = c.getContext("2d");
    pen.drawImage(picture, 0, 0);
    if (hole) { pen.globalAlpha = 0.75; pen.drawImage(hole, 0, 0); }
    element.querySelector(".surface").classList.add("full");
  }
  function keep() { props.value = { picture: shown, hole: hole && past.length ? hole.toDataURL("image/png") : null }; }
  function show(source) {
    shown = source; past = [];
    const image = new Image();
    image.onload = () => {
      picture = image;
      hole = document.createElement("canvas");
      hole.width = image.width; hole.height = image.height;
      tell(`${image.width} x ${image.height} pixels`);
      paint(); keep();
    };
    image.src = source;
  }
  function forget() {
    picture = hole = shown = null; past = [];
    canvas().width = canvas().height = 0;
    element.querySelector(".surface").classList.remove("full");
    tell("");
  }
  function read(file) {
    if (!file) return;
    if (file.size > MAX_BYTES) { tell("The file is larger than 10 MB: take a smaller one."); return; }
    forget();  // if the file is refused, nothing is there: no picture is shown that is not the one in use
    const reader = new FileReader();
    reader.onload = () => { props.value = { file: reader.result }; trigger("upload"); };
    reader.readAsDataURL(file);
  }
  function at(event) {
    const box = canvas().getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * picture.width, (event.clientY - box.top) / box.height * picture.height];
  }
  let last = null;
  function stroke(event) {
    const pen = hole.getContext("2d"), [x, y] = at(event);
    const size = Number(element.querySelector(".brush").value) / 100 * Math.max(picture.width, picture.height);
    pen.strokeStyle = "#e6007e"; pen.lineWidth = Math.max(1, size); pen.lineCap = "round"; pen.lineJoin = "round";
    const [fromX, fromY] = last || [x - 0.01, y];
    pen.beginPath(); pen.moveTo(fromX, fromY); pen.lineTo(x, y); pen.stroke();
    last = [x, y];
    paint();
  }
  function copy() {
    const old = document.createElement("canvas");
    old.width = hole.width; old.height = hole.height; old.getContext("2d").drawImage(hole, 0, 0);
    return old;
  }
  element.addEventListener("pointerdown", (event) => {
    if (!props.drawing || !picture || event.target !== canvas()) return;
    event.preventDefault();
    canvas().setPointerCapture(event.pointerId);
    past.push(copy()); drawing = true; last = null; stroke(event);
  });
  element.addEventListener("pointermove", (event) => { if (drawing) stroke(event); });
  const stop = () => { if (drawing) { drawing = false; keep(); } };
  element.addEventListener("pointerup", stop);
  element.addEventListener("pointercancel", stop);
  element.addEventListener("click", (event) => {
    const does = event.target.dataset.does;
    if (does === "example") show(event.target.src);
    if (!hole) return;
    if (does === "clear") { past = []; hole.getContext("2d").clearRect(0, 0, hole.width, hole.height); paint(); keep(); }
    if (does === "undo" && past.length) { hole = past.pop(); paint(); keep(); }
  });
  element.addEventListener("change", (event) => { if (event.target.type === "file") { read(event.target.files[0]); event.target.value = ""; } });
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => { event.preventDefault(); read(event.dataTransfer.files[0]); });
  watch("value", () => { if (props.value && props.value.picture && props.value.picture !== shown) show(props.value.picture); });
  const first = element.querySelector('[data-does="example"]');
  if (first) show(first.src);
}

// Buttons that stay pressed; their names are the value.
function buttons() {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    props.value = [...element.querySelectorAll('[aria-pressed="true"]')].map((each) => each.dataset.name);
  });
}

// Sliders and animations in answers.
function answer() {
  const timers = new Map();
  function step(figure, number) {
    [...figure.querySelectorAll(".frame")].forEach((frame, i) => { frame.hidden = i !== number; });
    figure.querySelector('[data-does="step"]').value = number;
    figure.querySelector(".note").textContent = number + 1;
  }
  element.addEventListener("input", (event) => {
    const slider = event.target, figure = slider.closest("figure");
    if (slider.dataset.does === "compare") figure.querySelector(".before").style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
    if (slider.dataset.does === "blend") {
      figure.querySelector(".over").style.opacity = slider.value / slider.max;
      figure.querySelector(".note").textContent = figure.dataset.notes.split("|")[slider.value];
    }
    if (slider.dataset.does === "step") { clearInterval(timers.get(figure)); step(figure, Number(slider.value)); }
  });
  element.addEventListener("click", (event) => {
    if (event.target.dataset.does !== "play") return;
    const figure = event.target.closest("figure"), count = figure.querySelectorAll(".frame").length;
    let number = 0;
    clearInterval(timers.get(figure));
    step(figure, 0);
    timers.set(figure, setInterval(() => {
      if (++number >= count || !figure.isConnected) { clearInterval(timers.get(figure)); return; }
      step(figure, number);
    }, 250));
  });
}

({ picker, buttons, answer })[KIND]();
