// The attention page: which model, which text, and every head as a small picture.

const AUTOMATIC = 1500; // characters: longer texts are read when one says so
const KEPT = "lmworks.studio.attention";
const EXAMPLES = {
  "Two cats": "The cat sat on the mat. The cat slept on the mat, and the dog sat by the door because it was tired.",
  "Repeats": "lamp river seven green window stone lamp river seven green window stone lamp river seven green window stone",
  "Code": "def area(width, height):\n    return width * height\n\nprint(area(3, 4))\n",
  "Who is she?": "When Mary gave the book to Anna, she thanked her, and Anna said that she would read it.",
};

let models = [], aliases = [], kinds = [];
let model = null; // what is looked into
const text = { content: "", id: null };
let tokens = [], heads = new Map(); // "layer.head" -> { layer, head, kind, image, cells, … }
let only = ""; // a kind
let chosen = null, isKept = false;
let running = new AbortController();

const key = (layer, head) => `${layer}.${head}`;
const kindOf = (name) => kinds.find(({ kind }) => kind === name);
function fail(error) { if (error.name !== "AbortError") $("failure").textContent = plain(error); }
function keep() {
  const values = new URLSearchParams();
  if (model) values.set("model", model.name === model.reference ? model.name : `${model.name}=${model.reference}`);
  if (chosen) values.set("head", key(chosen.layer, chosen.head));
  history.replaceState(null, "", `#${values}`);
  try { sessionStorage.setItem(KEPT, typeof text.content === "string" && text.content.length < 100_000 ? text.content : ""); } catch { /* full or forbidden */ }
}

// --- model ---

function drawChips() {
  const chips = models.map((entry) => {
    const chip = element("span", "chip"), pick = element("button", "pick", entry.name);
    pick.setAttribute("aria-pressed", entry.name === model?.name);
    pick.title = entry.reference;
    pick.append(element("span", "soft", `${entry.layers} layers, ${number(entry.parameters / 1e6, entry.parameters < 1e7 ? 1 : 0)} M`));
    pick.addEventListener("click", () => { model = entry; drawChips(); look(); });
    chip.append(pick);
    return chip;
  });
  const known = models.length ? [] : aliases.map(({ reference, about }) => {
    const button = element("button", "button", `Load ${reference}`);
    button.title = about;
    button.addEventListener("click", () => load(reference));
    return button;
  });
  $("chips").replaceChildren(...chips, ...known);
}
async function load(reference) {
  $("load").disabled = true;
  $("loading").className = "note soft";
  $("loading").textContent = `Loading ${reference} …`;
  try {
    for await (const event of events(await ask("api/attention/models", { reference }))) {
      if (event.progress) { $("loading").textContent = event.progress; continue; }
      model = event.model;
      models = [...models.filter(({ name }) => name !== model.name), model];
    }
    $("reference").value = $("loading").textContent = "";
    drawChips();
    look();
  } catch (error) {
    $("loading").className = "note failure";
    $("loading").textContent = plain(error);
  }
  $("load").disabled = false;
}
$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const reference = $("reference").value.trim();
  if (reference && !$("load").disabled) load(reference);
});

// --- text ---

function setText(content) {
  Object.assign(text, { content, id: null });
  keep();
  if (content.length <= AUTOMATIC) lookSoon(); else $("state").textContent = "Press Look to read it.";
}
$("typed").addEventListener("input", () => setText($("typed").value));
$("look").addEventListener("click", () => look());
$("open-file").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  try {
    $("typed").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    setText($("typed").value);
  } catch { $("failure").textContent = `${file.name}: this is no UTF-8 text`; }
  $("file").value = "";
});
for (const [name, content] of Object.entries(EXAMPLES)) {
  const button = element("button", "button", name);
  button.addEventListener("click", () => { $("typed").value = content; setText(content); });
  $("examples").append(button);
}
async function askAbout(path, body, signal) { // a text that the server dropped is sent again
  await sendText(text, signal);
  try { return await ask(path, { model: model.name, text: text.id, ...body }, { signal }); } catch (error) {
    if (error.code !== "text_gone") throw error;
    text.id = null;
    await sendText(text, signal);
    return ask(path, { model: model.name, text: text.id, ...body }, { signal });
  }
}

// --- reading ---

