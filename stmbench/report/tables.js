// Tables that sort, and the filters.

const DATA = JSON.parse(document.getElementById("data").textContent);
const filters = document.getElementById("filters");

// Sorting: a click on a head; rows without a value stay last

function sortable(table) {
  table.rowsAsMade = [...table.tBodies[0].rows];
  for (const button of table.tHead.querySelectorAll("button"))
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const other = { ascending: "descending", descending: "ascending" };
      sort(table, head.cellIndex, other[head.getAttribute("aria-sort")] ?? head.dataset.first);
      keep();
    });
}

function sort(table, column, direction) {
  const heads = [...table.tHead.rows[0].cells];
  if (!heads[column]?.dataset.first) return; // a page of another make
  for (const head of heads)
    if (head.dataset.first) head.setAttribute("aria-sort", head.cellIndex === column ? direction : "none");
  const way = direction === "ascending" ? 1 : -1;
  const keys = new Map(table.rowsAsMade.map((row) => [row, key(row.cells[column])]));
  const rows = table.rowsAsMade.toSorted((a, b) => {
    const [one, two] = [keys.get(a), keys.get(b)];
    if (one === null || two === null) return (one === null) - (two === null);
    return way * (typeof one === "number" ? one - two : one.localeCompare(two, "en", { numeric: true }));
  });
  table.tBodies[0].append(...rows);
}

function key(cell) {
  const value = cell.dataset.value;
  if (value === undefined) return cell.classList.contains("number") ? null : cell.textContent;
  return value === "" || Number.isNaN(Number(value)) ? value : Number(value);
}

/** How every table is sorted, by its id. */
function sorts() {
  const found = {};
  for (const table of document.querySelectorAll("table[id]")) {
    const head = table.querySelector("th[aria-sort$='cending']");
    if (head) found[table.id] = [head.cellIndex, head.getAttribute("aria-sort")];
  }
  return found;
}

// Filters

/** Whether a network or row, with its mixer and scale, passes; `article` says recipe and data. */
function passes({ mixer, scale, recipe, text, name }, article) {
  const title = article?.dataset.title ?? "";
  const found = `${title} ${name ?? ""} ${mixer} ${scale} ${text ?? ""}`.toLowerCase();
  const words = filters.elements.text.value.toLowerCase().split(/\s+/);
  const wanted = { mixer, scale, recipe: article?.dataset.recipe ?? recipe };
  return words.every((word) => found.includes(word)) &&
    Object.entries(wanted).every(([name, value]) => {
      const select = filters.elements[name];
      return !select || select.selectedIndex < 1 || select.value === value;
    });
}

function filter() {
  for (const element of document.querySelectorAll("#overview [data-mixer]")) {
    const text = element.matches(".board tr, .listing tr") ? (element.text ??= element.textContent) : "";
    element.hidden = !passes({ ...element.dataset, text }, element.closest("article"));
  }
  for (const chart of charts) {
    chart.figure.hidden = !chart.shown.length;
    if (!chart.figure.hidden) chart.render();
  }
  for (const section of document.querySelectorAll("#overview section")) choose(section);
  count();
}

const THINGS = "tbody tr[data-mixer], .field, figure.chart";

/** Of a section's articles with something in them show one, the chosen or else the first. */
function choose(section) {
  const articles = [...section.querySelectorAll("article")];
  const there = articles.filter((article) => [...article.querySelectorAll(THINGS)].some((thing) => !thing.hidden));
  const nothing = articles.length > 0 && there.length === 0;
  let none = section.querySelector(".none");
  if (nothing && !none) section.append((none = html("p", { class: "none" }, "Nothing here passes the filters.")));
  if (none) none.hidden = !nothing;
  const wanted = there.find((article) => article === section.chosen) ?? there[0];
  for (const article of articles) article.hidden = section.chooser ? article !== wanted : !there.includes(article);
  if (!section.chooser) return;
  const select = section.chooser.querySelector("select");
  select.replaceChildren(...there.map((article) => html("option", { value: articles.indexOf(article) }, article.label)));
  select.value = articles.indexOf(wanted);
  section.chooser.hidden = there.length < 2;
}

/** A choice among a section's articles; the leaderboard shows all it has. */
function chooser(section) {
  const articles = [...section.querySelectorAll("article")];
  for (const article of articles) {
    const same = articles.filter((other) => other.dataset.title === article.dataset.title);
    const place = same.length > 1 ? ` (${same.indexOf(article) + 1} of ${same.length})` : "";
    article.label = article.dataset.title + place;
  }
  if (articles.length < 2 || section.id === "leaderboard") return;
  const select = html("select");
  select.addEventListener("change", () => {
    section.chosen = articles[select.value];
    filter();
    keep();
  });
  section.chooser = html("label", { class: "chooser" }, "of ", select);
  articles[0].before(section.chooser);
  for (const article of articles) article.querySelector("h3").classList.add("unseen");
}

function count() {
  const told = [["networks", ".board tbody tr"], ["runs", ".listing tbody tr"]].map(([name, rows]) => {
    const all = [...document.querySelectorAll(rows)], shown = all.filter((row) => !row.hidden);
    return shown.length === all.length ? `${all.length} ${name}` : `${shown.length} of ${all.length} ${name}`;
  });
  document.getElementById("count").textContent = told.filter((text) => !text.startsWith("0 ")).join(", ") || "nothing passes";
}
