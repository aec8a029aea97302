// Top-1 against cost; training curves; invariance and equivariance.

const charts = [];

/** A figure and how to draw it; `draw` is given the width and the networks that pass the filters. */
class Chart {
  constructor(figure, networks, draw) {
    this.figure = figure;
    this.article = figure.closest("article");
    this.networks = networks; // a function: they may change with the reader's choice
    this.draw = draw;
    this.lit = new Set(); // looks that stand out; none: all do
    this.place = figure.querySelector(".drawing");
    this.legend = html("ul", { class: "legend", "aria-label": "Networks: choose which stand out" });
    this.controls = html("div", { class: "controls" });
    this.place.before(this.controls);
    this.place.after(this.legend);
    new ResizeObserver(() => this.width !== this.place.clientWidth && this.render()).observe(this.place);
    charts.push(this);
  }

  get shown() {
    return this.networks().filter((each) => passes(each, this.article));
  }

  render() {
    this.width = this.place.clientWidth;
    if (!this.width) return;
    const shown = ranked(this.shown);
    this.place.replaceChildren(...this.draw(this, shown));
    const looks = [...new Set(shown.map((each) => each.look))].sort((a, b) => a - b);
    this.legend.replaceChildren(...looks.map((look) => html("li", {}, this.button(look))));
  }

  button(look) {
    const pressed = this.lit.has(look);
    const made = html("button", { type: "button", "aria-pressed": String(pressed) }, sign(look), DATA.looks[look].family);
    made.addEventListener("click", () => {
      pressed ? this.lit.delete(look) : this.lit.add(look);
      const place = [...this.legend.children].indexOf(made.parentElement);
      this.render();
      this.legend.children[place].firstChild.focus();
    });
    return made;
  }

  dim(look) {
    return this.lit.size && !this.lit.has(look) ? "dim" : "";
  }

  /** A choice above the chart, kept with the page's state. */
  choose(label, options, key, chosen) {
    if (options.length < 2) return;
    const select = html("select", { "data-keep": key },
      ...options.map(([value, text]) => html("option", { value }, text)));
    select.addEventListener("change", () => {
      chosen(select.value);
      keep();
    });
    this.controls.append(html("label", {}, `${label} `, select));
  }
}

/** Networks with the place of their scale among those shown: marks and lines grow with it. */
function ranked(networks) {
  const sizes = [...new Set(networks.map((each) => each.size))].sort((a, b) => a - b);
  return networks.map((each) => ({ ...each, rank: sizes.indexOf(each.size) }));
}

// Top-1 against cost

function costs(figure, board, key) {
  let cost = board.costs[0];
  const chart = new Chart(figure, () => board.points.filter((point) => cost[0] in point.costs),
    (chart, shown) => [scatter(chart, shown, cost)]);
  chart.choose("cost", board.costs.map(([name, text]) => [name, text]), key, (name) => {
    cost = board.costs.find((each) => each[0] === name);
    chart.render();
  });
}

/** The points that no other dominates, by cost. */
function front(points, cost) {
  const spot = (point) => [point.costs[cost], point.top1];
  const beaten = ([x, y]) => points.some((other) => {
    const [c, v] = spot(other);
    return c <= x && v >= y && (c !== x || v !== y);
  });
  return points.filter((point) => !beaten(spot(point)))
    .sort((a, b) => a.costs[cost] - b.costs[cost] || a.top1 - b.top1);
}

