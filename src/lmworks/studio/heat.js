// Shares as colours: pictures of cells on a canvas, in the colours of the theme.

const HEAT = ["--heat0", "--heat1", "--heat2", "--heat3", "--heat4"];

const TWO_SIDED = ["--below1", "--below0", "--heat0", "--heat2", "--heat4"]; // from -1 over 0 to 1

function palette(names) { // 256 colours, from the first to the last
  const probe = element("i");
  document.body.append(probe);
  const stops = names.map((name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  });
  probe.remove();
  return Uint32Array.from({ length: 256 }, (_, byte) => {
    const place = (byte / 255) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (place - low)));
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
}
let heatColours = null, twoSidedColours = null;

function drawPixels(canvas, bytes, rows, columns, colours) {
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new Uint32Array(rows * columns);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[bytes[i]];
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), columns, rows), 0, 0);
}
function drawCells(canvas, bytes, cells) { // a byte stands for the square root of a share
  heatColours ??= palette(HEAT);
  drawPixels(canvas, bytes, cells, cells, heatColours);
}
function drawTwoSided(canvas, bytes, rows, columns) { // 0 to 255 stand for -1 to 1
  twoSidedColours ??= palette(TWO_SIDED);
  drawPixels(canvas, bytes, rows, columns, twoSidedColours);
}
function bytesOf(base64) { return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)); }

function onTheme(redraw) { // colours change with the theme, also when the system's does
  const changed = () => { heatColours = twoSidedColours = null; redraw(); };
  $("theme").addEventListener("click", changed);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
