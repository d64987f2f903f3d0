// How a conversation is held: its model, its sampling, its memory. A new one begins as the last.

const DEFAULTS = { model: "", system: "", temperature: 0.7, top_p: 1, min_p: 0, max_tokens: 512, seed: null,
  memory: { summary: false, recall: "words", context_tokens: null } };
let draft = cleaned(recall("chat.settings", {})); // for new conversations
let models = []; // { id, loaded, context_tokens, memory_bytes, tokens_per_s }
let byMeaning = false;

function cleaned(values) { // what this browser kept may be anything
  const number = (value, low, high, fallback) => Number.isFinite(value) && value >= low && value <= high ? value : fallback;
  const { memory } = DEFAULTS, given = values?.memory ?? {};
  return {
    ...DEFAULTS,
    model: typeof values?.model === "string" ? values.model : "",
    temperature: number(values?.temperature, 0, 2, DEFAULTS.temperature),
    top_p: number(values?.top_p, 0.01, 1, 1), min_p: number(values?.min_p, 0, 1, 0),
    max_tokens: Number.isInteger(values?.max_tokens) ? number(values.max_tokens, 1, 100000, 512) : 512,
    memory: { ...memory, summary: given.summary === true, recall: ["off", "words", "meaning"].includes(given.recall) ? given.recall : "words" },
  };
}
function settings() { return current?.settings ?? draft; }
function modelName() {
  const name = settings().model;
  return models.some(({ id }) => id === name) ? name : models[0]?.id ?? "";
}
function modelEntry() { return models.find(({ id }) => id === modelName()); }

async function change(values) {
  const before = settings(), after = { ...before, ...values, memory: { ...before.memory, ...values.memory } };
  draft = { ...after, system: current ? draft.system : after.system, seed: current ? draft.seed : after.seed };
  keep("chat.settings", draft);
  $("settings-failure").hidden = true;
  if (current) {
    try { current.settings = (await get(`api/conversations/${current.id}`, { settings: values }, "PATCH")).settings; }
    catch (error) { $("settings-failure").textContent = plain(error); $("settings-failure").hidden = false; }
  }
  drawSettings();
}
function drawSettings() {
  const { system, temperature, top_p, min_p, max_tokens, seed, memory } = settings();
  const set = (id, value) => { if (document.activeElement !== $(id)) $(id).value = value ?? ""; };
  set("system", system);
  set("temperature", temperature);
  $("temperature-shown").textContent = Number(temperature).toFixed(1);
  set("top-p", top_p); set("min-p", min_p); set("max-tokens", max_tokens); set("seed", seed);
  set("recall", memory.recall); set("context", memory.context_tokens);
  $("summary").checked = memory.summary;
  $("recall").options[2].disabled = !byMeaning;
  $("recall").options[2].textContent = byMeaning ? "what is near in meaning" : "near in meaning (start with --encoder)";
  drawModel();
}
function figuresOf({ loaded, remote, tokens_per_s: rate, memory_bytes: bytes, context_tokens: context }) {
  const parts = [];
  if (rate) parts.push(speed(rate));
  if (bytes) parts.push(size(bytes));
  if (context) parts.push(`context ${number(context)}`);
  if (!loaded) parts.push("loads when asked");
  if (remote) parts.push("remote");
  return parts.join(" · ");
}
function drawModel() {
  const entry = modelEntry();
  $("model-name").textContent = modelName() || "no model";
  $("model-speed").textContent = entry ? figuresOf({ ...entry, context_tokens: null }) : "";
  $("intro").textContent = entry ? `${entry.id} answers.` : $("intro").textContent;
}
function drawModels() {
  $("models").replaceChildren(...models.map((entry) => {
    const node = element("button", "model");
    node.type = "button";
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", entry.id === modelName());
    node.append(element("b", "", entry.id), element("small", "", figuresOf(entry)));
    node.addEventListener("click", () => { hideMenu(true); change({ model: entry.id }); });
    return node;
  }));
}
async function loadModels() {
  const found = await get("api/models");
  models = found.models;
  byMeaning = found.recall_by_meaning;
  drawSettings();
  drawModels();
  ready();
}
$("model").addEventListener("click", () => { drawModels(); toggleMenu($("models"), $("model")); });

function onNumber(id, name, { low = -Infinity, high = Infinity, whole = false, empty } = {}) {
  $(id).addEventListener("change", () => {
    const text = $(id).value.trim(), value = whole ? Math.round(Number(text)) : Number(text);
    if (!text && empty !== undefined) change(name(empty));
    else if (text && Number.isFinite(value)) change(name(Math.min(high, Math.max(low, value))));
    $(id).blur();
    drawSettings();
  });
}
$("temperature").addEventListener("input", () => { $("temperature-shown").textContent = Number($("temperature").value).toFixed(1); });
$("temperature").addEventListener("change", () => change({ temperature: Number($("temperature").value) }));
onNumber("top-p", (top_p) => ({ top_p }), { low: 0.01, high: 1 });
onNumber("min-p", (min_p) => ({ min_p }), { low: 0, high: 1 });
onNumber("max-tokens", (max_tokens) => ({ max_tokens }), { low: 1, high: 100000, whole: true });
onNumber("seed", (seed) => ({ seed }), { low: 0, high: 2 ** 53 - 1, whole: true, empty: null });
onNumber("context", (context_tokens) => ({ memory: { context_tokens } }), { low: 64, whole: true, empty: null });
$("system").addEventListener("input", debounced(400, () => change({ system: $("system").value })));
$("system").addEventListener("blur", () => { if ($("system").value !== settings().system) change({ system: $("system").value }); });
$("recall").addEventListener("change", () => change({ memory: { recall: $("recall").value } }));
$("summary").addEventListener("change", () => change({ memory: { summary: $("summary").checked } }));
