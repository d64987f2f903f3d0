// The page: which tokenizers, which texts, and what the server says of them.

const LONG = 100_000; // characters: longer texts are shown by the viewer, not kept in a box
const SHORT = 900; // characters: the viewer is low
const SHOWN_WORDS = 12;
const KEY = "lmworks.studio.texts";
const share = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(100 * value), 1)} %`;

let loaded = []; // what the server holds: { name, reference, kind, vocab_size }
let aliases = []; // published ones that have a short name
let absent = []; // named in the address, not loaded: loading is for the user to say
let chosen = []; // names, the first is what the others are measured against
let settings = { window: 0, price: 0, special: false };
let texts = []; // { name, content | null, id, bytes, words, characters }
let current = 0;
let counts = new Map(), rows = new Map(), languageRows = [], fairness = [];
let running = new AbortController();

// --- what is kept: choices in the address, texts in this tab ---

function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const wanted = values.getAll("with").map((text) => {
    const [, name, reference] = /^([^=/:\\]+)=(.+)$/s.exec(text) ?? [null, text, text];
    return { name, reference };
  });
  settings = { window: Number(values.get("window")) || 0, price: Number(values.get("price")) || 0, special: values.get("special") === "1" };
  const held = (entry) => loaded.find(({ name, reference }) => name === entry.name && reference === entry.reference) ?? loaded.find(({ reference }) => reference === entry.reference);
  chosen = [...new Set(wanted.map(held).filter(Boolean).map(({ name }) => name))];
  absent = wanted.filter((entry) => !held(entry));
  if (!wanted.length) chosen = loaded.slice(0, 3).map(({ name }) => name);
}
function writeAddress() {
  const values = new URLSearchParams();
  const write = ({ name, reference }) => values.append("with", name === reference ? name : `${name}=${reference}`);
  chosen.map((name) => loaded.find((entry) => entry.name === name)).forEach(write);
  absent.forEach(write);
  if (settings.window) values.set("window", settings.window);
  if (settings.price) values.set("price", settings.price);
  if (settings.special) values.set("special", "1");
  history.replaceState(null, "", `#${values}`);
}
function keepTexts() {
  const kept = texts.map(({ name, content, id }) => ({ name, id, content: content !== null && content.length <= LONG ? content : null }));
  try { sessionStorage.setItem(KEY, JSON.stringify({ texts: kept, current })); } catch { /* full or forbidden */ }
}
async function recallTexts() {
  let kept = {};
  try { kept = JSON.parse(sessionStorage.getItem(KEY) ?? "{}") ?? {}; } catch { /* nonsense */ }
  for (const entry of Array.isArray(kept.texts) ? kept.texts : []) {
    const text = { name: String(entry?.name ?? ""), content: typeof entry?.content === "string" ? entry.content : null };
    try {
      if (text.content === null) Object.assign(text, await (await ask(`api/texts/${encodeURIComponent(entry?.id)}`)).json());
      texts.push(text);
    } catch { /* a long text that the server has dropped */ }
  }
  current = Math.min(Math.max(0, Number(kept.current) || 0), Math.max(0, texts.length - 1));
}

// --- asking, where a text may have to be sent again ---

async function askAbout(path, body, signal) {
  try {
    return await ask(path, body(), { signal });
  } catch (error) {
    if (error.code !== "text_gone") throw error;
    for (const text of texts) { if (text.content !== null) text.id = null; await sendText(text, signal); }
    return ask(path, body(), { signal });
  }
}
function full() { return texts.filter(({ id }) => id); }
function question(extra = {}) {
  const named = full().map(({ id, name }) => ({ id, name }));
  return { texts: named, tokenizers: chosen, allow_special: settings.special, ...extra };
}

const viewer = new TokenViewer(async (tokenizer, columns, first, count, signal) => {
  const text = texts[current];
  const body = () => ({ text: text.id, tokenizer, columns, first, count, allow_special: settings.special });
  return (await askAbout("api/tokenizers/view", body, signal)).json();
}, fail);

// --- the round that follows every change ---

