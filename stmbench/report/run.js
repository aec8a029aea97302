// A run's own page: what it was, how it ended, all its numbers, and how to repeat it.

const byHash = new Map(DATA.runs.map((run) => [new URL(`#run=${run.id}`, location).hash, run]));

function runPage(run) {
  const title = html("h2", { tabindex: "-1" }, sign(run.look), run.id);
  const state = html("p", {}, html("span", { class: `state ${run.state}` }, run.state), run.reason ? `: ${run.reason}` : "");
  return [
    html("div", {}, html("a", { class: "back", href: "#" }, "← all results"), title, state),
    part("Repeat it", ...Object.entries(run.commands).map(command)),
    html("div", { class: "columns" },
      part("What", facts(run.facts)),
      part("Environment", facts([...run.environment, ...Object.entries(DATA.pools.versions[run.versions])]))),
    stages(run),
    ...numbers(run),
    curves(run),
    recipe(run),
    files(run),
  ].filter(Boolean);
}

const part = (title, ...content) => html("div", { class: "part" }, html("h3", {}, title), ...content);

function facts(pairs) {
  return html("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
}

function command([name, text]) {
  const copy = html("button", { type: "button", class: "plain", "aria-label": `Copy: ${text}` }, "copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(text);
    copy.textContent = "copied";
  });
  return html("div", {}, html("p", { class: "small" }, name),
    html("div", { class: "command" }, html("pre", {}, text), navigator.clipboard ? copy : null));
}

function stages({ stages }) {
  if (!stages.length) return null;
  const heads = ["stage", "state", "started (UTC)", "took", "reason"];
  return part("Stages", rows("In the order they began", heads, stages, { reason: "wide" }));
}

function files({ files }) {
  if (!files.length) return null;
  const lines = files.map(([path, kind, condition, bytes, digest]) =>
    [path, kind, spaced(condition), number(bytes), html("code", {}, digest)]);
  const heads = ["file", "kind", "condition", "bytes", "sha256"];
  return part("Files", rows("In the run's folder", heads, lines, { condition: "wide", bytes: "number" }));
}

const spaced = (condition) => condition.replaceAll(",", ", ");

/** A table without its empty columns; `kinds` are classes of columns by their head. */
function rows(caption, heads, lines, kinds = {}) {
  const kept = heads.map((_, i) => lines.some((line) => line[i] !== "")).flatMap((there, i) => (there ? [i] : []));
  const head = (name) => html("th", { scope: "col", class: kinds[name] === "number" ? "number" : null }, name);
  const cell = (line, i) =>
    i ? html("td", { class: kinds[heads[i]] }, line[i]) : html("th", { scope: "row" }, line[i]);
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    html("table", {}, html("caption", {}, html("span", {}, caption)),
      html("thead", {}, html("tr", {}, ...kept.map((i) => head(heads[i])))),
      html("tbody", {}, ...lines.map((line) => html("tr", {}, ...kept.map((i) => cell(line, i)))))));
}

/** All final numbers, a table for each stage; a long one is folded. */
function numbers(run) {
  const stages = new Map();
  DATA.pools.shapes[run.shape].forEach(([stage, name, unit, condition], i) => {
    const [value, low, high] = [run.values[i]].flat();
    const reason = run.reasons[i];
    const interval = low === null || low === undefined ? "" : `${number(low)} to ${number(high)}`;
    const under = [spaced(condition), reason].filter(Boolean).join(": ");
    const line = [name, reason ? "failed" : number(value, 6), interval, unit, under];
    stages.set(stage, [...(stages.get(stage) ?? []), line]);
  });
  if (!stages.size) return [];
  const heads = ["number", "value", "95 % interval", "unit", "condition"];
  const kinds = { value: "number", "95 % interval": "number", condition: "wide" };
  return [part("Numbers", ...[...stages].map(([stage, lines]) =>
    folded(`${stage}, ${lines.length} number${lines.length === 1 ? "" : "s"}`, lines.length <= 24,
      rows(`${stage}: final numbers`, heads, lines, kinds))))];
}

const folded = (title, open, ...content) =>
  html("details", { open: open ? "" : null }, html("summary", {}, title), ...content);

function curves(run) {
  if (run.history === null) return null;
  const figure = html("figure", { class: "chart" }, html("div", { class: "drawing" }));
  const made = learnt([{ name: run.name, look: run.look, rank: 0, seeds: [[0, run.history]] }]);
  const place = figure.firstChild;
  new ResizeObserver(() => {
    if (place.clientWidth) place.replaceChildren(...grid({ width: place.clientWidth, dim: () => "" }, made));
  }).observe(place);
  return part("Training", figure);
}

/** The whole recipe, and in it what --set changed. */
function recipe(run) {
  const changed = new Set(run.overrides.map((text) => text.split("=")[0].trim()));
  const sections = new Map();
  for (const [key, value] of DATA.pools.recipes[run.recipe]) {
    const [section, name] = key.includes(".") ? key.split(".") : ["recipe", key];
    const shown = changed.has(key) ? html("span", { class: "changed" }, `${value} (--set)`) : value || "–";
    sections.set(section, [...(sections.get(section) ?? []), [name, shown]]);
  }
  const made = [...sections].map(([section, values]) => html("div", {}, html("h4", {}, section), facts(values)));
  const set = html("p", { class: "note" }, "Overridden: ", html("code", {}, run.overrides.join("  ")));
  return part("Recipe", changed.size ? set : null,
    folded("Every value that was followed", changed.size > 0, html("div", { class: "recipe" }, ...made)));
}
