// One head, large: the map, lines from token to token, and what the chosen token looks at.

const MOST_LINES = 40, STRIP = 300; // tokens
let map = null; // { image, cells, step }
let query = 0, row = null; // the token that looks, and its weights: { first, weights, top }
let asking = new AbortController(), rowAsking = new AbortController();

async function choose(head) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  chosen = head;
  keep();
  for (const button of $("grid").querySelectorAll(".head")) {
    const isOn = button.dataset.key === key(head.layer, head.head);
    button.setAttribute("aria-selected", isOn);
    button.tabIndex = isOn ? 0 : -1;
  }
  drawFigures();
  $("failure").textContent = "";
  try {
    for await (const event of events(await askAbout("api/attention/head", asked(), signal))) {
      if (event.progress) { $("looks").textContent = `${event.progress} …`; continue; }
      map = { ...event, image: bytesOf(event.image) };
    }
    query = Math.min(query || tokens.length - 1, tokens.length - 1);
    drawMap();
    drawStrip();
    await choosePlace(query);
    $("one").dataset.shown = `${key(head.layer, head.head)}${$("rollout").checked ? " rollout" : ""}`;
  } catch (error) { fail(error); }
}
function asked() { return { layer: chosen.layer, head: $("rollout").checked ? -1 : chosen.head }; }
$("rollout").addEventListener("change", () => { if (chosen) choose(chosen); });

function drawFigures() {
  const rolled = $("rollout").checked, { label, meaning } = kindOf(chosen.kind);
  $("name").textContent = rolled ? `Rollout up to layer ${chosen.layer}` : `Layer ${chosen.layer}, head ${chosen.head}: ${label}`;
  $("meaning").textContent = rolled ? "What the states after this layer are made of, as far as attention alone tells." : meaning;
  const share = (value) => `${number(100 * value, 1)} %`;
  const found = [
    ["Entropy", `${number(chosen.entropy, 2)} bits`], ["Distance", `${number(chosen.distance, 1)} tokens`],
    ["To the first", share(chosen.first)], ["To the previous", share(chosen.previous)], ["To itself", share(chosen.itself)],
    ...(chosen.next > 0 ? [["To the next", share(chosen.next)]] : []),
    ["Induction", chosen.induction === null ? "no repeats" : share(chosen.induction)],
  ];
  $("figures").hidden = rolled;
  $("figures").replaceChildren(...found.map(([name, value]) => {
    const part = element("div");
    part.append(element("dt", "", name), element("dd", "", value));
    return part;
  }));
}
function drawMap() {
  if (!map) return;
  drawCells($("map"), map.image, map.cells);
  $("panes").classList.toggle("alone", tokens.length > MOST_LINES);
  $("lines").toggleAttribute("hidden", tokens.length > MOST_LINES);
}
function drawStrip() {
  const first = Math.max(0, Math.min(query - STRIP / 2, tokens.length - STRIP)), part = tokens.slice(first, first + STRIP);
  $("strip").dataset.first = first;
  $("strip").replaceChildren(...part.map((token, place) => {
    const node = element("span", "", token.replaceAll("⏎", "⏎\n"));
    node.dataset.place = first + place;
    return node;
  }));
}

// --- the token that looks ---

async function choosePlace(place) {
  query = place;
  rowAsking.abort();
  rowAsking = new AbortController();
  const { signal } = rowAsking, first = Number($("strip").dataset.first);
  if (query < first || query >= first + $("strip").children.length) drawStrip();
  row = roughRow();
  drawRow();
  try {
    row = await (await askAbout("api/attention/row", { ...asked(), query }, signal)).json();
    drawRow();
  } catch (error) { fail(error); }
}
function roughRow() { // from the picture, until the exact weights are here
  if (!map || map.step > 1) return null;
  const weights = Array.from(map.image.subarray(query * map.cells, (query + 1) * map.cells), (byte) => (byte / 255) ** 2);
  return { first: 0, weights, top: [] };
}
function drawRow() {
  const band = $("band"), cell = 100 / map.cells, at = Math.floor(query / map.step);
  band.hidden = false;
  band.style.top = `${at * cell}%`;
  band.style.height = `${cell}%`;
  for (const node of $("strip").children) {
    const place = Number(node.dataset.place), weight = row?.weights[place - row.first] ?? 0;
    node.style.setProperty("--w", `${Math.round(100 * Math.sqrt(weight))}%`);
    node.classList.toggle("strong", weight > 0.3);
    node.classList.toggle("on", place === query);
  }
  $("strip").querySelector(".on")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  drawLines();
  if (row?.top.length) drawLooks();
}
function drawLooks() {
  const parts = [element("span", "", `Token ${number(query)} `), element("code", "", tokens[query]), $("rollout").checked ? " is made of " : " looks at "];
  row.top.filter(([, weight]) => weight >= 0.005).slice(0, 8).forEach(([place, weight], number_) => {
    if (number_) parts.push(", ");
    const away = query - place, where = away === 0 ? "itself" : `${number(Math.abs(away))} ${away > 0 ? "before" : "after"}`;
    parts.push(element("code", "", tokens[place]), ` ${number(100 * weight, 1)} % (${where})`);
  });
  $("looks").replaceChildren(...parts, ".");
}
const SVG = "http://www.w3.org/2000/svg";
function part(tag, attributes, content) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (content !== undefined) node.textContent = content;
  return node;
}
function drawLines() {
  if (tokens.length > MOST_LINES || !map) return;
  const step = 18, height = tokens.length * step, y = (place) => place * step + step / 2, found = [];
  $("lines").setAttribute("viewBox", `0 0 340 ${height}`);
  for (let from = 0; from < tokens.length; from++) {
    for (let to = 0; to < tokens.length; to++) {
      const weight = (map.image[from * map.cells + to] / 255) ** 2, isOn = from === query;
      if (weight < (isOn ? 0.01 : 0.08)) continue;
      found.push(part("line", { x1: 122, y1: y(from), x2: 218, y2: y(to), "stroke-width": isOn ? 2.2 : 1, "stroke-opacity": (isOn ? Math.max(0.12, weight) : 0.22 * weight).toFixed(3) }));
    }
  }
  const label = (token, place, x, anchor, isOn) => part("text", { x, y: y(place) + 4, "text-anchor": anchor, class: isOn ? "on" : "" }, token.length > 14 ? `${token.slice(0, 13)}…` : token);
  tokens.forEach((token, place) => {
    found.push(label(token, place, 116, "end", place === query), label(token, place, 224, "start", false));
  });
  $("lines").replaceChildren(...found);
}

// --- pointing and keys ---

const placeSoon = debounced(40, choosePlace);
$("map").addEventListener("pointermove", (event) => {
  const box = $("map").getBoundingClientRect(), cell = Math.floor((event.clientY - box.top) / box.height * map.cells);
  const place = Math.min(tokens.length - 1, Math.max(0, cell * map.step));
  if (place !== query) placeSoon(place);
});
$("strip").addEventListener("pointerover", (event) => {
  const { place } = event.target.dataset;
  if (place !== undefined && Number(place) !== query) placeSoon(Number(place));
});
$("lines").addEventListener("pointermove", (event) => {
  const box = $("lines").getBoundingClientRect(), place = Math.floor((event.clientY - box.top) / box.height * tokens.length);
  if (place >= 0 && place < tokens.length && place !== query) placeSoon(place);
});
for (const id of ["map", "strip"]) {
  $(id).addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -tokens.length, End: tokens.length }[event.key];
    if (!move || !map) return;
    event.preventDefault();
    choosePlace(Math.min(tokens.length - 1, Math.max(0, query + move)));
  });
}
