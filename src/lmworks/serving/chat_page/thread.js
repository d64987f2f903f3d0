// The conversation in the middle: its active branch, drawn message by message.

let current = null; // the open conversation, with `messages` of all branches; null: a new one
let editing = null; // the id of the message that is being edited
const drawn = new Map(); // message id -> its node, kept while nothing about it changes

function childrenOf(parent) { return current.messages.filter(({ parent_id }) => parent_id === parent); }
function path() {
  const found = [];
  if (!current) return found;
  const byId = new Map(current.messages.map((message) => [message.id, message]));
  for (let id = current.active_root; byId.has(id); id = byId.get(id).active_child) found.push(byId.get(id));
  return found;
}
function lastAnswer() { return path().findLast(({ role }) => role === "assistant"); }
function writing() { return path().find(({ state }) => state === "writing"); }

async function open(id, messageId) {
  editing = null;
  try {
    current = messageId
      ? await get(`api/conversations/${id}/messages/${messageId}/choose`, {})
      : await get(`api/conversations/${id}`);
    if (current.deleted) current = null;
  } catch (error) {
    if (error.status !== 404) throw error;
    current = null;
  }
  if (location.hash !== `#${current?.id ?? ""}`) history.pushState(null, "", current ? `#${current.id}` : location.pathname);
  drawn.clear();
  drawAll();
  const node = messageId && drawn.get(messageId);
  if (node) node.scrollIntoView({ block: "center" }); else toEnd();
  followAll();
}
async function refresh() { // the same conversation, as the server has it now
  if (!current) return;
  const id = current.id, fresh = await get(`api/conversations/${id}`);
  if (current?.id !== id) return;
  for (const message of fresh.messages) { // what is on its way here is further than what is stored
    const known = current.messages.find((each) => each.id === message.id);
    if (known && message.state === "writing" && following.has(message.id)) message.content = known.content;
  }
  current = fresh;
  drawAll();
  followAll();
}
function startNew() {
  current = null;
  editing = null;
  drawn.clear();
  if (location.hash) history.pushState(null, "", location.pathname);
  drawAll();
  say("New chat");
  $("input").focus();
}
function drawTitle() {
  const title = current?.title ?? "";
  $("title").textContent = title;
  document.title = title ? `${title} · lmworks` : "lmworks chat";
}
function drawAll() {
  drawTitle();
  drawSettings();
  const messages = path(), isFollowing = atEnd();
  $("log").replaceChildren(...messages.map(nodeOf));
  $("empty").hidden = messages.length > 0;
  if (isFollowing) toEnd();
  busy();
  drawList();
  if (panelShown() === "memory") drawMemory();
}
function nodeOf(message) {
  const around = childrenOf(message.parent_id).map(({ id }) => id);
  const version = JSON.stringify([message.content, message.state, message.info, around, editing === message.id, message.status, message.feedback, asking === message.id]);
  let node = drawn.get(message.id);
  if (node?.version === version) return node;
  if (!node) {
    node = element("li", `message ${message.role}`);
    node.dataset.id = message.id;
    drawn.set(message.id, node);
  }
  node.version = version;
  node.classList.toggle("editing", editing === message.id);
  if (editing === message.id) node.replaceChildren(editor(message));
  else if (message.role === "user") drawQuestion(node, message);
  else drawAnswer(node, message);
  return node;
}
function drawQuestion(node, message) {
  const parts = [];
  if (message.attachments.length) {
    const chips = element("div", "chips");
    chips.append(...message.attachments.map(attachedChip));
    parts.push(chips);
  }
  parts.push(element("div", "bubble", message.content), foot(message));
  node.replaceChildren(...parts);
}
function drawAnswer(node, message) {
  let body = node.querySelector(":scope > .body");
  if (!body) { body = element("div", "body"); node.replaceChildren(body); }
  node.querySelectorAll(".caret").forEach((caret) => caret.remove());
  while (body.nextSibling) body.nextSibling.remove();
  renderMarkdown(body, message.content);
  if (message.info?.error) node.append(element("p", "failure", message.info.error));
  if (message.state === "writing") {
    if (!message.content) body.after(element("p", "waiting", waitingFor(message)));
    innermost(body).append(element("span", "caret"));
  } else node.append(foot(message), ...(asking === message.id ? [wrong(message)] : []));
}
function waitingFor(message) {
  if (message.status === "loading") return `Loading ${message.model}…`;
  if (message.status === "reading" && message.prompt_tokens > 200) return `Reading ${number(message.prompt_tokens)} tokens…`;
  return "";
}
function innermost(node) { // where the next token will stand
  while (/^(UL|OL|LI|PRE|CODE|P|BLOCKQUOTE|H\d|DIV)$/.test(node.lastElementChild?.tagName)
    && !node.lastElementChild.classList.contains("table")
    && (node.lastElementChild === node.lastChild || !node.lastChild.data?.trim())) node = node.lastElementChild;
  return node;
}
function figures(message) {
  const { completion_tokens: tokens, tokens_per_s: rate, finish_reason: end } = message.info ?? {};
  const parts = [];
  if (tokens) parts.push(`${number(tokens)} token${tokens === 1 ? "" : "s"}`);
  if (Number(rate)) parts.push(speed(Number(rate)));
  if (end === "length") parts.push("cut at the longest answer");
  if (message.state === "stopped") parts.push("stopped");
  if (message.state === "cut") parts.push("cut: the server ended");
  if (message.info?.edited) parts.push("edited by you");
  if (new Set(path().map(({ model }) => model).filter(Boolean)).size > 1) parts.unshift(message.model);
  return parts.join(" · ");
}
function foot(message) {
  const node = element("div", "foot");
  const copy = iconButton("copy", message.role === "user" ? "Copy the message" : "Copy the answer", () => copyText(message.content, copy));
  node.append(copy, iconButton("edit", "Edit", () => edit(message.id)));
  if (message.role === "assistant") node.append(iconButton("again", "Answer again", () => regenerate(message)), thumbs(message));
  const around = childrenOf(message.parent_id);
  if (around.length > 1) node.append(switcher(message, around));
  if (message.role === "assistant") {
    const { recalled, left, noted } = memoryOf(message);
    if (recalled || left || noted) {
      const why = [left && `${left} left out`, recalled && `${recalled} recalled`, noted && "notes"].filter(Boolean).join(", ");
      const button = element("button", "memory", why);
      button.type = "button";
      button.title = "What the model was sent";
      button.addEventListener("click", () => showMemoryOf(message));
      node.append(button);
    }
    node.append(element("span", "figures", figures(message)));
  }
  return node;
}
function switcher(message, around) {
  const node = element("span", "branch"), at = around.findIndex(({ id }) => id === message.id);
  const go = (to) => choose(around[to].id).catch(fail);
  const left = iconButton("left", "Version before", () => go(at - 1)), right = iconButton("right", "Version after", () => go(at + 1));
  left.disabled = at === 0;
  right.disabled = at === around.length - 1;
  node.append(left, element("span", "", `${at + 1}/${around.length}`), right);
  return node;
}
async function choose(messageId) {
  current = await get(`api/conversations/${current.id}/messages/${messageId}/choose`, {});
  drawAll();
  followAll();
  tell(current.id);
}