function scatter(chart, shown, [cost, label, unit]) {
  const width = chart.width, height = Math.round(Math.min(440, Math.max(280, width * 0.5)));
  const best = front(shown, cost);
  const names = best.map((point) => point.name).join(", ");
  const plot = canvas(width, height, "group", `Top-1 against ${label}`,
    `On the Pareto front: ${names}. Each mark is a link to a run.`);
  const box = { left: 46, right: width - 8, top: 28, bottom: height - 40 };
  const values = shown.map((point) => point.costs[cost]);
  const least = Math.min(...values), most = Math.max(...values);
  const ends = shown.flatMap((point) => [point.low ?? point.top1, point.high ?? point.top1]);
  const room = 0.06 * (Math.max(...ends) - Math.min(...ends));
  const y = linear([Math.min(...ends) - room, Math.max(...ends) + room], [box.bottom, box.top], 5);
  const margin = 0.12 * (most - least) || 0.2 * most;
  const wide = most > 5 * least;
  const x = wide
    ? logarithmic([least / 1.5, most * 1.5], [box.left, box.right])
    : linear([least - margin, most + margin], [box.left, box.right], width / 110);
  const [size, letter] = prefix(Math.sqrt(least * most));
  const full = unit || letter ? `${label} [${letter}${unit}]` : label;
  frame(plot, x, y, box, (tick) => number(tick / size), full, "top-1 [%]");
  plot.append(svg("path", { class: "front", d: path(steps(best, x, y, cost, box)) }));
  for (const members of families(shown))
    if (members.length > 1)
      plot.append(svg("path", {
        class: `look-${members[0].look} ${chart.dim(members[0].look)}`, "stroke-width": 1,
        d: path(members.map((point) => [x(point.costs[cost]), y(point.top1)])),
      }));
  for (const point of shown) {
    const place = [x(point.costs[cost]), y(point.top1)];
    plot.append(mark(chart, point, place, y, best.includes(point), [cost, label, unit]));
  }
  if (shown.length <= 8) name(plot, shown, cost, x, y, box);
  return plot;
}

/** The front as stairs: what is reached at every cost. */
function steps(best, x, y, cost, box) {
  const points = [];
  best.forEach((point, i) => {
    const next = i + 1 < best.length ? x(best[i + 1].costs[cost]) : box.right;
    points.push([x(point.costs[cost]), y(point.top1)], [next, y(point.top1)]);
  });
  return points;
}

/** Points of one look, smallest scale first. */
function families(shown) {
  const found = new Map();
  for (const point of shown) found.set(point.look, [...(found.get(point.look) ?? []), point]);
  return [...found.values()].map((members) => members.sort((a, b) => a.size - b.size));
}

function mark(chart, point, [left, top], y, filled, cost) {
  const lines = [["top-1", `${number(point.top1)} %`]];
  if (point.low !== null) lines.push(["95 % interval", `${number(point.low, 3)} to ${number(point.high, 3)} %`]);
  lines.push([cost[1], withUnit(point.costs[cost[0]], cost[2])]);
  lines.push(["seeds", number(point.seeds)], ["on the front", filled ? "yes" : "no"]);
  const said = [point.name, ...lines.map(([name, value]) => `${name} ${value}`)].join(", ");
  const size = 1.25 + 0.35 * point.rank;
  const ends = { x1: left, x2: left, y1: y(point.low), y2: y(point.high) };
  const about = { "aria-label": said, class: chart.dim(point.look), "data-name": point.name };
  const link = svg("a", { href: `#run=${point.run}`, ...about },
    point.low === null ? null : svg("line", { class: `look-${point.look}`, "stroke-width": 1.2, ...ends }),
    svg("circle", { class: "ring", cx: left, cy: top, r: 11 }),
    svg("use", {
      href: `#mark-${DATA.looks[point.look].shape}`, class: `look-${point.look} ${filled ? "" : "hollow"}`,
      transform: `translate(${left} ${top}) scale(${size})`,
    }));
  const show = () => showTip(point.name, lines, () => {
    const ring = link.querySelector(".ring").getBoundingClientRect();
    return [ring.left + ring.width / 2, ring.top + ring.height / 2];
  });
  for (const event of ["pointerenter", "focus"]) link.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) link.addEventListener(event, hideTip);
  return link;
}

/** Write each name where it covers no mark and no other name; where there is no such place the tooltip has it. */
function name(plot, shown, cost, x, y, box) {
  const spots = shown.map((point) => [x(point.costs[cost]), y(point.top1)]);
  const taken = spots.map(([left, top]) => [left - 8, top - 8, left + 8, top + 8]);
  const free = (area) =>
    area[0] >= box.left && area[2] <= box.right && area[1] >= box.top - 8 && area[3] <= box.bottom &&
    taken.every((other) => area[2] <= other[0] || other[2] <= area[0] || area[3] <= other[1] || other[3] <= area[1]);
  shown.forEach((point, i) => {
    const [left, top] = spots[i], length = 7.2 * point.name.length;
    const tries = [[10, 4], [-10 - length, 4], [10, -9], [10, 18], [-10 - length, -9], [-10 - length, 18]];
    const found = tries.map(([dx, dy]) => [left + dx, top + dy]).find(([l, t]) => free([l, t - 11, l + length, t + 3]));
    if (!found) return;
    taken.push([found[0], found[1] - 11, found[0] + length, found[1] + 3]);
    plot.append(svg("text", { class: "name", x: found[0], y: found[1], "aria-hidden": "true" }, point.name));
  });
}

