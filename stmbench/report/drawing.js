// Elements, scales, numbers and the tooltip: what every chart is drawn with.

const SVG = "http://www.w3.org/2000/svg";

function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const sign = (look) =>
  svg("svg", { class: `mark look-${look}`, viewBox: "-5 -5 10 10", "aria-hidden": "true" },
    svg("use", { href: `#mark-${DATA.looks[look].shape}` }));

// Numbers

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 1e6) return Math.round(value).toLocaleString("en");
  if (Math.abs(value) >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 1 });
  return String(Number(value.toPrecision(digits)));
}

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"]];

/** The size and the letter that suit a value best. */
const prefix = (value) => PREFIXES.find(([size]) => Math.abs(value) >= size) ?? PREFIXES.at(-1);

function withUnit(value, unit) {
  const [size, letter] = prefix(value);
  return `${number(value / size, 3)} ${letter}${unit}`.trim();
}

// Scales: functions from a value to a place, which also know their ticks

function linear([low, high], [from, to], count, whole = false) {
  if (low === high) [low, high] = [low - 1, high + 1];
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * [1, 2, 5, 10].find((times) => times * power >= rough);
  if (whole) step = Math.max(1, Math.round(step));
  scale.ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++)
    scale.ticks.push(Number((i * step).toPrecision(12)));
  return scale;
}

function logarithmic([low, high], [from, to]) {
  const scale = (value) => from + (Math.log(value / low) / Math.log(high / low)) * (to - from);
  const times = high > 400 * low ? [1] : high > 48 * low ? [1, 3] : [1, 2, 5];
  scale.ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const each of times) {
      const tick = each * 10 ** power;
      if (tick >= low && tick <= high) scale.ticks.push(tick);
    }
  return scale;
}

/** Grid, axis and words; `words` turns a tick into its text. */
function frame(plot, x, y, box, words, across, upward) {
  for (const tick of y.ticks)
    plot.append(
      Math.abs(y(tick) - box.bottom) < 2 ? "" // the axis is there
        : svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: box.left - 8, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  plot.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  for (const tick of x.ticks)
    plot.append(
      svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4 }),
      svg("text", { x: x(tick), y: box.bottom + 17, "text-anchor": "middle" }, words(tick)));
  if (across)
    plot.append(svg("text", { x: box.right, y: box.bottom + 33, "text-anchor": "end" }, across));
  if (upward) plot.append(svg("text", { x: 0, y: box.top - 12 }, upward));
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** An SVG with the name and the description that a screen reader reads. */
function canvas(width, height, role, title, description) {
  const id = `chart-${(canvas.count = (canvas.count ?? 0) + 1)}`;
  const about = description ? svg("desc", { id: `${id}-desc` }, description) : null;
  return svg("svg", {
    class: "plot", role, viewBox: `0 0 ${width} ${height}`, height,
    "aria-labelledby": `${id}-title`, "aria-describedby": about && `${id}-desc`,
  }, svg("title", { id: `${id}-title` }, title), about);
}

// The tooltip

const tip = document.getElementById("tip");

let spot = null; // says where on the screen the tooltip belongs

/** Show a heading and lines of [name, value, look] beside the place that `where` says. */
function showTip(heading, lines, where) {
  const list = html("dl");
  for (const [name, value, look] of lines)
    list.append(html("dt", {}, look === undefined ? null : sign(look), name), html("dd", {}, value));
  tip.replaceChildren(html("b", {}, heading), list);
  tip.hidden = false;
  spot = where;
  placeTip();
}

function placeTip() {
  if (tip.hidden) return;
  const [x, y] = spot(), [width, height] = [tip.offsetWidth, tip.offsetHeight], away = 16;
  const within = (value, most) => `${Math.max(8, Math.min(value, most - 8))}px`;
  const rightFits = x + away + width < innerWidth - 8, leftFits = x - away - width > 8;
  const left = rightFits ? x + away : leftFits ? x - away - width : x - width / 2;
  const top = rightFits || leftFits ? y - height / 2 : y + away + height < innerHeight ? y + away : y - away - height;
  tip.style.left = within(left, innerWidth - width);
  tip.style.top = within(top, innerHeight - height);
}

function hideTip() {
  tip.hidden = true;
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
addEventListener("scroll", placeTip, { passive: true }); // where focus went, the page may scroll