function fail(error) {
  if (error.name === "AbortError") return;
  $("failure").textContent = plain(error);
}

async function refresh() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  busy(true);
  $("failure").textContent = "";
  writeAddress();
  keepTexts();
  try {
    for (const text of texts) await sendText(text, signal);
    drawText();
    showTokens();
    counts = new Map(); rows = new Map(); languageRows = fairness = [];
    drawFigures();
    if (!chosen.length || !full().length) { finish(); return; }
    for await (const { tokenizer, text, tokens } of events(await askAbout("api/tokenizers/count", question, signal))) {
      counts.set(`${tokenizer}\n${text}`, tokens);
      drawFigures();
    }
    await compare(signal);
    await drawChanges(signal);
    finish();
  } catch (error) { fail(error); if (!signal.aborted) busy(false); }
}
async function compare(signal) {
  for await (const event of events(await askAbout("api/tokenizers/compare", question, signal))) {
    if (event.passages !== undefined) {
      $("basis").textContent = event.passages ? `Brackets: 95 % intervals over ${number(event.passages)} passage${event.passages === 1 ? "" : "s"}, each encoded on its own.` : "";
      continue;
    }
    if (event.fairness) { fairness = event.fairness; continue; }
    rows.set(event.row.name, event.row);
    languageRows = [...languageRows, ...event.languages];
    drawFigures();
  }
  drawLanguages();
}
function busy(isBusy) { $("figures").setAttribute("aria-busy", isBusy); }
function finish() {
  busy(false);
  if (!full().length || !chosen.length) { $("basis").textContent = ""; $("changes").hidden = $("languages").hidden = true; }
}
const refreshSoon = debounced(150, refresh);

// --- tokenizers ---

function drawChips() {
  const chips = loaded.map((entry) => {
    const chip = element("span", "chip"), pick = element("button", "pick", entry.name);
    pick.setAttribute("aria-pressed", chosen.includes(entry.name));
    pick.title = entry.reference;
    pick.append(element("span", "soft", `${entry.kind}, ${number(entry.vocab_size)}`));
    pick.addEventListener("click", () => {
      chosen = chosen.includes(entry.name) ? chosen.filter((name) => name !== entry.name) : [...chosen, entry.name];
      pick.setAttribute("aria-pressed", chosen.includes(entry.name));
      choicesChanged();
    });
    chip.append(pick);
    return chip;
  });
  const known = loaded.length || absent.length ? [] : aliases.map(({ reference, about }) => {
    const button = element("button", "button", `Load ${reference}`);
    button.title = about;
    button.addEventListener("click", () => load(reference));
    return button;
  });
  $("chips").replaceChildren(...chips, ...absent.map(absentChip), ...known);
}
function absentChip(entry) {
  const chip = element("span", "chip absent"), pick = element("button", "pick", entry.name), away = element("button", "away", "×");
  pick.append(element("span", "soft", "not loaded: load it"));
  pick.addEventListener("click", () => load(entry.name === entry.reference ? entry.name : `${entry.name}=${entry.reference}`));
  away.setAttribute("aria-label", `Forget ${entry.name}`);
  away.addEventListener("click", () => { absent = absent.filter((other) => other !== entry); drawChips(); writeAddress(); });
  chip.append(pick, away);
  return chip;
}
function choicesChanged() {
  const options = () => chosen.map((name) => new Option(name));
  $("against").replaceChildren(...options());
  const traced = $("merging").value;
  $("merging").replaceChildren(...options());
  $("merging").value = chosen.includes(traced) ? traced : chosen[0] ?? "";
  drawMerges();
  const [from, to] = [$("before").value, $("after").value];
  $("before").replaceChildren(...options());
  $("after").replaceChildren(...options());
  $("before").value = chosen.includes(from) ? from : chosen[0] ?? "";
  $("after").value = chosen.includes(to) && to !== $("before").value ? to : chosen.find((name) => name !== $("before").value) ?? "";
  refresh();
}
async function load(reference) {
  $("load").disabled = true;
  $("loading").className = "note soft";
  $("loading").textContent = `Loading ${reference} …`;
  const started = performance.now();
  const clock = setInterval(() => { $("loading").dataset.s = Math.round((performance.now() - started) / 1000); }, 1000);
  try {
    for await (const event of events(await ask("api/tokenizers", { reference }))) {
      if (event.progress) $("loading").textContent = event.progress;
      else added(event.tokenizer);
    }
    $("reference").value = "";
  } catch (error) {
    $("loading").className = "note failure";
    $("loading").textContent = plain(error);
  }
  clearInterval(clock);
  delete $("loading").dataset.s;
  $("load").disabled = false;
}
function added(entry) {
  if (!loaded.some(({ name }) => name === entry.name)) loaded.push(entry);
  if (!chosen.includes(entry.name)) chosen.push(entry.name);
  absent = absent.filter(({ reference }) => reference !== entry.reference);
  $("loading").textContent = `${entry.name}: ${entry.kind}, ${number(entry.vocab_size)} tokens.`;
  drawChips();
  choicesChanged();
}
$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const reference = $("reference").value.trim();
  if (reference && !$("load").disabled) load(reference);
});

