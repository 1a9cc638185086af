// Comfort only: without it the last grid of each kind is shown.
for (const figure of document.querySelectorAll(".slides")) {
  const label = figure.querySelector("label");
  if (!label) continue;
  const frames = [...figure.querySelectorAll("img")];
  const slider = label.querySelector("input");
  label.hidden = false;
  slider.addEventListener("input", () => {
    frames.forEach((frame, number) => { frame.hidden = number !== Number(slider.value); });
    label.querySelector("output").textContent = frames[slider.value].dataset.step;
  });
}
