// Markdown as answers use it, built of nodes and never of HTML. Links lead only to the web and to
// mail, pictures are not loaded, and what is nested without end stays text.

const DEEPEST = 6;
const INLINE = /(`+)([^\n]{1,2000}?)\1(?!`)|\*\*(?=\S)([^\n]{1,2000}?\S)\*\*|__(?=\S)([^\n]{1,2000}?\S)__(?!\w)|(?<!\d)\*(?=[^\s*])([^*\n]{0,2000}?[^\s*])\*(?!\d)|(?<!\w)_(?=[^\s_])([^_\n]{0,2000}?[^\s_])_(?!\w)|~~(?=\S)([^\n]{1,2000}?\S)~~|!?\[([^\]\n]{1,500})\]\((\S{1,1000}?)(?:\s+"[^"\n]{0,200}")?\)|(https?:\/\/[^\s<>"'`*]{2,500}[^\s<>"'`*.,;:!?)\]])/;

function link(address, text) {
  let url;
  try { url = new URL(address); } catch { return null; }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const node = element("a", "", text);
  node.href = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  node.title = url.href;
  return node;
}
function inline(parent, text, depth = 0) {
  let rest = text;
  while (rest) {
    const found = depth < DEEPEST ? INLINE.exec(rest) : null;
    if (!found) { parent.append(rest.replace(/\\([\\`*_{}[\]()#+.!~-])/g, "$1")); break; }
    if (found.index && rest[found.index - 1] === "\\") { // escaped: text up to here, mark included
      parent.append(rest.slice(0, found.index - 1) + rest[found.index]);
      rest = rest.slice(found.index + 1);
      continue;
    }
    if (found.index) parent.append(rest.slice(0, found.index));
    const [whole, , code, bold, bold2, italic, italic2, struck, words, address, bare] = found;
    let node = null;
    if (code !== undefined) node = element("code", "", code.length > 2 ? code.replace(/^ (.*) $/, "$1") : code);
    else if (bold ?? bold2) node = inline(element("strong"), bold ?? bold2, depth + 1);
    else if (italic ?? italic2) node = inline(element("em"), italic ?? italic2, depth + 1);
    else if (struck) node = inline(element("s"), struck, depth + 1);
    else if (words) node = link(address, words);
    else if (bare) node = link(bare, bare);
    parent.append(node ?? whole);
    rest = rest.slice(found.index + whole.length);
  }
  return parent;
}

