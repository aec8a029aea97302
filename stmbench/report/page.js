// The page: its sections, what is kept over a reload, and which view the address asks for.

const overview = document.getElementById("overview");
const runView = document.getElementById("run");
let begun = false;
const STORE = `stmbench ${location.pathname}`;

// State: filters, sorts, choices, scroll and focus stay when the page is loaded again

function keep() {
  if (!begun) return; // what is restored is not kept half way
  const state = {
    filters: pairs(filters.elements, (field) => [field.name, field.value]),
    sorts: sorts(),
    chosen: pairs(overview.querySelectorAll("section"), (section) => [section.id, section.chosen?.label]),
    kept: pairs(document.querySelectorAll("[data-keep]"), (select) => [select.dataset.keep, select.value]),
    scroll: scrollY,
    focus: [...document.querySelectorAll(FOCUS)].indexOf(document.activeElement),
  };
  try {
    sessionStorage.setItem(STORE, JSON.stringify(state));
  } catch { /* a browser that keeps nothing */ }
}

const pairs = (elements, pair) => Object.fromEntries([...elements].map(pair).filter(([name]) => name));

const FOCUS = "a, button, input, select, summary, [tabindex]";

function restore() {
  let state = null;
  try {
    state = JSON.parse(sessionStorage.getItem(STORE));
  } catch { /* nothing was kept */ }
  if (!state) return null;
  for (const [name, value] of Object.entries(state.filters)) set(filters.elements[name], value);
  for (const [id, [column, direction]] of Object.entries(state.sorts)) {
    const table = document.getElementById(id);
    if (table) sort(table, column, direction);
  }
  for (const [id, label] of Object.entries(state.chosen)) {
    const section = document.getElementById(id);
    if (section) section.chosen = [...section.querySelectorAll("article")].find((each) => each.label === label);
  }
  for (const select of document.querySelectorAll("[data-keep]")) {
    set(select, state.kept[select.dataset.keep]);
    select.dispatchEvent(new Event("change"));
  }
  return state;
}

/** Give a field a value that it can take. */
function set(field, value) {
  if (!field || value === undefined) return;
  if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
}

// Views

let left = 0; // how far the overview was scrolled when a run's page was opened

function route() {
  hideTip();
  const run = byHash.get(location.hash);
  const opened = Boolean(run), was = runView.hidden === false;
  if (opened && !was) left = scrollY;
  overview.hidden = filters.hidden = opened;
  runView.hidden = !opened;
  document.getElementById("sections").hidden = opened;
  document.title = run ? `${run.id} · stmbench report` : "stmbench report";
  if (run) {
    runView.replaceChildren(...runPage(run));
    scrollTo({ top: 0, behavior: "instant" });
    runView.querySelector("h2").focus({ preventScroll: true });
  } else if (was) {
    const target = document.getElementById(location.hash.slice(1));
    filter(); // widths were not known while it was hidden
    if (target) target.scrollIntoView();
    else scrollTo({ top: left, behavior: "instant" });
  }
}

function begin() {
  const sections = [...overview.querySelectorAll("section")];
  const links = sections.map(({ id, firstChild }) => html("a", { href: `#${id}` }, firstChild.textContent));
  document.getElementById("sections").append(html("ul", {}, ...links.map((link) => html("li", {}, link))));
  const drawn = { costs, training, sweeps };
  for (const figure of overview.querySelectorAll("figure[data-kind]")) {
    const { kind, number } = figure.dataset;
    drawn[kind](figure, DATA.charts[kind][number], `${kind} ${number}`);
  }
  document.querySelectorAll(".board, .listing").forEach(sortable);
  sections.forEach(chooser);
  for (const kind of ["input", "change"]) filters.addEventListener(kind, () => { filter(); keep(); });
  filters.addEventListener("reset", () => setTimeout(() => { filter(); keep(); }));
  filters.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", route);
  const state = restore();
  document.getElementById("sections").hidden = filters.hidden = false;
  filter();
  route();
  history.scrollRestoration = "manual"; // the browser's own comes before there is anything to scroll
  if (state && performance.getEntriesByType("navigation")[0]?.type !== "navigate") {
    scrollTo({ top: state.scroll, behavior: "instant" });
    document.querySelectorAll(FOCUS)[state.focus]?.focus({ preventScroll: true });
  }
  begun = true;
  addEventListener("pagehide", keep);
  if (DATA.every) setTimeout(() => location.reload(), 1000 * DATA.every);
}

begin();