// --- editing ---

function edit(messageId) {
  editing = messageId;
  drawAll();
  const area = drawn.get(messageId)?.querySelector("textarea");
  area?.focus();
  area?.setSelectionRange(area.value.length, area.value.length);
}
function editor(message) {
  const box = element("div", "edit"), area = element("textarea"), row = element("div");
  area.value = message.content;
  area.setAttribute("aria-label", "Edit the message");
  const cancel = element("button", "button", "Cancel"), save = element("button", "button main", message.role === "user" ? "Send" : "Save");
  cancel.type = save.type = "button";
  const end = () => { editing = null; drawAll(); $("input").focus(); };
  const keepIt = () => {
    const text = area.value.trim();
    if (!text || text === message.content.trim()) return end();
    editing = null;
    if (message.role === "user") send({ content: text, edited: message.id });
    else saveEdit(message, text).catch(fail);
  };
  cancel.addEventListener("click", end);
  save.addEventListener("click", keepIt);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); end(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (message.role === "user" && !event.shiftKey)) && !event.isComposing) {
      event.preventDefault();
      keepIt();
    }
  });
  row.append(cancel, save);
  box.append(area, row);
  return box;
}
async function saveEdit(message, content) {
  await get(`api/conversations/${current.id}/messages/${message.id}/edit`, { content });
  await refresh();
  tell(current.id);
}

// --- the place on screen ---

function atEnd() {
  const view = $("scroll");
  return view.scrollHeight - view.scrollTop - view.clientHeight < 80;
}
function toEnd() { $("scroll").scrollTop = $("scroll").scrollHeight; }
$("scroll").addEventListener("scroll", () => { $("to-end").hidden = atEnd(); }, { passive: true });
$("to-end").addEventListener("click", toEnd);