async function look() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  $("failure").textContent = "";
  $("found").setAttribute("aria-busy", "true");
  if (!model || !text.content) { show(false); return; }
  try {
    const answer = await askAbout("api/attention/look", {}, signal);
    $("state").textContent = "Reading …";
    for await (const event of events(answer)) {
      if (event.tokens) begun(event.tokens);
      else if (event.heads) addLayer(event);
      else done(event);
    }
  } catch (error) { fail(error); if (!signal.aborted) { $("state").textContent = ""; $("found").setAttribute("aria-busy", "false"); } }
}
const lookSoon = debounced(350, look);
function begun(found) {
  tokens = found;
  heads = new Map();
  isKept = false;
  $("grid").replaceChildren();
  $("state").textContent = `${number(tokens.length)} tokens, reading …`;
  show(true);
}
function show(isThere) {
  $("found").hidden = !isThere;
  $("nothing").hidden = isThere;
}
function addLayer({ layer, heads: found }) {
  const row = element("div", "layer");
  row.setAttribute("role", "row");
  row.append(element("span", "", String(layer)));
  for (const head of found) {
    heads.set(key(layer, head.head), { ...head, image: bytesOf(head.image) });
    row.append(headButton(heads.get(key(layer, head.head))));
  }
  $("grid").append(row);
  $("state").textContent = `${number(tokens.length)} tokens, layer ${layer + 1} of ${model.layers} read`;
  drawKinds();
  if (heads.size === found.length) chooseFirst();
}
function headButton(head) {
  const button = element("button", "head"), canvas = element("canvas");
  button.dataset.key = key(head.layer, head.head);
  button.setAttribute("role", "gridcell");
  button.setAttribute("aria-label", `layer ${head.layer}, head ${head.head}: ${kindOf(head.kind).label}`);
  button.setAttribute("aria-selected", "false");
  button.tabIndex = -1;
  drawCells(canvas, head.image, head.cells);
  button.append(canvas);
  button.classList.toggle("dim", Boolean(only) && head.kind !== only);
  button.addEventListener("click", () => choose(head));
  for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => point(head));
  return button;
}
function point(head) {
  const { label, meaning } = kindOf(head.kind);
  $("pointed").textContent = `Layer ${head.layer}, head ${head.head}, ${label}: ${meaning}`;
}
function done({ every, kept }) {
  isKept = kept;
  $("state").textContent = `${number(tokens.length)} tokens, ${number(heads.size)} heads` + (every > 1 ? `; small pictures and figures are of every ${every}th token` : "") + (kept ? "" : "; a head that you choose is read again, as so long a text is not kept");
  $("found").setAttribute("aria-busy", "false");
  drawKinds();
  if (!heads.size) return;
  const wanted = heads.get(new URLSearchParams(location.hash.slice(1)).get("head"));
  if (kept) choose(wanted ?? chosenAgain() ?? heads.values().next().value);
}
function chosenAgain() { return chosen && heads.get(key(chosen.layer, chosen.head)); }
function chooseFirst() { // a place for the keyboard to begin
  const first = $("grid").querySelector(".head");
  if (first) first.tabIndex = 0;
}
function drawKinds() {
  const counts = new Map();
  for (const { kind } of heads.values()) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  if (only && !counts.has(only)) only = "";
  $("kinds").replaceChildren(...kinds.filter(({ kind }) => counts.has(kind)).map(({ kind, label, meaning }) => {
    const button = element("button", "kind", label);
    button.append(element("b", "", String(counts.get(kind))));
    button.title = meaning;
    button.setAttribute("aria-pressed", kind === only);
    button.addEventListener("click", () => { only = only === kind ? "" : kind; drawKinds(); $("kinds").querySelector("[aria-pressed=true]")?.focus(); });
    return button;
  }));
  for (const button of $("grid").querySelectorAll(".head")) button.classList.toggle("dim", Boolean(only) && heads.get(button.dataset.key).kind !== only);
}
$("grid").addEventListener("keydown", (event) => {
  const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  const at = event.target.closest(".head");
  if (!move || !at) return;
  event.preventDefault();
  const rows = [...$("grid").children].map((row) => [...row.querySelectorAll(".head")]).filter((row) => row.length);
  const y = rows.findIndex((row) => row.includes(at)), x = rows[y].indexOf(at);
  const row = rows[Math.min(rows.length - 1, Math.max(0, y + move[0]))];
  const next = row[Math.min(row.length - 1, Math.max(0, x + move[1]))];
  at.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
onTheme(() => {
  for (const button of $("grid").querySelectorAll(".head")) {
    const { image, cells } = heads.get(button.dataset.key);
    drawCells(button.firstChild, image, cells);
  }
  drawMap();
});
$("export").addEventListener("click", async () => {
  if (!model || !text.content) { $("failure").textContent = "Load a model and give a text first."; return; }
  $("export").disabled = true;
  try { save(await (await askAbout("api/attention/export", {})).blob(), "attention.html"); } catch (error) { fail(error); }
  $("export").disabled = false;
});

async function begin() {
  try { ({ models, aliases, kinds } = await (await ask("api/attention")).json()); } catch (error) { fail(error); }
  const wanted = new URLSearchParams(location.hash.slice(1)).get("model");
  model = models.find(({ name, reference }) => wanted === name || wanted === `${name}=${reference}`) ?? models[0] ?? null;
  try { text.content = sessionStorage.getItem(KEPT) ?? ""; } catch { /* forbidden */ }
  $("typed").value = text.content;
  drawChips();
  if (text.content && text.content.length <= AUTOMATIC) look(); else show(false);
  document.body.dataset.ready = "1";
}
