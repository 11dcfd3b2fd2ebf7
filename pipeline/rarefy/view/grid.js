"use strict";
// The grid of images with its filters, shared by the page of `rarefy view` and gallery.html. The other script defines
// `source`: what an image's address is and, on the live page, how the server is asked.

const MOST_PLACES = 200000; // a browser's page cannot be higher than about 17 million pixels
const GAP = 8, CAPTION = 22, OVERSCAN_ROWS = 3;
const RANGES = ["confidence", "entropy", "rarity", "copy_ratio"];
const FLAGS = {
  accepted: ["accepted", "not accepted"], inside: ["within", "outside"], excluded: ["dropped", "kept"],
};
const $ = id => document.getElementById(id);
const state = {
  table: null, order: new Uint32Array(0), mask: null, offered: "", selected: new Set(), anchor: 0, focus: 0, open: -1,
  sort: "key", descending: false, filters: {}, selecting: false,
};
const tiles = new Map();
const shape = {perRow: 1, tile: 112, row: 142};

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---- the table

function decodeTable(buffer) {
  const bytes = new Uint8Array(buffer), end = bytes.indexOf(10);
  const table = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  table.names = new Map(table.classes);
  table.ranks = new Map(table.classes.map(([id], place) => [id, place]));
  table.column = {};
  table.columns.forEach((column, place) => {
    column.values = new Float64Array(buffer, end + 1 + place * table.rows * 8, table.rows);
    table.column[column.name] = column;
  });
  return table;
}

const value = (name, row) => state.table.column[name]?.values[row] ?? NaN;
const keyOf = row => String(value("key", row)).padStart(11, "0");
const className = id => state.table.names.get(id) ?? String(id);
const isDropped = row => value("excluded", row) === 1;

function format(column, number) {
  if (Number.isNaN(number)) return "–";
  if (column.kind === "key") return String(number).padStart(11, "0");
  if (column.kind === "class") return className(number);
  if (column.kind === "flag") return number ? "yes" : "no";
  if (Number.isInteger(number)) return number.toLocaleString("en");
  return Math.abs(number) < 0.001 ? number.toExponential(2) : number.toPrecision(4);
}

function title(row) {
  const parts = [`${className(value("class_id", row))} ${keyOf(row)}`];
  const column = state.table.column[state.sort];
  if (column.kind !== "key" && column.name !== "class_id") parts.push(`${column.label} ${format(column, column.values[row])}`);
  if (isDropped(row)) parts.push("dropped");
  return parts.join(", ");
}

// ---- filters and order

function passes(row) {
  const filters = state.filters;
  if (state.mask && !state.mask[row]) return false;
  if (filters.class !== undefined && value("class_id", row) !== filters.class) return false;
  if (filters.off !== undefined && (value("predicted_id", row) !== value("class_id", row)) !== filters.off) return false;
  for (const [name, [low, high]] of Object.entries(filters.ranges ?? {})) {
    if (!(value(name, row) >= low && value(name, row) <= high)) return false;
  }
  for (const [name, wanted] of Object.entries(filters.flags ?? {})) {
    if (value(name, row) !== wanted) return false;
  }
  return true;
}

function byColumn(column, sign) {
  const values = column.values, ranks = state.table.ranks;
  const rank = column.kind === "class" ? number => ranks.get(number) ?? number : number => number;
  return (a, b) => {
    const x = rank(values[a]), y = rank(values[b]);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return sign * (x - y) || a - b;
  };
}

function refresh() {
  const kept = state.order.length ? state.order[state.focus] : 0;
  const found = [];
  for (let row = 0; row < state.table.rows; row++) if (passes(row)) found.push(row);
  const order = Uint32Array.from(found);
  const column = state.table.column[state.sort];
  if (column.kind !== "key") order.sort(byColumn(column, state.descending ? -1 : 1));
  else if (state.descending) order.reverse();
  state.order = order;
  state.focus = Math.max(0, order.subarray(0, MOST_PLACES).indexOf(kept));
  state.anchor = state.focus;
  for (const tile of tiles.values()) discard(tile);
  tiles.clear();
  layout();
  count();
}

