// Rows of tokens under several tokenizers. Only the rows on screen are nodes; what is in them comes
// from the server in blocks, when somebody looks. Rows have one height, so nothing ever moves.

const BLOCK = 48, KEPT_BLOCKS = 160, ROW = 27, HIGHEST = 8e6;

class TokenViewer {
  constructor(fetchRows, onFailure) {
    this.fetchRows = fetchRows; // (tokenizer, columns, first, count, signal) -> a view
    this.onFailure = onFailure;
    this.scroller = $("scroller");
    this.names = this.titles = [];
    this.reset();
    this.scroller.addEventListener("scroll", () => this.soon(), { passive: true });
    new ResizeObserver(() => { if (this.layout()) this.restart(); }).observe($("viewer"));
    this.scroller.addEventListener("mouseover", (event) => this.point(event));
    this.scroller.addEventListener("click", (event) => this.point(event));
    this.scroller.addEventListener("keydown", (event) => this.walk(event));
    this.scroller.addEventListener("focus", () => { if (!this.at) this.go({ pane: 0, row: this.firstRow(), piece: 0 }); });
  }

  reset() {
    for (const block of this.blocks?.values() ?? []) block.controller?.abort();
    this.blocks = new Map();
    this.nodes = new Map();
    this.total = 0;
    this.at = null;
    $("layer").replaceChildren();
  }

  // What to show. `key` changes when the tokens do. Without a text, the titles stand there already.
  show(titles, key) {
    const same = key === this.key && titles.join("\n") === this.titles.join("\n");
    if (same) return;
    this.titles = titles;
    this.names = key ? titles : [];
    this.key = key;
    this.scroller.scrollTop = 0;
    this.layout();
    this.restart();
  }

  restart() {
    this.reset();
    this.heads();
    $("detail").replaceChildren();
    if (this.names.length) this.draw();
  }

  // Columns of text per pane; true if that changed.
  layout() {
    const before = `${this.columns} ${this.stacked} ${this.titles.length}`;
    const width = this.scroller.clientWidth || $("viewer").clientWidth;
    const count = Math.max(1, this.titles.length);
    this.stacked = count > 1 && width / count < 300;
    $("viewer").classList.toggle("stacked", this.stacked);
    const probe = element("span", "", "0".repeat(100));
    const cell = element("div", "cell");
    cell.style.position = "absolute";
    cell.append(probe);
    $("layer").append(cell);
    const letter = probe.getBoundingClientRect().width / 100 || 8.4;
    cell.remove();
    const room = this.stacked ? width - 46 : width / count - 34;
    this.columns = Math.max(8, Math.min(200, Math.floor(room / letter)));
    this.height = this.stacked ? ROW * count + 1 : ROW;
    return before !== `${this.columns} ${this.stacked} ${this.titles.length}`;
  }

  heads() {
    const letters = this.titles.length > 1 && this.stacked;
    $("heads").style.gridTemplateColumns = this.stacked ? "1fr" : `repeat(${Math.max(1, this.titles.length)}, minmax(0, 1fr))`;
    $("heads").replaceChildren(...this.titles.map((name, pane) => {
      const head = element("div", "", name);
      if (letters) head.prepend(element("b", "", this.letter(pane)));
      return head;
    }));
  }

  letter(pane) { return String.fromCharCode(65 + pane); }

  // Browsers can't scroll further than some millions of pixels: beyond, the scale shrinks.
  get virtualHeight() { return this.total * this.height; }
  get scrollHeight() { return Math.min(HIGHEST, this.virtualHeight); }
  top() {
    const view = this.scroller.clientHeight, { scrollTop } = this.scroller;
    if (this.virtualHeight <= HIGHEST) return scrollTop;
    return scrollTop * (this.virtualHeight - view) / (this.scrollHeight - view);
  }
  scrollTo(top) {
    const view = this.scroller.clientHeight;
    const scale = this.virtualHeight <= HIGHEST ? 1 : (this.scrollHeight - view) / (this.virtualHeight - view);
    this.scroller.scrollTop = top * scale;
  }
  firstRow() { return Math.floor(this.top() / this.height); }

