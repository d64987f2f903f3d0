// Numbers as people read them, texts on their way to the server, files on theirs to the person.

const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const size = (bytes) => bytes < 1000 ? `${bytes} bytes` : bytes < 1e6 ? `${number(bytes / 1000, 1)} kB` : `${number(bytes / 1e6, 2)} MB`;

async function blobOf(content, signal) { // bit by bit: a browser turns text into bytes at once
  const parts = [];
  for (let at = 0; at < content.length;) {
    let end = Math.min(content.length, at + 200_000);
    if (/[\ud800-\udbff]/.test(content[end - 1])) end += 1; // not between two halves of a character
    parts.push(new Blob([content.slice(at, end)]));
    at = end;
    await new Promise((resume) => setTimeout(resume));
    signal?.throwIfAborted();
  }
  return new Blob(parts);
}
async function sendText(text, signal) {
  if (text.id || text.content === null || text.content === "") return;
  const body = text.content instanceof Blob ? text.content : await blobOf(text.content, signal);
  const known = await (await ask("api/texts", body, { signal })).json();
  Object.assign(text, known);
}

function save(blob, name) { // as a file of the person's own
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