function count() {
  const shown = state.order.length, all = state.table.rows;
  const dropped = state.table.column.excluded?.values.reduce((sum, each) => sum + each, 0) ?? 0;
  const parts = [shown === all ? `${all.toLocaleString("en")} images` : `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} images`];
  if (dropped) parts.push(`${dropped.toLocaleString("en")} dropped`);
  if (shown > MOST_PLACES) parts.push(`the first ${MOST_PLACES.toLocaleString("en")} can be scrolled to: narrow the filters`);
  $("count").textContent = parts.join(", ");
  $("nothing").hidden = shown > 0;
  const chosen = state.selected.size;
  $("chosen").textContent = `${chosen.toLocaleString("en")} selected`;
  document.body.classList.toggle("choosing", chosen > 0);
}

// ---- the grid: only the rows of tiles on the screen are in the document

function layout() {
  const grid = $("grid"), width = grid.clientWidth, wanted = +$("size").value;
  shape.perRow = Math.max(1, Math.floor((width + GAP) / (wanted + GAP)));
  shape.tile = (width - GAP * (shape.perRow - 1)) / shape.perRow;
  shape.row = shape.tile + CAPTION + GAP;
  grid.style.height = `${Math.ceil(places() / shape.perRow) * shape.row}px`;
  paint();
}

const places = () => Math.min(state.order.length, MOST_PLACES);

function paint() {
  const top = -$("grid").getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / shape.row) - OVERSCAN_ROWS) * shape.perRow;
  const last = Math.min(places(), (Math.ceil((top + innerHeight) / shape.row) + OVERSCAN_ROWS) * shape.perRow);
  for (const [place, tile] of tiles) {
    if ((place < first || place >= last) && place !== state.focus) {
      discard(tile);
      tiles.delete(place);
    }
  }
  for (let place = first; place < last; place++) show(place);
  if (state.focus < places()) show(state.focus);
}

function discard(tile) {
  tile.querySelector("img").removeAttribute("src"); // so that the browser need not load it any more
  tile.remove();
}

function show(place) {
  const row = state.order[place];
  let tile = tiles.get(place);
  if (!tile) {
    tile = element("div", {className: "cell", id: `place-${place}`, tabIndex: -1},
      element("img", {src: source.image(row), decoding: "async", draggable: false}),
      element("i", {className: "mark"}), element("small"));
    tile.setAttribute("role", "option");
    tile.setAttribute("aria-posinset", place + 1);
    tile.setAttribute("aria-setsize", state.order.length);
    tile.dataset.place = place;
    tiles.set(place, tile);
    $("grid").append(tile);
  }
  const column = state.table.column[state.sort], text = title(row), chosen = state.selected.has(keyOf(row));
  const left = (place % shape.perRow) * (shape.tile + GAP), top = Math.floor(place / shape.perRow) * shape.row;
  tile.style.transform = `translate(${left}px, ${top}px)`;
  tile.style.width = `${shape.tile}px`;
  tile.tabIndex = place === state.focus ? 0 : -1;
  tile.title = text;
  tile.setAttribute("aria-label", text);
  tile.setAttribute("aria-selected", chosen);
  tile.classList.toggle("dropped", isDropped(row));
  tile.querySelector("img").alt = text;
  const shown = column.kind === "key" ? state.table.column.class_id : column;
  tile.querySelector("small").textContent = format(shown, shown.values[row]);
}

function moveTo(place, extend) {
  if (!places()) return;
  state.focus = Math.max(0, Math.min(places() - 1, place));
  if (extend) selectRange(state.anchor, state.focus);
  else state.anchor = state.focus;
  const grid = $("grid").getBoundingClientRect(), top = grid.top + Math.floor(state.focus / shape.perRow) * shape.row;
  const bar = document.querySelector(".bar").offsetHeight + GAP;
  if (top < bar) scrollBy(0, top - bar);
  else if (top + shape.row > innerHeight) scrollBy(0, top + shape.row - innerHeight);
  paint();
  tiles.get(state.focus).focus({preventScroll: true});
}

// ---- selection, dropping and keeping

function selectRange(from, to) {
  for (let place = Math.min(from, to); place <= Math.max(from, to); place++) state.selected.add(keyOf(state.order[place]));
  count();
}

function toggle(place) {
  const key = keyOf(state.order[place]);
  if (!state.selected.delete(key)) state.selected.add(key);
  state.anchor = state.focus = place;
  count();
  paint();
}

