// What the chat page and the Studio's pages share: nodes without HTML, the theme, asking the server.

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
    this.status = status;
  }
}

async function ask(path, body, { method = body === undefined ? "GET" : "POST", signal } = {}) {
  const options = { method, signal };
  if (body instanceof Blob || typeof body === "string") options.body = body;
  else if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  if (!response.ok) throw new ServerError((await response.json().catch(() => null))?.error, response.status);
  return response;
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
      if (data === part || data === "[DONE]") continue; // a comment against silence, or the end
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
