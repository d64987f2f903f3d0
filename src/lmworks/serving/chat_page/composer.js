// What is about to be sent: text, and files that were dropped, pasted or chosen.

let pending = []; // { name, id?, failure?, characters? }

function ready() {
  const isReading = pending.some(({ id, failure }) => !id && !failure);
  $("act").disabled = !writing() && (!$("input").value.trim() || isReading || !models.length);
}
async function sendInput() {
  const content = $("input").value.trim();
  if (!content || writing() || $("act").disabled) return;
  const attachments = pending.filter(({ id }) => id).map(({ id }) => id), held = pending;
  $("input").value = "";
  pending = [];
  drawPending();
  keepDraft();
  if (!await send({ content, attachments })) {
    $("input").value ||= content;
    pending = held;
    drawPending();
    keepDraft();
  }
  ready();
}
function chip(name, label) {
  const node = element(label ? "button" : "span", "chip");
  if (label) { node.type = "button"; node.title = label; }
  node.append(icon("file"), element("span", "name", name));
  return node;
}
function attachedChip(attachment) {
  const node = chip(attachment.name, `Show what was read of ${attachment.name}`);
  node.append(element("span", "soft", `${number(attachment.characters)} characters`));
  node.addEventListener("click", async () => {
    try {
      const { name, text } = await get(`api/attachments/${attachment.id}`);
      openDialog($("attachment"), name, element("pre", "", text));
    } catch (error) { fail(error); }
  });
  return node;
}
function drawPending() {
  $("chips").replaceChildren(...pending.map((file) => {
    const node = file.id ? attachedChip(file) : chip(file.name);
    if (file.failure) { node.classList.add("bad"); node.querySelector(".name").textContent = file.failure; }
    else if (!file.id) node.append(element("span", "soft", "reading…"));
    const row = element("span", "chip-row"), away = iconButton("close", `Remove ${file.name}`, (event) => {
      event.stopPropagation();
      pending = pending.filter((each) => each !== file);
      drawPending();
      $("input").focus();
    });
    row.append(node, away);
    return row;
  }));
  ready();
}
async function attachFiles(files) {
  for (const file of files) {
    const entry = { name: file.name || "pasted.txt" };
    pending.push(entry);
    drawPending();
    try {
      Object.assign(entry, await get(`api/attachments?name=${encodeURIComponent(entry.name)}`, file));
    } catch (error) { entry.failure = plain(error); }
    drawPending();
  }
  $("input").focus();
}
$("attach").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => { attachFiles([...$("files").files]); $("files").value = ""; });
$("input").addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); attachFiles(files); return; }
  const text = event.clipboardData.getData("text/plain");
  if (text.length > 8000) { // a document, not a question
    event.preventDefault();
    attachFiles([new File([text], "pasted.txt", { type: "text/plain" })]);
  }
});
let dragDepth = 0;
const hasFiles = (event) => [...event.dataTransfer?.types ?? []].includes("Files");
addEventListener("dragenter", (event) => { if (hasFiles(event)) { dragDepth += 1; $("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (hasFiles(event)) { dragDepth -= 1; if (dragDepth <= 0) $("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragDepth = 0;
  $("drop").hidden = true;
  attachFiles([...event.dataTransfer.files]);
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing()) stop(); else sendInput();
  $("input").focus();
});
const keepDraft = debounced(200, () => keep("chat.unsent", $("input").value));
$("input").addEventListener("input", () => { ready(); keepDraft(); });
$("input").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); sendInput(); }
  if (event.key === "ArrowUp" && !$("input").value) { // the last question, to be asked in other words
    const question = path().findLast(({ role }) => role === "user");
    if (question && !writing()) { event.preventDefault(); edit(question.id); }
  }
});