function clearSelection() {
  state.selected.clear();
  count();
  paint();
}

function act(drop) {
  const open = $("detail").open;
  const chosen = !open && state.selected.size ? [...state.selected] : [];
  const row = open ? state.open : state.order[state.focus];
  if (!source.mark || row === undefined) return;
  source.mark(chosen.length ? chosen : [keyOf(row)], drop);
}

// ---- the large image

function openAt(place) {
  if (place < 0 || place >= places()) return;
  state.focus = place;
  const row = state.open = state.order[place];
  for (const tile of tiles.values()) tile.tabIndex = -1;
  const large = $("large");
  large.src = source.image(row);
  large.alt = title(row);
  $("name").textContent = `${className(value("class_id", row))} ${keyOf(row)}`;
  const facts = state.table.columns.filter(column => column.kind !== "key" && column.name !== "class_id");
  $("facts").replaceChildren(...facts.flatMap(column => fact(column.label, format(column, column.values[row]))));
  describeOpen();
  if (!$("detail").open) $("detail").showModal();
  $("detail").scrollTop = 0;
  source.details?.(row);
}

function describeOpen() {
  $("detail").classList.toggle("dropped", isDropped(state.open));
  $("place").textContent = `${(state.focus + 1).toLocaleString("en")} of ${state.order.length.toLocaleString("en")}`
    + (isDropped(state.open) ? ", dropped" : "");
}

const fact = (name, text) => [element("dt", {textContent: name}), element("dd", {textContent: text})];

// ---- controls

function choice(label, options, chosen, change) {
  const list = element("select", {}, ...options.map(([text, mark]) => element("option", {textContent: text, value: mark})));
  list.value = chosen === undefined ? "" : String(+chosen);
  list.addEventListener("change", () => { change(list.value); refresh(); });
  return element("label", {}, element("span", {textContent: label}), list);
}

function range(column) {
  const bounds = [...(state.filters.ranges?.[column.name] ?? [-Infinity, Infinity])], set = (place, text) => {
    bounds[place] = text === "" ? [-Infinity, Infinity][place] : +text;
    const ranges = state.filters.ranges ??= {};
    if (bounds[0] === -Infinity && bounds[1] === Infinity) delete ranges[column.name];
    else ranges[column.name] = [...bounds];
    refresh();
  };
  const [low, high] = [0, 1].map(place => {
    const input = element("input", {type: "number", step: "any", placeholder: ["from", "to"][place],
      value: Number.isFinite(bounds[place]) ? bounds[place] : ""});
    input.setAttribute("aria-label", `${column.label} ${["from", "to"][place]}`);
    input.addEventListener("input", () => set(place, input.value));
    return input;
  });
  const label = element("div", {className: "range", title: column.meaning}, element("span", {textContent: column.label}), low, high);
  label.setAttribute("role", "group");
  label.setAttribute("aria-label", column.label);
  return label;
}

const has = name => state.table.column[name]?.values.some(each => !Number.isNaN(each));

function classCounts() {
  const counts = new Map();
  for (const id of state.table.column.class_id.values) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}

function offered(counts) { // the columns and classes that there are filters for: a run that goes on gets more
  return JSON.stringify([state.table.columns.map(column => column.name).filter(has), [...counts.keys()].sort()]);
}

function buildFilters(counts) {
  const table = state.table, chosen = state.filters;
  const classes = table.classes.filter(([id]) => counts.has(id));
  const made = [choice("class", [["all", ""], ...classes.map(([id, name]) => [name, id])], chosen.class,
    mark => { chosen.class = mark === "" ? undefined : +mark; })];
  made[0].querySelector("select").id = "class";
  if (has("predicted_id")) {
    made.push(choice("classifier says", [["any class", ""], ["the class asked for", "0"], ["another class", "1"]],
      chosen.off, mark => { chosen.off = mark === "" ? undefined : mark === "1"; }));
  }
  for (const [name, [yes, no]] of Object.entries(FLAGS)) {
    if (!has(name)) continue;
    const options = [["any", ""], [yes, "1"], [no, "0"]];
    made.push(choice(table.column[name].label, options, chosen.flags?.[name], mark => {
      const flags = chosen.flags ??= {};
      if (mark === "") delete flags[name];
      else flags[name] = +mark;
    }));
  }
  made.push(...RANGES.filter(has).map(name => range(table.column[name])));
  $("filters").replaceChildren(...made);
  const sortable = table.columns.filter(column => column.kind === "key" || has(column.name));
  $("sort").replaceChildren(...sortable.map(column => element("option", {value: column.name, textContent: column.label})));
  $("sort").value = state.sort;
}