// Lines: a panel per quantity, a line per network

/** `panel`: title, across, falling, rules, words, range; `series`: name, look, and points [x, y, low, high]. */
function panel(chart, width, { title, across, falling, rules = [], words = number, range, span, whole }, series) {
  const height = 200, box = { left: 44, right: width - 6, top: 12, bottom: height - 38 };
  const all = series.flatMap((each) => [each.points, ...(each.thin ?? [])].flat());
  const xs = [...new Set(all.map((point) => point[0]))].sort((a, b) => a - b);
  const spread = range ?? extent(all.flatMap((point) => point.slice(1)));
  const ends = falling ? [xs.at(-1), xs[0]] : [xs[0], xs.at(-1)];
  const x = linear(span ?? [xs[0], xs.at(-1)], falling ? [box.right, box.left] : [box.left, box.right], width / 60, whole);
  const y = linear(spread, [box.bottom, box.top], 5);
  if (span) x.ticks = []; // places without a size
  const finals = series.map((each) => `${each.name} ${number(at(each, ends[1]))}`).join(", ");
  const plot = canvas(width, height, "img", title, `At ${words(ends[1])}: ${finals}. Arrow keys read the values.`);
  frame(plot, x, y, box, words, across);
  for (const rule of rules)
    plot.append(svg("line", { class: "rule", x1: x(rule), x2: x(rule), y1: box.top, y2: box.bottom }));
  for (const each of series) plot.append(...lines(chart, each, x, y));
  cursor(chart, plot, title, xs, series, x, box, words);
  return html("div", { class: "panel" }, html("h4", {}, title), plot);
}

const at = (series, spot) => series.points.find((point) => point[0] === spot)?.[1];

function extent(values) {
  const low = Math.min(...values), high = Math.max(...values), room = 0.05 * (high - low);
  return [low - room, high + room];
}

function lines(chart, { look, rank, points, thin = [] }, x, y) {
  const shape = `look-${look} ${chart.dim(look)}`, found = [];
  const width = 1.6 + 0.6 * rank;
  if (points.some((point) => point[2] !== point[3])) {
    const [low, high] = [2, 3].map((end) => points.map((point) => [x(point[0]), y(point[end])]));
    found.push(svg("path", { class: `band ${shape}`, d: `${path([...low, ...high.reverse()])}Z` }));
  }
  const way = (line) => path(line.map(([across, up]) => [x(across), y(up)]));
  for (const each of thin)
    found.push(svg("path", { class: shape, "stroke-width": 0.7, "stroke-opacity": 0.6, d: way(each) }));
  const [[spot, , low, high]] = points;
  if (points.length === 1 && low !== undefined) {
    found.push(svg("line", { class: shape, "stroke-width": 1.2, x1: x(spot), x2: x(spot), y1: y(low), y2: y(high) }));
  }
  const dashes = DATA.looks[look].dashes.map((length) => width * length).join(" ") || null;
  found.push(svg("path", { class: shape, "stroke-width": width, "stroke-dasharray": dashes, d: way(points) }));
  const every = Math.max(1, Math.floor(points.length / 6)), href = `#mark-${DATA.looks[look].shape}`;
  points.forEach(([across, up], i) => {
    const transform = `translate(${x(across)} ${y(up)}) scale(0.8)`;
    if (i % every === 0) found.push(svg("use", { href, class: shape, transform }));
  });
  return found;
}

