// The prompt library: system prompts and templates, used, written and changed.

let prompts = [];

async function loadPrompts() {
  prompts = (await get("api/prompts")).prompts;
  const starters = prompts.filter(({ kind }) => kind === "template").slice(0, 4);
  $("starters").replaceChildren(...starters.map((prompt) => {
    const button = element("button", "", prompt.name);
    button.type = "button";
    button.addEventListener("click", () => use(prompt));
    return button;
  }));
}
async function showLibrary() {
  try { await loadPrompts(); } catch (error) { fail(error); return; }
  const rows = prompts.map(promptRow), add = element("div", "row"), button = element("button", "button main", "New prompt");
  button.type = "button";
  button.addEventListener("click", () => write({ name: "", kind: "template", text: $("input").value, id: "" }));
  add.append(button);
  openDialog($("library"), "Prompt library", ...rows, add);
}
function promptRow(prompt) {
  const row = element("div", "prompt"), button = element("button", "use"), head = element("div");
  button.type = "button";
  head.append(element("b", "", prompt.name), element("span", "kind", prompt.kind === "system" ? "system prompt" : "template"));
  button.append(head, element("p", "", prompt.text));
  button.addEventListener("click", () => { $("library").close(); use(prompt); });
  row.append(button, iconButton("edit", prompt.built_in ? `Copy ${prompt.name}` : `Change ${prompt.name}`, () => write({ ...prompt, id: prompt.built_in ? "" : prompt.id })));
  if (!prompt.built_in) {
    row.append(iconButton("bin", `Delete ${prompt.name}`, async () => {
      try { await get(`api/prompts/${prompt.id}`, undefined, "DELETE"); await showLibrary(); } catch (error) { fail(error); }
    }));
  }
  return row;
}
function labelled(text, field) {
  const label = element("label", "", text);
  label.append(field);
  return label;
}
function area(value, rows = 4) {
  const field = element("textarea", "field");
  field.rows = rows;
  field.value = value;
  return field;
}
function write(prompt) {
  const name = element("input", "field"), kind = element("select", "field"), text = area(prompt.text, 7), failure = element("p", "failure");
  name.value = prompt.name;
  kind.append(new Option("Template: goes into the message", "template"), new Option("System prompt: how the model behaves", "system"));
  kind.value = prompt.kind;
  const row = element("div", "row"), save = element("button", "button main", "Save");
  save.type = "button";
  save.addEventListener("click", async () => {
    try {
      await get("api/prompts", { id: prompt.id, name: name.value, kind: kind.value, text: text.value });
      await showLibrary();
    } catch (error) { failure.textContent = plain(error); }
  });
  row.append(save);
  openDialog($("library"), prompt.id ? "Change the prompt" : "New prompt", labelled("Name", name), labelled("Kind", kind),
    labelled("Text", text), element("p", "soft", "{{name}} is a field to fill in; {{name|value}} has a value to begin with."), failure, row);
  name.focus();
}
function use(prompt) {
  const fields = Object.entries(prompt.fields);
  if (!fields.length) { put(prompt, prompt.text); return; }
  const selected = $("input").value.trim(), inputs = fields.map(([name, value]) => {
    const isLong = !value && name === fields.at(-1)[0];
    const field = isLong ? area(selected) : element("input", "field");
    if (value) field.value = value;
    return [name, field];
  });
  const row = element("div", "row"), button = element("button", "button main", "Use"), failure = element("p", "failure");
  button.type = "button";
  const done = () => {
    const values = Object.fromEntries(inputs.map(([name, field]) => [name, field.value]));
    const missing = fields.find(([name, value]) => !values[name].trim() && !value);
    if (missing) { failure.textContent = `${missing[0]} is missing`; return; }
    $("fill").close();
    put(prompt, prompt.text.replace(/\{\{\s*([^{}|\n]{1,40}?)\s*(?:\|([^{}]*))?\}\}/g, (_, name) => values[name] || prompt.fields[name]));
  };
  button.addEventListener("click", done);
  row.append(button);
  openDialog($("fill"), prompt.name, ...inputs.map(([name, field]) => labelled(name, field)), failure, row);
  for (const [, field] of inputs) field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (field.tagName === "INPUT" || event.ctrlKey || event.metaKey)) { event.preventDefault(); done(); }
  });
  (inputs.find(([, field]) => !field.value) ?? inputs[0])[1].focus();
}
function put(prompt, text) {
  if (prompt.kind === "system") {
    change({ system: text });
    toast(`System prompt: ${prompt.name}`);
  } else { $("input").value = text; ready(); keepDraft(); }
  $("input").focus();
}
$("open-library").addEventListener("click", () => { if (isNarrow()) showSide(false); showLibrary(); });
$("templates").addEventListener("click", showLibrary);