  soon() { this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.draw(); }); }

  draw() {
    if (!this.names.length) return;
    $("space").style.height = `${this.scrollHeight}px`;
    const top = this.top(), first = Math.floor(top / this.height);
    const last = Math.min(this.total || BLOCK, first + Math.ceil(this.scroller.clientHeight / this.height) + 2);
    const shift = this.scroller.scrollTop - top;
    for (const [row, node] of this.nodes) if (row < first || row >= last) { node.remove(); this.nodes.delete(row); }
    for (let row = first; row < last; row++) {
      let node = this.nodes.get(row);
      if (!node) {
        node = this.emptyRow();
        this.nodes.set(row, node);
        $("layer").append(node);
      }
      node.style.top = `${row * this.height + shift}px`;
      this.names.forEach((name, pane) => this.fill(node.children[pane], pane, row));
    }
    if (this.stale) { this.stale = false; this.mark(); }
    this.want(Math.floor(first / BLOCK), Math.floor(Math.max(first, last - 1) / BLOCK));
  }

  emptyRow() {
    const node = element("div", "row");
    node.style.gridTemplateColumns = this.stacked ? "1fr" : `repeat(${this.names.length}, minmax(0, 1fr))`;
    this.names.forEach((_, pane) => {
      const cell = element("div", "cell");
      cell.dataset.pane = pane;
      if (this.stacked) cell.dataset.letter = this.letter(pane);
      cell.append(element("div"));
      node.append(cell);
    });
    return node;
  }

  block(pane, row) { return this.blocks.get(`${pane}:${Math.floor(row / BLOCK)}`); }

  fill(cell, pane, row) {
    const view = this.block(pane, row)?.view;
    if (!view || cell.dataset.row === String(row)) return;
    cell.dataset.row = row;
    const line = cell.firstChild;
    line.dir = "auto";
    const pieces = view.rows[row - view.first] ?? [];
    line.replaceChildren(...pieces.map(([text, unit], place) => this.piece(view, text, unit, place)));
    this.stale ||= this.at?.pane === pane;
  }

  piece(view, text, unit, place) {
    const [first, start, , , ids] = view.units[unit];
    const kinds = ids.length ? [`t${first % 5}`] : ["none"];
    if (ids.length > 1) kinds.push("many");
    for (const id of ids) if (view.tokens[id][2]) kinds.push(view.tokens[id][2]);
    if (text.startsWith(" ")) kinds.push("s");
    if (/^ +$/.test(text)) kinds.push("w");
    else if (text === "⏎") kinds.push("end");
    else if (/^ *[\u0590-\u08ff]/.test(text)) kinds.push("r");
    const node = element("span", kinds.join(" "), text);
    node.dataset.place = place;
    node.dataset.start = start;
    return node;
  }

  want(from, to) {
    for (const [key, block] of this.blocks) {
      const number = Number(key.split(":")[1]);
      if (block.controller && (number < from || number > to)) { block.controller.abort(); this.blocks.delete(key); }
    }
    for (let number = from; number <= to; number++) {
      this.names.forEach((name, pane) => {
        const key = `${pane}:${number}`;
        if (!this.blocks.has(key)) this.fetch(key, name, number);
      });
    }
  }

  async fetch(key, name, number) {
    const block = { controller: new AbortController() };
    const { blocks } = this;
    blocks.set(key, block);
    try {
      block.view = await this.fetchRows(name, this.columns, number * BLOCK, BLOCK, block.controller.signal);
      block.controller = null;
      if (blocks !== this.blocks) return;
      this.total = block.view.total;
      for (const old of blocks.keys()) {
        if (blocks.size <= KEPT_BLOCKS) break;
        if (old !== key) blocks.delete(old);
      }
      this.soon();
    } catch (error) {
      blocks.delete(key);
      if (error.name !== "AbortError" && blocks === this.blocks) this.onFailure(error);
    }
  }

  // One token, pointed at or walked to.

  point(event) {
    const span = event.target.closest("span[data-place]");
    if (!span) return;
    const cell = span.closest(".cell");
    this.at = { pane: Number(cell.dataset.pane), row: Number(cell.dataset.row), piece: Number(span.dataset.place) };
    this.mark();
  }

  pieces({ pane, row }) {
    const view = this.block(pane, row)?.view;
    return view && row >= 0 ? view.rows[row - view.first] : undefined;
  }
  unitOf(at) {
    const view = this.block(at.pane, at.row)?.view;
    const piece = view?.rows[at.row - view.first]?.[at.piece];
    return piece && { view, unit: view.units[piece[1]] };
  }

  mark() {
    for (const node of $("layer").querySelectorAll(".on")) node.classList.remove("on");
    const chosen = this.at && this.unitOf(this.at);
    if (!chosen) return;
    const cells = `.cell[data-pane="${this.at.pane}"]`;
    for (const node of $("layer").querySelectorAll(`${cells} [data-start="${chosen.unit[1]}"]`)) node.classList.add("on");
    this.describe(chosen);
  }

  describe({ view, unit: [first, start, end, byte, ids] }) {
    const place = `characters ${start.toLocaleString("en")}–${end.toLocaleString("en")}, from byte ${byte.toLocaleString("en")}`;
    const name = this.names[this.at.pane];
    const lines = ids.length ? ids.map((id, number) => {
      const [text, hex, role] = view.tokens[id];
      const line = element("p");
      line.append(element("code", "", text), ` id ${id}`, role ? ` · ${role}` : "", " · bytes ", element("code", "", hex || "none"));
      if (!number) line.append(element("span", "soft", ` · ${name}, token ${(first + 1).toLocaleString("en")} · ${place}`));
      return line;
    }) : [element("p", "soft", `${name}: no token stands for this · ${place}`)];
    $("detail").replaceChildren(...lines);
  }

  go(at) {
    if (at.row < 0 || at.row >= this.total) return false;
    const pieces = this.pieces(at);
    if (pieces && at.piece >= pieces.length) at.piece = Math.max(0, pieces.length - 1);
    this.at = at;
    const top = at.row * this.height, view = this.scroller.clientHeight;
    if (top < this.top()) this.scrollTo(top);
    else if (top + this.height > this.top() + view) this.scrollTo(top + this.height - view);
    this.draw();
    this.mark();
    return true;
  }

  walk(event) {
    const at = this.at ?? { pane: 0, row: this.firstRow(), piece: 0 };
    const turn = event.shiftKey ? { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key] : 0;
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (turn) this.go({ ...at, pane: (at.pane + turn + this.names.length) % this.names.length });
    else if (event.key === "ArrowRight") this.step(at, 1);
    else if (event.key === "ArrowLeft") this.step(at, -1);
    else if (event.key === "ArrowDown") this.go({ ...at, row: at.row + 1 });
    else if (event.key === "ArrowUp") this.go({ ...at, row: at.row - 1 });
    else if (event.key === "Home") this.go({ ...at, row: 0, piece: 0 });
    else if (event.key === "End") this.go({ ...at, row: this.total - 1, piece: 0 });
    else if (event.key === "PageDown") this.page(at, 1);
    else if (event.key === "PageUp") this.page(at, -1);
    else return;
    event.preventDefault();
  }

  page(at, turn) {
    const rows = Math.max(1, Math.floor(this.scroller.clientHeight / this.height) - 1);
    this.go({ ...at, row: Math.min(this.total - 1, Math.max(0, at.row + turn * rows)) });
  }

  step(at, turn) {
    const pieces = this.pieces(at);
    if (!pieces) return;
    const from = this.unitOf(at)?.unit[1];
    let next = { ...at };
    do {
      next.piece += turn;
      if (next.piece >= (this.pieces(next)?.length ?? 0)) next = { ...next, row: next.row + 1, piece: 0 };
      else if (next.piece < 0) next = { ...next, row: next.row - 1, piece: (this.pieces({ ...next, row: next.row - 1 })?.length ?? 1) - 1 };
    } while (this.unitOf(next) && this.unitOf(next).unit[1] === from);
    this.go(next);
  }
}