// --- texts ---

function drawText() {
  const text = texts[current];
  $("tabs").replaceChildren(...texts.map(({ name }, place) => {
    const tab = element("button", "tab", name || "Text");
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-selected", place === current);
    tab.tabIndex = place === current ? 0 : -1;
    tab.addEventListener("click", () => choose(place));
    return tab;
  }));
  const isLong = text !== undefined && (text.content === null || text.content instanceof Blob || text.content.length > LONG);
  $("typed").hidden = isLong;
  $("document").hidden = !isLong;
  if (isLong) {
    $("document-name").textContent = text.name;
    $("document-size").textContent = text.id ? `${size(text.bytes)} · ${number(text.characters)} characters · ${number(text.words)} words` : "sending …";
  } else if ($("typed").value !== (text?.content ?? "")) $("typed").value = text?.content ?? "";
  if (document.activeElement !== $("name")) $("name").value = text?.name ?? "";
  $("name").disabled = !text;
  $("remove-text").disabled = !text;
}
function choose(place) {
  current = place;
  keepTexts();
  drawText();
  showTokens();
}
function addText(name, content, known = {}) {
  const empty = texts.findIndex((text) => text.content === "");
  const text = { ...known, name: freeName(name), content };
  if (empty >= 0) texts[empty] = text; else texts.push(text);
  current = texts.indexOf(text);
  drawText();
}
function freeName(name) {
  const taken = new Set(texts.filter(({ content }) => content !== "").map((text) => text.name));
  if (!taken.has(name)) return name;
  for (let count = 2; ; count++) if (!taken.has(`${name} ${count}`)) return `${name} ${count}`;
}
async function addFiles(files) {
  $("text-note").textContent = "";
  for (const file of files) {
    const name = file.name.replace(/\.(txt|md|text)$/i, "");
    const text = { content: file.size > LONG ? file : null };
    try {
      if (text.content) await sendText(text);
      else text.content = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await file.arrayBuffer());
      addText(name, text.content, text);
    } catch (error) {
      const reason = error instanceof ServerError || !(error instanceof TypeError) ? plain(error) : "this is no UTF-8 text";
      $("text-note").textContent = `${file.name}: ${reason}`;
    }
  }
  refresh();
}
function edit(content) {
  const isFirst = !texts.length;
  texts[current] = { name: isFirst ? "Text 1" : texts[current].name, content };
  if (isFirst) drawText();
  $("viewer").classList.toggle("short", content.length <= SHORT); // now, not when tokens arrive
  busy(true);
  refreshSoon();
}
$("typed").addEventListener("input", () => {
  const content = $("typed").value;
  edit(content);
  if (content.length > LONG) drawText();
});
$("typed").addEventListener("paste", (event) => {
  const pasted = event.clipboardData.getData("text/plain");
  if (pasted.length <= LONG) return;
  event.preventDefault(); // a box with megabytes in it would freeze the page
  const { selectionStart, selectionEnd, value } = $("typed");
  edit(value.slice(0, selectionStart) + pasted + value.slice(selectionEnd));
  drawText();
  $("document").tabIndex = -1;
  $("document").focus();
});
$("name").addEventListener("input", () => {
  texts[current].name = $("name").value;
  $("tabs").children[current].textContent = $("name").value || "Text";
  refreshSoon();
});
$("new-text").addEventListener("click", () => { addText(`Text ${texts.length + 1}`, ""); refresh(); $("typed").focus(); });
$("open-files").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => { addFiles([...$("files").files]); $("files").value = ""; });
$("remove-text").addEventListener("click", () => {
  texts.splice(current, 1);
  current = Math.max(0, Math.min(current, texts.length - 1));
  refresh();
});
$("tabs").addEventListener("keydown", (event) => {
  const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!turn || !texts.length) return;
  choose((current + turn + texts.length) % texts.length);
  $("tabs").children[current].focus();
});
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  $("source").classList.add("over");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("source").classList.remove("over"); });
addEventListener("drop", (event) => {
  $("source").classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  addFiles([...event.dataTransfer.files]);
});
for (const [name, entries] of Object.entries(EXAMPLES)) {
  const button = element("button", "button", name);
  button.addEventListener("click", () => {
    const first = texts.filter(({ content }) => content !== "").length;
    for (const [label, content] of entries) addText(label, content);
    current = entries.length > 1 ? first : current;
    refresh();
  });
  $("examples").append(button);
}

