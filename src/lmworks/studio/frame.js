// What every page has: the theme, nodes without HTML, and asking the server.

const $ = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  root.dataset.theme = theme;
  try { localStorage.setItem("lmworks.theme", theme); } catch { /* for this page only, then */ }
});

class ServerError extends Error {
  constructor(problem, status) {
    super(problem?.message ?? `the server answered with status ${status}`);
    this.code = problem?.code;
  }
}

async function ask(path, body, signal) {
  const options = body === undefined ? { signal } : { method: "POST", signal, body };
  if (body !== undefined && typeof body !== "string" && !(body instanceof Blob)) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  throw new ServerError((await response.json().catch(() => null))?.error, response.status);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error);
      yield event;
    }
  }
}

function plain(error) {
  return error instanceof TypeError ? "The server can't be reached. Is it still running?" : error.message;
}

function debounced(wait, work) {
  let timer = 0;
  return (...values) => { clearTimeout(timer); timer = setTimeout(work, wait, ...values); };
}

function save(blob, name) { // as a file of the person's own
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
