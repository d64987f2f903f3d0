// Menus, dialogs and the panel: what opens, closes again by Escape and by a click beside it.

let openMenu = null; // { menu, button }

function showMenu(menu, button) {
  hideMenu();
  openMenu = { menu, button };
  menu.hidden = false;
  button.setAttribute("aria-expanded", "true");
  (menu.querySelector("[aria-selected='true']") ?? menu.querySelector("button"))?.focus();
}
function hideMenu(refocus = false) {
  if (!openMenu) return;
  const { menu, button } = openMenu;
  openMenu = null;
  menu.hidden = true;
  button.setAttribute("aria-expanded", "false");
  if (menu.classList.contains("floating")) menu.remove();
  if (refocus) button.focus();
}
function toggleMenu(menu, button) {
  if (openMenu?.menu === menu) hideMenu(true); else showMenu(menu, button);
}
function menuItem(name, label, work, className = "") {
  const button = element("button", className);
  button.type = "button";
  button.setAttribute("role", "menuitem");
  button.append(icon(name), element("span", "", label));
  button.addEventListener("click", () => { hideMenu(); work(); });
  return button;
}
function floatingMenu(button, items) { // beside a button in a list that scrolls
  const menu = element("div", "menu floating");
  menu.setAttribute("role", "menu");
  menu.append(...items);
  document.body.append(menu);
  const box = button.getBoundingClientRect();
  showMenu(menu, button);
  menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`;
  menu.style.top = `${box.bottom + menu.offsetHeight + 8 > innerHeight ? box.top - menu.offsetHeight - 4 : box.bottom + 4}px`;
}
addEventListener("pointerdown", (event) => {
  if (openMenu && !event.target.closest(".menu") && !openMenu.button.contains(event.target)) hideMenu();
});
addEventListener("keydown", (event) => {
  if (!openMenu) return;
  const items = [...openMenu.menu.querySelectorAll("button")];
  const at = items.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1 + items.length, Home: 0, End: items.length - 1 }[event.key];
  if (to !== undefined) { event.preventDefault(); items[to % items.length]?.focus(); }
  if (event.key === "Tab") hideMenu();
});

// --- dialogs ---

function openDialog(dialog, title, ...body) {
  const top = element("div", "dialog-top"), heading = element("h2", "", title), inner = element("div", "dialog-body");
  heading.id = `${dialog.id}-title`;
  top.append(heading, iconButton("close", "Close", () => dialog.close()));
  inner.append(...body);
  dialog.replaceChildren(top, inner);
  if (!dialog.open) dialog.showModal();
}
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("pointerdown", (event) => { if (event.target === dialog) dialog.close(); });
}

// --- the side and the panel ---

const isNarrow = () => matchMedia("(max-width: 56rem)").matches;
const root = document.documentElement;
function showSide(isOpen) {
  if (isOpen) delete root.dataset.side; else root.dataset.side = "closed";
  $("veil").hidden = !(isOpen && isNarrow());
  if (!isNarrow()) { try { localStorage.setItem("lmworks.side", isOpen ? "open" : "closed"); } catch { /* for now, then */ } }
}
function sideIsOpen() { return root.dataset.side !== "closed"; }
if (isNarrow()) root.dataset.side = "closed";
$("show-side").addEventListener("click", () => { showSide(true); $("query").focus(); });
$("hide-side").addEventListener("click", () => { showSide(false); $("show-side").focus(); });
$("veil").addEventListener("click", () => { showSide(false); showPanel(null); });

function panelShown() { return $("panel").hidden ? null : $("settings").hidden ? "memory" : "settings"; }
function showPanel(name) { // "settings", "memory" or null
  $("panel").hidden = !name;
  for (const each of ["settings", "memory"]) {
    $(each).hidden = each !== name;
    $(`tab-${each}`).setAttribute("aria-selected", each === name);
    $(`open-${each}`).setAttribute("aria-expanded", each === name);
  }
  $("veil").hidden = !(name && matchMedia("(max-width: 72rem)").matches) && !(sideIsOpen() && isNarrow());
  if (name === "memory") drawMemory();
}
function closePanel() {
  const name = panelShown();
  showPanel(null);
  $(`open-${name}`)?.focus();
}
for (const name of ["settings", "memory"]) {
  $(`open-${name}`).addEventListener("click", () => {
    if (panelShown() === name) return closePanel();
    showPanel(name);
    $(name === "settings" ? "system" : "tab-memory").focus();
  });
  $(`tab-${name}`).addEventListener("click", () => { showPanel(name); $(`tab-${name}`).focus(); });
}
$("close-panel").addEventListener("click", closePanel);