// --- tokens ---

function showTokens() {
  const text = texts[current], ready = Boolean(text?.id) && chosen.length > 0;
  $("viewer").classList.toggle("short", !((text?.characters ?? text?.content?.length) > SHORT));
  $("nothing").hidden = ready;
  $("scroller").hidden = !ready;
  if (ready) { viewer.show(chosen, `${text.id} ${settings.special}`); return; }
  viewer.show(chosen, "");
  $("nothing-title").textContent = loaded.length ? "No text yet" : "No tokenizer yet";
  $("nothing-text").textContent = loaded.length
    ? chosen.length ? "Paste something above, drop files anywhere, or take an example: each colour will be one token." : "Choose one or more tokenizers above."
    : "Name one above: a folder with a tokenizer.json, a .tiktoken or .model file, or a published one such as smollm2-135m.";
}

// --- settings ---

for (const name of ["window", "price"]) {
  $(name).addEventListener("input", () => {
    const value = Number($(name).value);
    settings[name] = Number.isFinite(value) && value > 0 ? value : 0;
    writeAddress();
    drawFigures();
    if (name === "price") drawChanges(running.signal).catch(fail);
  });
}
$("special").addEventListener("change", () => { settings.special = $("special").checked; refresh(); });
$("against").addEventListener("change", () => {
  const first = $("against").value;
  chosen = [first, ...chosen.filter((name) => name !== first)];
  choicesChanged();
});
for (const name of ["before", "after"]) $(name).addEventListener("change", () => drawChanges(running.signal).catch(fail));
$("export").addEventListener("click", async () => {
  if (!chosen.length || !full().length) { $("failure").textContent = "Choose tokenizers and a text first."; return; }
  $("export").disabled = true;
  try {
    const body = () => question({ context: settings.window ? Math.round(settings.window) : null, price: settings.price || null });
    save(await (await askAbout("api/tokenizers/export", body)).blob(), "tokenizers.html");
  } catch (error) { fail(error); }
  $("export").disabled = false;
});

async function begin() {
  try { ({ tokenizers: loaded, aliases } = await (await ask("api/tokenizers")).json()); } catch (error) { fail(error); }
  readAddress();
  for (const name of ["window", "price"]) $(name).value = settings[name] || "";
  $("special").checked = settings.special;
  await recallTexts();
  drawChips();
  drawText();
  choicesChanged();
  document.body.dataset.ready = "1";
}
addEventListener("hashchange", () => location.reload());
