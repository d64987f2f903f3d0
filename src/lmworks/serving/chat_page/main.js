// Keys, the menu, and the start.

const KEYS = [
  ["Enter", "send; Shift+Enter starts a new line"], ["Esc", "stop the answer, close what is open"],
  ["↑", "in an empty message: edit the last question"], ["Ctrl+K", "search conversations"],
  ["Ctrl+Shift+O", "new chat"], ["Ctrl+B", "show or hide the list"], ["Alt+R", "answer again"],
  ["Alt+← Alt+→", "version before, version after"], ["Ctrl+M", "what the model is sent"], ["Ctrl+,", "settings"], ["?", "these keys"],
];
function showKeys() {
  const list = element("dl", "keys");
  for (const [keys, what] of KEYS) {
    const term = element("dt");
    keys.split(" ").forEach((key, index) => {
      if (index) term.append(" ");
      term.append(...key.split("+").flatMap((part, at) => at ? ["+", element("kbd", "", part)] : [element("kbd", "", part)]));
    });
    list.append(term, element("dd", "", what));
  }
  openDialog($("keys"), "Keys", list);
}
function searchAll() { showSide(true); $("query").focus(); $("query").select(); }
function step(by) { // to a neighbouring version of the newest message that has any
  const message = path().findLast((each) => childrenOf(each.parent_id).length > 1);
  if (!message || writing()) return;
  const around = childrenOf(message.parent_id), to = around[around.findIndex(({ id }) => id === message.id) + by];
  if (to) choose(to.id).catch(fail);
}
addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  const main = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  const does = (work) => { event.preventDefault(); work(); };
  if (event.key === "Escape") {
    if (document.querySelector("dialog[open]")) return; // the dialog's own
    if (openMenu) hideMenu(true);
    else if (panelShown()) closePanel();
    else if (sideIsOpen() && isNarrow()) { showSide(false); $("show-side").focus(); }
    else stop();
  } else if (main && !event.shiftKey && key === "k") does(searchAll);
  else if (main && event.shiftKey && key === "o") does(startNew);
  else if (main && !event.shiftKey && key === "b") does(() => showSide(!sideIsOpen()));
  else if (main && key === "m") does(() => panelShown() === "memory" ? closePanel() : showPanel("memory"));
  else if (main && key === ",") does(() => panelShown() === "settings" ? closePanel() : showPanel("settings"));
  else if (event.altKey && key === "r") does(() => { const answer = lastAnswer(); if (answer) regenerate(answer); });
  else if (event.altKey && key === "arrowleft") does(() => step(-1));
  else if (event.altKey && key === "arrowright") does(() => step(1));
  else if (key === "?" && !main && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) does(showKeys);
});
$("open-keys").addEventListener("click", showKeys);
$("open-more").addEventListener("click", () => {
  const items = [];
  if (current) {
    items.push(menuItem("edit", "Rename", () => { showSide(true); renaming = current.id; drawList(); }));
    for (const [format, name] of [["markdown", "Markdown"], ["html", "HTML"], ["json", "JSON"]]) items.push(menuItem("import", `Export as ${name}`, () => download(current.id, format)));
    items.push(element("hr"), menuItem("bin", "Delete", () => remove(current), "danger"), element("hr"));
  }
  items.push(menuItem("plus", "New chat", startNew), menuItem("keys", "Keys", showKeys));
  $("more").replaceChildren(...items);
  toggleMenu($("more"), $("open-more"));
});
const place = () => decodeURIComponent(location.hash.slice(1));
addEventListener("popstate", () => {
  if (place() === (current?.id ?? "")) return;
  if (place()) open(place()).catch(fail); else startNew();
});
addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") return;
  loadList().catch(() => {});
  refresh().catch(() => {});
});

$("input").value = String(recall("chat.unsent", "") ?? "");
try {
  await Promise.all([loadModels(), loadList(), loadPrompts()]);
  if (place()) await open(place());
} catch (error) { $("intro").textContent = plain(error); }
drawAll();
toEnd();
document.body.dataset.ready = "";
if (!isNarrow()) $("input").focus();
