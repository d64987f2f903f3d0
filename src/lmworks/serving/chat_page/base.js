// Drawings, what a person is told, figures, and what this browser keeps.

const DRAWINGS = {
  side: "M3 5h14v10H3zM8 5v10", plus: "M10 4v12M4 10h12", search: "M9 15A6 6 0 1 0 9 3a6 6 0 0 0 0 12zM13.5 13.5L17 17",
  book: "M4 4.5A1.5 1.5 0 0 1 5.5 3H16v12H5.5A1.5 1.5 0 0 0 4 16.5zM4 16.5A1.5 1.5 0 0 0 5.5 18H16v-3M8 7h5",
  import: "M10 3v9M6.5 8.5L10 12l3.5-3.5M4 14v2h12v-2", moon: "M16.5 12.2A7 7 0 0 1 7.8 3.5a7 7 0 1 0 8.7 8.7z",
  down: "M5 8l5 5 5-5", up: "M10 16V4.5M5 9.2l5-5 5 5", stop: "M6.5 6.5h7v7h-7z", close: "M5 5l10 10M15 5L5 15",
  memory: "M4 5h12M4 10h12M4 15h7", settings: "M3 6h7M14 6h3M3 14h3M10 14h7M12 8a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM8 16a2 2 0 1 0 0-4 2 2 0 0 0 0 4z",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01", clip: "M15 9.5l-5.3 5.3a3.2 3.2 0 0 1-4.5-4.5l6-6a2.1 2.1 0 0 1 3 3l-6 6a1 1 0 0 1-1.5-1.5l5.3-5.3",
  copy: "M7 7V4.5A1.5 1.5 0 0 1 8.5 3h7A1.5 1.5 0 0 1 17 4.5v7a1.5 1.5 0 0 1-1.5 1.5H13M4.5 7h7A1.5 1.5 0 0 1 13 8.5v7a1.5 1.5 0 0 1-1.5 1.5h-7A1.5 1.5 0 0 1 3 15.5v-7A1.5 1.5 0 0 1 4.5 7z",
  done: "M4 10.5l4 4 8-9", edit: "M4 16l.8-3.2L13 4.6a1.6 1.6 0 0 1 2.4 2.4l-8.2 8.2zM11.5 6l2.5 2.5",
  "thumb-up": "M6 9l3.2-5.6a1.5 1.5 0 0 1 2.7 1.2L11.2 8H15a1.6 1.6 0 0 1 1.6 2l-1.2 4.8A1.6 1.6 0 0 1 13.8 16H6zM3.5 9H6v7H3.5z",
  "thumb-down": "M14 11l-3.2 5.6a1.5 1.5 0 0 1-2.7-1.2L8.8 12H5a1.6 1.6 0 0 1-1.6-2l1.2-4.8A1.6 1.6 0 0 1 6.2 4H14zM16.5 11H14V4h2.5z",
  again: "M16 10a6 6 0 1 1-1.8-4.3L16 7.5M16 3.5v4h-4", left: "M12 5l-5 5 5 5", right: "M8 5l5 5-5 5",
  bin: "M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10", file: "M5 3h6l4 4v10H5zM11 3v4h4", keys: "M3 6h14v8H3zM6 9h.01M9 9h.01M12 9h.01M7 12h6",
};
function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "path"));
  svg.firstChild.setAttribute("d", DRAWINGS[name]);
  if (name === "more") svg.style.strokeWidth = "2.6";
  return svg;
}
function iconButton(name, label, work) {
  const button = element("button", "icon");
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.append(icon(name));
  button.addEventListener("click", work);
  return button;
}
for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));

async function get(path, body, method) { return (await ask(path, body, { method })).json(); }
function say(text) { $("status").textContent = text; }

let toastTimer = 0;
function toast(text, action, work) {
  $("toast").replaceChildren(element("span", "", text));
  if (action) {
    const button = element("button", "", action);
    button.addEventListener("click", () => { $("toast").hidden = true; work(); });
    $("toast").append(button);
  }
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, action ? 8000 : 4000);
}
function fail(error) { if (error.name !== "AbortError") toast(plain(error)); }

const number = (value) => Math.round(Number(value) || 0).toLocaleString("en");
const speed = (rate) => `${rate < 100 ? Number(rate).toFixed(1) : number(rate)} tokens/s`;
function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1000))} kB` : bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
function recall(name, fallback) { // what this browser keeps
  try { return JSON.parse(localStorage.getItem(`lmworks.${name}`)) ?? fallback; } catch { return fallback; }
}
function keep(name, value) {
  try { localStorage.setItem(`lmworks.${name}`, JSON.stringify(value)); } catch { /* full or forbidden */ }
}
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.replaceChildren(icon("done"));
    say("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  } catch { toast("The browser does not allow copying here"); }
}