function start(table) {
  const kept = state.table && state.order.length ? keyOf(state.order[state.focus]) : null;
  const open = $("detail").open ? keyOf(state.open) : null;
  state.table = table;
  const counts = classCounts(), filters = offered(counts);
  if (filters !== state.offered) buildFilters(counts);
  state.offered = filters;
  for (const option of $("class").options) {
    if (option.value) option.textContent = `${className(+option.value)} (${counts.get(+option.value).toLocaleString("en")})`;
  }
  refresh();
  const place = key => state.order.findIndex(row => keyOf(row) === key);
  if (kept && place(kept) >= 0) state.focus = state.anchor = place(kept);
  if (!open) return;
  state.open = table.column.key.values.indexOf(+open); // its row is another one now, even if no filter shows it
  if (state.open < 0) return $("detail").close();
  if (place(open) >= 0) state.focus = place(open);
  describeOpen();
}

// ---- mouse, touch and keyboard

$("grid").addEventListener("click", event => {
  const tile = event.target.closest(".cell");
  if (!tile) return;
  const place = +tile.dataset.place;
  if (event.shiftKey) {
    state.focus = place;
    selectRange(state.anchor, place);
    paint();
  } else if (event.ctrlKey || event.metaKey || state.selecting || event.target.closest(".mark")) toggle(place);
  else openAt(place);
});

const STEPS = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down", PageUp: "back", PageDown: "on", Home: "first", End: "last"};

function gridKey(event) {
  const screen = Math.max(1, Math.floor(innerHeight / shape.row) - 1) * shape.perRow;
  const step = {up: -shape.perRow, down: shape.perRow, back: -screen, on: screen, first: -Infinity, last: Infinity}[STEPS[event.key]] ?? STEPS[event.key];
  if (step !== undefined) moveTo(Math.max(0, Math.min(places() - 1, state.focus + step)), event.shiftKey);
  else if (event.key === "Enter") openAt(state.focus);
  else if (event.key === " ") toggle(state.focus);
  else if (event.key === "a" && (event.ctrlKey || event.metaKey)) { selectRange(0, places() - 1); paint(); }
  else return false;
  return true;
}

document.addEventListener("keydown", event => {
  const typing = event.target.closest("input:not([type=range]), select, textarea");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  const detail = $("detail").open, plain = !event.ctrlKey && !event.metaKey && !event.altKey;
  let used = true;
  if ($("help").open) used = false;
  else if (plain && (event.key === "d" || event.key === "k")) act(event.key === "d");
  else if (plain && event.key === "?") $("help").showModal();
  else if (detail) {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step && event.target.type !== "range") openAt(state.focus + step);
    else used = false;
  } else if (plain && event.key === "/") ($("where") ?? $("class")).focus();
  else if (event.key === "Escape") clearSelection();
  else if (!event.target.closest("button, a, summary")) used = gridKey(event);
  else used = false;
  if (used) event.preventDefault();
});

$("detail").addEventListener("close", () => moveTo(state.focus, false));
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
}
$("back").addEventListener("click", () => openAt(state.focus - 1));
$("next").addEventListener("click", () => openAt(state.focus + 1));
for (const button of document.querySelectorAll("[data-drop]")) button.addEventListener("click", () => act(button.dataset.drop === "1"));
$("clear").addEventListener("click", clearSelection);
$("ask").addEventListener("click", () => $("help").showModal());
$("selecting").addEventListener("click", () => {
  state.selecting = !state.selecting;
  $("selecting").setAttribute("aria-pressed", state.selecting);
});
$("sort").addEventListener("change", () => { state.sort = $("sort").value; refresh(); });
$("descending").addEventListener("click", () => {
  state.descending = !state.descending;
  $("descending").setAttribute("aria-pressed", state.descending);
  refresh();
});
$("size").addEventListener("change", layout);
addEventListener("scroll", () => requestAnimationFrame(paint), {passive: true});
addEventListener("resize", layout);
if (innerWidth > 860) $("controls").open = true;
