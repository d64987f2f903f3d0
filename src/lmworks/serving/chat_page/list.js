// The conversations at the side: by day, searched, renamed, deleted and brought back.

let conversations = []; // { id, title, changed_s, running, excerpt? }
let query = "";
let renaming = null; // the id of the one whose title is being written
let listRequest = 0; // of the newest one: an answer that comes after it was asked for is old

async function loadList() {
  const wanted = query, number = ++listRequest;
  const path = wanted ? `api/conversations?query=${encodeURIComponent(wanted)}` : "api/conversations";
  const found = (await get(path)).conversations;
  if (number !== listRequest || wanted !== query) return;
  conversations = found;
  drawList();
}
function dayOf(seconds) {
  const days = Math.floor((new Date().setHours(24, 0, 0, 0) - seconds * 1000) / 86_400_000);
  return days < 1 ? "Today" : days < 2 ? "Yesterday" : days < 8 ? "This week" : days < 31 ? "This month" : "Earlier";
}
function drawList() {
  const nodes = [];
  let day = "";
  for (const entry of conversations) {
    const name = query ? "" : dayOf(entry.changed_s);
    if (name !== day) nodes.push(element("h3", "", day = name));
    nodes.push(entryNode(entry));
  }
  if (!conversations.length) nodes.push(element("p", "soft", query ? "Nothing found" : "Conversations are kept here."));
  $("list").replaceChildren(...nodes);
  $("list").querySelector("input")?.select();
}
function entryNode(entry) {
  const node = element("div", "entry");
  node.classList.toggle("current", entry.id === current?.id);
  if (entry.running) node.append(element("span", "busy"));
  if (renaming === entry.id) { node.append(titleInput(entry)); return node; }
  const link = element("a");
  link.href = `#${entry.id}`;
  if (entry.id === current?.id) link.setAttribute("aria-current", "page");
  link.append(element("span", "name", entry.title || "New chat"));
  if (entry.excerpt) link.append(marked(element("span", "excerpt"), entry.excerpt));
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab or window of its own
    event.preventDefault();
    open(entry.id, entry.message_id);
    if (isNarrow()) showSide(false);
  });
  const more = iconButton("more", `More on ${entry.title || "this chat"}`, () => floatingMenu(more, [
    menuItem("edit", "Rename", () => { renaming = entry.id; drawList(); }),
    menuItem("import", "Export as Markdown", () => download(entry.id, "markdown")),
    menuItem("bin", "Delete", () => remove(entry), "danger"),
  ]));
  node.append(link, more);
  return node;
}
function marked(node, text) { // the words that were looked for
  const words = query.split(/\s+/).filter(Boolean).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  for (const piece of text.split(new RegExp(`(${words.join("|")})`, "i"))) {
    const isHit = words.some((word) => new RegExp(`^${word}$`, "i").test(piece));
    node.append(isHit ? element("mark", "", piece) : piece);
  }
  return node;
}
function titleInput(entry) {
  const input = element("input");
  input.value = entry.title;
  input.setAttribute("aria-label", "Title");
  const end = async (isKept) => {
    if (renaming !== entry.id) return;
    renaming = null;
    const title = input.value.trim();
    try {
      if (isKept && title && title !== entry.title) {
        await get(`api/conversations/${entry.id}`, { title }, "PATCH");
        for (const each of conversations) if (each.id === entry.id) each.title = title;
        loadList().catch(fail); // one on its way would bring the old title
        if (current?.id === entry.id) { current.title = title; drawTitle(); }
        tell(entry.id);
      }
    } catch (error) { fail(error); }
    drawList();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") { event.stopPropagation(); end(false); }
  });
  input.addEventListener("blur", () => end(true));
  return input;
}
async function remove(entry) {
  try {
    await get(`api/conversations/${entry.id}`, undefined, "DELETE");
    if (current?.id === entry.id) startNew();
    await loadList();
    tell(entry.id);
    toast(`Deleted “${(entry.title || "New chat").slice(0, 40)}”`, "Undo", async () => {
      try {
        await get(`api/conversations/${entry.id}/restore`, {});
        await loadList();
        await open(entry.id);
        tell(entry.id);
      } catch (error) { fail(error); }
    });
  } catch (error) { fail(error); }
}
function download(id, format) {
  const link = element("a");
  link.href = `api/conversations/${id}/export?format=${format}`;
  link.download = "";
  link.click();
}
$("query").addEventListener("input", debounced(150, () => { query = $("query").value.trim(); loadList().catch(fail); }));
$("query").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); $("list").querySelector("a")?.focus(); }
});
$("list").addEventListener("keydown", (event) => {
  const links = [...$("list").querySelectorAll("a")], at = links.indexOf(document.activeElement);
  if (at < 0 || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  event.preventDefault();
  (links[at + (event.key === "ArrowDown" ? 1 : -1)] ?? $("query")).focus();
});
$("new").addEventListener("click", () => { startNew(); if (isNarrow()) showSide(false); });
$("open-import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  if (!file) return;
  try {
    const made = (await get("api/conversations/import", file)).conversations;
    await loadList();
    await open(made[0].id);
    toast(made.length === 1 ? "1 conversation imported" : `${made.length} conversations imported`);
  } catch (error) { fail(error); }
});

// Other tabs of this browser show what this one changes.
const channel = new BroadcastChannel("lmworks.chat");
function tell(id) { channel.postMessage(id); }
channel.addEventListener("message", ({ data }) => {
  loadList().catch(() => {});
  if (data === current?.id) refresh().catch(() => {});
});
