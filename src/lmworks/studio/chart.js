// Curves over two axes, with a key that brings one forward.

const SVG_LINES = "http://www.w3.org/2000/svg", LINE_COLOURS = 6;

function svgPart(tag, attributes) {
  const node = document.createElementNS(SVG_LINES, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
function roundStep(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= step * 0.999999);
}
function ticksOf(low, high, isLog) {
  if (isLog) return Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, i) => Math.ceil(low) + i);
  const step = roundStep((high - low) / 4), first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}
// curves: [{ name, x, y }]; a name with a comma is drawn dashed. marks: { x } or { y }.
function drawChart(box, curves, { label, log = false, mark = {}, most = Infinity }) {
  const scale = (value) => (log ? Math.log10(value) : value);
  const lines = curves.map(({ name, x, y }) => ({ name, x, y: y.map((value) => scale(Math.min(value, most))) }));
  const xs = lines.flatMap(({ x }) => x), ys = lines.flatMap(({ y }) => y).filter(Number.isFinite);
  if (!ys.length) { box.replaceChildren(); return; }
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const pad = (Math.max(...ys) - Math.min(...ys) || 1) * 0.04, low = Math.min(...ys) - pad, high = Math.max(...ys) + pad;
  const across = (x) => (100 * (x - left)) / (right - left || 1), up = (y) => (100 * (y - low)) / (high - low);
  const svg = svgPart("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": label });
  const fixed = { "vector-effect": "non-scaling-stroke" }, key = element("div", "key"), drawn = [];
  for (const y of ticksOf(low, high, log)) svg.append(svgPart("line", { class: "rule", x1: 0, x2: 100, y1: 100 - up(y), y2: 100 - up(y), ...fixed }));
  if (mark.x !== undefined) svg.append(svgPart("line", { class: "mark", x1: across(mark.x), x2: across(mark.x), y1: 0, y2: 100, ...fixed }));
  if (mark.y !== undefined) svg.append(svgPart("line", { class: "mark", x1: 0, x2: 100, y1: 100 - up(scale(mark.y)), y2: 100 - up(scale(mark.y)), ...fixed }));
  lines.forEach(({ name, x, y }, number_) => {
    const style = `l${number_ % LINE_COLOURS}${name.includes(", ") ? " dashed" : ""}`;
    const points = x.map((value, i) => `${across(value).toFixed(2)},${(100 - up(y[i])).toFixed(2)}`).join(" ");
    const line = svgPart("polyline", { class: style, points, ...fixed }), button = element("button", style);
    button.append(element("i"), element("span", "", name));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const isOn = button.getAttribute("aria-pressed") !== "true";
      for (const [other, polyline] of drawn) {
        other.setAttribute("aria-pressed", isOn && other === button);
        polyline.classList.toggle("faint", isOn && other !== button);
      }
    });
    drawn.push([button, line]);
    svg.append(line);
    key.append(button);
  });
  const chart = element("div", "chart"), scaleUp = element("div", "up"), scaleAcross = element("div", "across");
  const tick = (value, place, side, parent) => { const node = element("span", "", value); node.style[side] = `${place}%`; parent.append(node); };
  const short = (value) => Number(value.toPrecision(4)).toLocaleString("en");
  for (const y of ticksOf(low, high, log)) tick(short(log ? 10 ** y : y), up(y), "bottom", scaleUp);
  for (const x of ticksOf(left, right, false)) tick(short(x), across(x), "left", scaleAcross);
  chart.append(scaleUp, svg, scaleAcross);
  box.replaceChildren(key, chart);
}