/** A line that follows the pointer or the arrow keys, and tells every network's value there. */
function cursor(chart, plot, title, xs, series, x, box, words) {
  const line = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  plot.append(line);
  let place = -1;
  const show = (next) => {
    place = next;
    const spot = xs[place];
    const rows = series.filter((each) => !chart.dim(each.look) && at(each, spot) !== undefined)
      .map((each) => [each.name, at(each, spot), each.look]).sort((a, b) => b[1] - a[1]);
    filled(line, { x1: x(spot), x2: x(spot), visibility: "visible" }, []);
    const told = rows.map(([name, value, look]) => [name, number(value), look]);
    const more = told.length > 14 ? [[`and ${told.length - 14} more`, ""]] : [];
    showTip(`${title}, at ${words(spot)}`, [...told.slice(0, 14), ...more], () => {
      const area = plot.getBoundingClientRect();
      return [area.left + x(spot), area.top + (box.top + box.bottom) / 2];
    });
    return told;
  };
  const hide = () => {
    line.setAttribute("visibility", "hidden");
    hideTip();
  };
  plot.setAttribute("tabindex", "0");
  plot.addEventListener("pointermove", (event) => {
    const left = event.clientX - plot.getBoundingClientRect().left;
    const nearest = xs.reduce((best, spot, i) => Math.abs(x(spot) - left) < Math.abs(x(xs[best]) - left) ? i : best, 0);
    show(nearest);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(xs.length - 1));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    const forward = x(xs.at(-1)) >= x(xs[0]) ? way : -way;
    const told = show(Math.max(0, Math.min(xs.length - 1, place + forward)));
    document.getElementById("said").textContent =
      `${title} at ${words(xs[place])}: ${told.map(([name, value]) => `${name} ${value}`).join(", ")}`;
  });
}

/** Panels in a grid, each as wide as the grid makes it. */
function grid(chart, made) {
  const columns = Math.max(1, Math.floor((chart.width + 26) / (19 * 16 + 26)));
  const width = (chart.width - (columns - 1) * 26) / columns;
  return [html("div", { class: "panels" }, ...made.map(([about, series]) => panel(chart, width, about, series)))];
}

// Training

function training(figure, networks) {
  new Chart(figure, () => networks, (chart, shown) => grid(chart, learnt(shown)));
}

/** What stands in each panel; a network has `seeds`: [seed, place of its history]. */
function learnt(networks) {
  return Object.entries(DATA.curves).flatMap(([name, title]) => {
    const series = networks.map((network) => {
      const curves = network.seeds.map(([, place]) => epochs(DATA.pools.histories[place][name]));
      const seeds = curves.filter((points) => points.length);
      return { ...network, points: mean(seeds), thin: seeds.length > 1 ? seeds : [] };
    }).filter((each) => each.points.length);
    return series.length ? [[{ title, across: "epoch", whole: true }, series]] : [];
  });
}

const epochs = (values = []) => values.map((value, i) => [i + 1, value]).filter((point) => point[1] !== null);

/** At the epochs that all seeds have. */
function mean(seeds) {
  const [first = [], ...others] = seeds.map((points) => new Map(points));
  return [...first].filter(([epoch]) => others.every((other) => other.has(epoch)))
    .map(([epoch, value]) => [epoch, others.reduce((sum, other) => sum + other.get(epoch), value) / seeds.length]);
}

// Invariance

function sweeps(figure, metrics, key) {
  let chosen = metrics[0];
  const chart = new Chart(figure, () => chosen.networks, (chart, shown) => grid(chart, changed(chosen, shown)));
  chart.choose("metric", metrics.map((each) => [each.metric, each.label]), key, (metric) => {
    chosen = metrics.find((each) => each.metric === metric);
    figure.querySelector("figcaption").textContent = chosen.caption;
    chart.render();
  });
}

function changed(chosen, shown) {
  const byName = new Map(shown.map((each) => [each.name, each]));
  const network = (curve) => byName.get(chosen.networks[curve[0]].name);
  const all = chosen.panels.flatMap((each) => each.curves.filter(network).flatMap(([, , , low, high]) => [...low, ...high]));
  return chosen.panels.filter((each) => each.curves.some(network)).map((each) => {
    const series = each.curves.filter(network).map((curve) => {
      const points = curve[1].map((_, i) => curve.slice(1).map((column) => column[i]));
      return { ...network(curve), points };
    });
    const range = extent(all);
    if (each.key === "flip") return flipped(each, series, range);
    const words = (value) => (each.key === "jpeg" && value === 100 ? "none" : number(value));
    return [{ ...each, words, range }, series];
  });
}

/** The flip has one strength: a mark per network, side by side. */
function flipped(about, series, range) {
  const beside = series.map((each, i) => ({ ...each, points: [[i, ...each.points.at(-1).slice(1)]] }));
  return [{ ...about, range, span: [-0.5, series.length - 0.5], words: (place) => series[place].name }, beside];
}
