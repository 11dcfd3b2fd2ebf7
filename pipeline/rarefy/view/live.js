// The page of `rarefy view`: asks its server.
const config = JSON.parse($("data").textContent);
const traces = new Map(); // key -> what the server last said about its trajectory
let version = "", timer = 0, asked = 0;

async function ask(path, body) {
  const options = body ? {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)} : {};
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: it has ended, or the connection is lost; start rarefy view again");
  }
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

const say = text => { $("message").textContent = text; $("message").hidden = !text; };
const query = row => `key=${keyOf(row)}`;
const picture = name => `${name}.png?${config.serial}`; // browsers keep it: another server has another serial

const source = {
  image: row => picture(`image/${keyOf(row)}`),
  mark: async (keys, drop) => {
    try {
      const answer = await (await ask("api/mark", {keys, drop})).json();
      const changed = new Set(keys), excluded = state.table.column.excluded.values;
      for (let row = 0; row < state.table.rows; row++) if (changed.has(keyOf(row))) excluded[row] = drop ? 1 : 0;
      version = answer.version;
      say("");
      if (state.filters.flags?.excluded !== undefined && !$("detail").open) refresh();
      paint();
      count();
      if ($("detail").open) describeOpen();
    } catch (error) { say(error.message); }
  },
  details: row => {
    showFacts(row);
    showNear(row);
    showTrace(traces.get(keyOf(row)) ?? {});
  },
};
if (!config.writable) source.mark = () => say(config.why_not);

async function showFacts(row) {
  try {
    const rows = await (await ask(`api/row?${query(row)}`)).json();
    if (state.open === row) $("facts").append(...rows.flatMap(([name, text]) => fact(name, text)));
  } catch (error) { say(error.message); }
}

async function showNear(row) {
  $("near").replaceChildren();
  $("near-text").textContent = "Looking for the nearest real images …";
  let found = [], text = "";
  try {
    const answer = await (await ask(`api/near?${query(row)}`)).json();
    found = answer.near;
    text = answer.why_not || "Nearest by the audit's features if they are known, then by pixels (root mean square difference in grey levels).";
  } catch (error) { text = error.message; }
  if (state.open !== row) return;
  $("near-text").textContent = text;
  $("near").replaceChildren(...found.map(near => {
    const words = `real ${near.class_name}, nearest by ${near.by}` + (near.distance === null ? "" : `, distance ${near.distance.toPrecision(4)}`);
    return element("figure", {}, element("img", {src: picture(`real/${near.row}`), alt: `${words}, image ${near.key}`, title: near.key}),
      element("figcaption", {textContent: words.replace("real ", "")}));
  }));
}

// ---- the trajectory

$("trace").addEventListener("click", async () => {
  try {
    await follow(state.open, await (await ask("api/trajectory", {key: keyOf(state.open)})).json());
  } catch (error) { $("trace-text").textContent = error.message; }
});

async function follow(row, trace) {
  const key = keyOf(row);
  while (true) {
    traces.set(key, trace);
    if (keyOf(state.open) === key) showTrace(trace);
    if (trace.steps || trace.error) return;
    await new Promise(done => setTimeout(done, 300));
    trace = await (await ask(`api/trajectory?key=${key}`)).json();
  }
}

function showTrace(trace) {
  $("trace").disabled = "done" in trace && !trace.steps && !trace.error;
  $("trace").hidden = Boolean(trace.steps);
  $("frames").hidden = !trace.steps;
  if (trace.error) $("trace-text").textContent = trace.error;
  else if (trace.steps) $("trace-text").textContent = trace.comparison;
  else if (!("done" in trace)) $("trace-text").textContent = "How sampling arrived at this image, made again from its seed.";
  else $("trace-text").textContent = trace.total ? `Step ${trace.done + 1} of ${trace.total} …` : "Loading the networks …";
  if (!trace.steps) return;
  $("frame").max = trace.frames.length - 1;
  $("frame").value = trace.frames.length - 1;
  drawCurves(trace);
  showFrame(trace);
}

function showFrame(trace) {
  const number = trace.frames[$("frame").value], step = trace.steps[number], address = `trajectory/${keyOf(state.open)}/${number}`;
  for (const kind of ["x", "predicted"]) $(`frame-${kind}`).src = picture(`${address}/${kind}`);
  $("frame-x").alt = `x after step ${number + 1}`;
  $("frame-predicted").alt = `predicted image of step ${number + 1}`;
  let text = `Step ${number + 1} of ${trace.steps.length}, t = ${step.t}`;
  if (step.confidence !== null) text += `: confidence ${step.confidence.toPrecision(3)}, entropy ${step.entropy.toPrecision(3)} nats`;
  $("frame-text").textContent = text;
  const mark = $("curves").querySelector(".now");
  const x = place(trace, number);
  if (mark) for (const end of ["x1", "x2"]) mark.setAttribute(end, x);
}

const place = (trace, number) => 4 + 312 * (trace.steps.length > 1 ? number / (trace.steps.length - 1) : 1);

function drawCurves(trace) {
  const drawing = $("curves");
  drawing.replaceChildren();
  $("curves-key").hidden = drawing.style.display = "";
  if (trace.steps[0].confidence === null) {
    $("curves-key").hidden = true;
    drawing.style.display = "none";
    return;
  }
  const line = (name, height) => svg("polyline", {class: name,
    points: trace.steps.map((step, number) => `${place(trace, number)},${76 - 72 * height(step)}`).join(" ")});
  drawing.append(svg("line", {class: "now", y1: 2, y2: 78}), svg("line", {class: "base", x1: 4, x2: 316, y1: 76, y2: 76}),
    line("confidence", step => step.confidence), line("entropy", step => step.entropy / trace.most_entropy));
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, text] of Object.entries(attributes)) made.setAttribute(key, text);
  return made;
}

$("frame").addEventListener("input", () => showFrame(traces.get(keyOf(state.open))));

// ---- the expression, and what changes in the run

$("where").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(filter, 300);
});

async function filter() {
  const number = ++asked, text = $("where").value.trim();
  let mask = null, error = "";
  if (text) {
    try {
      mask = await selected(text);
    } catch (cause) { error = cause.message; }
  }
  if (number !== asked) return; // a later expression is on its way
  $("where-error").textContent = error;
  $("where").setAttribute("aria-invalid", Boolean(error));
  if (error) return;
  state.mask = mask;
  refresh();
}

async function selected(text) {
  while (true) {
    const answer = await ask(`api/where?expression=${encodeURIComponent(text)}`);
    if (answer.headers.get("X-Rows") === version) return new Uint8Array(await answer.arrayBuffer());
    await load();
  }
}

async function load() {
  const answer = await ask("api/table");
  version = answer.headers.get("X-Rows");
  const table = decodeTable(await answer.arrayBuffer());
  if (state.mask && state.mask.length !== table.rows) state.mask = null;
  start(table);
}

async function poll() {
  try {
    const now = await (await ask("api/status")).json();
    $("state").textContent = now.text;
    if (now.version !== version) {
      await load();
      if ($("where").value.trim()) await filter();
    }
    if (document.body.classList.contains("gone")) say("");
    document.body.classList.remove("gone");
  } catch (error) {
    document.body.classList.add("gone");
    say(error.message);
  }
  setTimeout(poll, config.poll_ms);
}

poll();
