"use strict";
const { figures, switches, cards, strips } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const printing = matchMedia("print");

// Charts: Plotly draws what the figures say; the page adds only its colours.
const theme = () => {
  const style = getComputedStyle(document.documentElement);
  const [ink, rule] = ["--ink", "--rule"].map((name) => style.getPropertyValue(name).trim());
  const axis = { "gridcolor": rule, "zerolinecolor": rule, "linecolor": rule };
  const clear = "rgba(0,0,0,0)";
  const colours = { "font.color": ink, paper_bgcolor: clear, plot_bgcolor: clear };
  Object.assign(colours, { "modebar.bgcolor": clear, "modebar.color": rule, "modebar.activecolor": ink });
  for (const [name, colour] of Object.entries(axis))
    for (const side of ["xaxis", "yaxis"]) colours[`${side}.${name}`] = colour;
  return colours;
};
const paint = () => Object.keys(figures).forEach((id) => Plotly.relayout(id, theme()));
for (const [id, { data, layout }] of Object.entries(figures)) {
  Plotly.newPlot(id, data, layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
}
paint();
dark.addEventListener("change", paint);
printing.addEventListener("change", paint);

addEventListener("beforeprint", () => document.querySelector(".verdicts").parentElement.open = true);

for (const select of document.querySelectorAll("[data-switch]")) {
  select.addEventListener("change", () => {
    const [restyle, relayout] = switches[select.dataset.switch][select.value];
    Plotly.update("curve", restyle, relayout);
  });
}

// Families of the curve, on and off.
for (const [index, { name, meta, line }] of figures.curve.data.entries()) {
  if (meta !== "family") continue;
  const label = document.createElement("label"), box = document.createElement("input"), key = document.createElement("span");
  box.type = "checkbox";
  box.checked = true;
  box.addEventListener("change", () => Plotly.restyle("curve", { visible: box.checked }, [index]));
  key.className = "key";
  key.style.background = line.color;
  label.append(box, key, name);
  byId("families").append(label);
}

// Victims of one quantizer: the truth beside what each attack made of it.
const quantizer = byId("victim-quantizer"), order = byId("victim-order"), round = byId("victim-round");
const option = (text, value = text) => new Option(text, value);
const strongest = (card) => card.guesses.find((guess) => guess.strongest) ?? card.guesses[0];
const ORDERS = {
  order: (a, b) => a.order - b.order,
  exposed: (a, b) => strongest(a).mse - strongest(b).mse,
  hidden: (a, b) => strongest(b).mse - strongest(a).mse,
};
const picture = (png, alt, lines, bold = false) => {
  const box = document.createElement("div");
  let image = document.createElement("img");
  if (png) {
    image.src = `data:image/png;base64,${png}`;
    image.alt = alt;
  } else {
    image = document.createElement("div");
    image.className = "failed";
    image.textContent = "failed";
  }
  box.append(image);
  for (const [index, line] of lines.entries()) {
    const text = document.createElement("div");
    text.textContent = line;
    text.className = bold && index === 0 ? "strongest" : "";
    box.append(text);
  }
  return box;
};
const card = ({ title, label, truth, guesses }) => {
  const figure = byId("card").content.cloneNode(true);
  const boxes = guesses.map((guess) => picture(
    guess.png,
    `Reconstruction by ${guess.attack}, MSE ${guess.mse.toPrecision(2)}`,
    [
      guess.attack + (guess.strongest ? " (strongest)" : ""),
      `MSE ${guess.mse.toPrecision(2)}, ${guess.psnr.toFixed(1)} dB`,
      `SSIM ${guess.ssim.toFixed(2)}, label ${guess.label}`,
      guess.status + (guess.short ? ", failed to optimise" : ""),
    ],
    guess.strongest,
  ));
  figure.querySelector(".pictures").append(
    picture(truth, `Private image, ${title}, label ${label}`, ["private image", `label ${label}`]), ...boxes);
  figure.querySelector("figcaption").textContent = title;
  return figure;
};
const pair = ({ title, truth, png, mse }) => {
  const column = document.createElement("div");
  const error = Number.isFinite(mse) ? `MSE ${mse.toPrecision(2)}` : "failed";
  column.className = "pictures";
  column.append(picture(truth, `Private image, ${title}`, [title]), picture(png, `Reconstruction of ${title}`, [error]));
  return column;
};
const showVictims = () => {
  const strip = strips[quantizer.value] ?? [];
  byId("batch").hidden = !strip.length;
  byId("batch").querySelector(".batch").replaceChildren(...strip.map(pair));
  const all = cards[quantizer.value] ?? [];
  const shown = all.filter((one) => !round.value || String(one.round) === round.value).sort(ORDERS[order.value]);
  byId("victims").replaceChildren(...shown.map(card));
  byId("victim-count").textContent = all.length
    ? `${shown.length} victims of ${quantizer.value}, drawn at random by seed.`
    : "Nothing was attacked yet.";
};
quantizer.append(...Object.keys(cards).map((name) => option(name)));
const rounds = new Set(Object.values(cards).flat().map((one) => one.round));
round.append(option("all", ""), ...[...rounds].sort((a, b) => a - b).map((number) => option(number)));
for (const select of [quantizer, order, round]) select.addEventListener("change", showVictims);
byId("curve").on("plotly_click", ({ points: [point] }) => {
  if (!point.customdata) return;
  quantizer.value = point.customdata[0];
  showVictims();
  byId("victims-title").scrollIntoView({ behavior: "smooth" });
});
showVictims();

// The table sorts by any column; missing values stay at the end.
const body = document.querySelector("#results tbody");
for (const [column, heading] of [...document.querySelectorAll("#results th")].entries()) {
  heading.firstElementChild.addEventListener("click", () => {
    const direction = heading.ariaSort === "ascending" ? "descending" : "ascending";
    document.querySelectorAll("#results th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.ariaSort = direction;
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => {
      const cell = row.cells[column];
      return "number" in cell.dataset ? Number.parseFloat(cell.dataset.number) : cell.textContent;
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
    };
    body.append(...[...body.rows].sort(compare));
  });
}