// A text as blocks: { kind, lines, ... }. A block's source tells whether it has to be built anew.
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]{0,30})/;
const ITEM = /^(\s{0,12})(?:[-*+]|(\d{1,9})[.)])(\s+|$)(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const isTableRule = (line) => /^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$/.test(line ?? "") && line.includes("|");

function split(text) {
  const lines = text.split("\n"), blocks = [];
  for (let at = 0; at < lines.length;) {
    const line = lines[at], fence = FENCE.exec(line);
    if (!line.trim()) { at += 1; continue; }
    const start = at, kind = kindOf(lines, at);
    at += 1;
    if (kind === "code") {
      const end = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
      while (at < lines.length && !end.test(lines[at])) at += 1;
      at += 1;
    } else if (kind === "list") {
      let open = null; // a fence within an item may hold blank lines
      while (at < lines.length) {
        const inner = FENCE.exec(lines[at].trimStart());
        if (open) { if (inner && inner[1].startsWith(open) && lines[at].trim() === inner[1]) open = null; }
        else if (inner && /^\s/.test(lines[at])) open = inner[1];
        else if (!lines[at].trim()) {
          const next = lines.slice(at + 1, at + 3).find((l) => l.trim());
          if (next === undefined || !(/^\s{2,}\S/.test(next) || ITEM.test(next))) break;
        } else if (!ITEM.test(lines[at]) && (kindOf(lines, at) !== "paragraph" || (!lines[at - 1].trim() && !/^\s/.test(lines[at])))
          && !/^\s{2,}/.test(lines[at])) break;
        at += 1;
      }
    } else if (kind === "quote") while (at < lines.length && lines[at].trim() && (/^ {0,3}>/.test(lines[at]) || kindOf(lines, at) === "paragraph")) at += 1;
    else if (kind === "table") while (at < lines.length && lines[at].includes("|")) at += 1;
    else if (kind === "paragraph") while (at < lines.length && lines[at].trim() && kindOf(lines, at) === "paragraph") at += 1;
    blocks.push({ kind, lines: lines.slice(start, at) });
  }
  return blocks;
}
function kindOf(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return "code";
  if (/^ {0,3}#{1,6}\s/.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (/^ {0,3}>/.test(line)) return "quote";
  if (ITEM.test(line)) return "list";
  if (line.includes("|") && isTableRule(lines[at + 1])) return "table";
  return "paragraph";
}
function build({ kind, lines }, depth) {
  if (kind === "code") return codeBlock(lines);
  if (kind === "heading") {
    const [, marks, text] = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/.exec(lines[0]) ?? [null, "#", lines[0]];
    return inline(element(`h${Math.min(5, marks.length + 2)}`), text);
  }
  if (kind === "rule") return element("hr");
  if (kind === "quote" && depth < DEEPEST) {
    const node = element("blockquote");
    node.append(...nodesOf(lines.map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n"), depth + 1));
    return node;
  }
  if (kind === "list" && depth < DEEPEST) return list(lines, depth);
  if (kind === "table") return table(lines);
  return inline(element("p"), lines.join("\n").trim());
}
function nodesOf(text, depth = 0) { return split(text).map((block) => build(block, depth)); }

function codeBlock(lines) {
  const [, mark, language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const node = element("div", "code"), top = element("div", "code-top"), pre = element("pre"), code = element("code");
  const copy = iconButton("copy", "Copy the code", () => copyText(text, copy));
  top.append(element("span", "", language || "text"), copy);
  highlight(code, text, language.toLowerCase());
  pre.tabIndex = 0; // so that the keyboard can scroll it
  pre.append(code);
  node.append(top, pre);
  return node;
}
function list(lines, depth) {
  const first = ITEM.exec(lines[0]), indent = first[1].length;
  const node = element(first[2] ? "ol" : "ul");
  if (first[2]) node.start = Number(first[2]);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent + 1) items.push([found[4]]);
    else items.at(-1).push(line);
  }
  const loose = lines.some((line) => !line.trim());
  for (const [head, ...rest] of items) {
    const item = element("li");
    const margin = Math.min(...rest.filter((line) => line.trim()).map((line) => /^\s*/.exec(line)[0].length), 99);
    const inner = [head, ...rest.map((line) => line.slice(Math.min(margin, /^\s*/.exec(line)[0].length)))].join("\n");
    const nodes = nodesOf(inner, depth + 1);
    if (!loose && nodes[0]?.tagName === "P") item.append(...nodes.shift().childNodes);
    item.append(...nodes);
    node.append(item);
  }
  return node;
}
function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const sides = cells(lines[1]).map((cell) => cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "");
  const node = element("div", "table"), grid = element("table"), head = element("thead"), body = element("tbody");
  const row = (line, tag) => {
    const tr = element("tr");
    cells(line).slice(0, 50).forEach((cell, column) => {
      const td = inline(element(tag), cell);
      if (sides[column]) td.style.textAlign = sides[column];
      tr.append(td);
    });
    return tr;
  };
  head.append(row(lines[0], "th"));
  body.append(...lines.slice(2).map((line) => row(line, "td")));
  grid.append(head, body);
  node.tabIndex = 0;
  node.append(grid);
  return node;
}

// Draws a text that grows: blocks that stayed the same stay the same nodes.
function renderMarkdown(body, text) {
  const blocks = split(text), known = body.blocks ?? [];
  blocks.forEach((block, index) => {
    block.source = `${block.kind}\n${block.lines.join("\n")}`;
    const before = known[index];
    if (before?.source === block.source) { block.node = before.node; return; }
    block.node = build(block, 0);
    if (before) before.node.replaceWith(block.node); else body.append(block.node);
  });
  for (const { node } of known.slice(blocks.length)) node.remove();
  body.blocks = blocks;
}
