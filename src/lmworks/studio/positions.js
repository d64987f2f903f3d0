// The page on positions: pictures for the sizes chosen, and finished runs of `eval positions`.

const SIZES = ["length", "dimensions", "heads", "theta", "context", "factor"];
let asking = new AbortController(), shown = null, runs = [];

function fail(error) { if (error.name !== "AbortError") $("failure").textContent = plain(error); }
function question() {
  const values = Object.fromEntries(SIZES.map((name) => [name, Number($(name).value)]));
  return { ...values, model: $("model").value };
}
async function draw() {
  asking.abort();
  asking = new AbortController();
  $("failure").textContent = "";
  $("pictures").setAttribute("aria-busy", "true");
  const wrong = SIZES.map($).find((field) => !field.checkValidity());
  if (wrong) { $("failure").textContent = `${wrong.parentElement.firstChild.textContent.trim()}: from ${wrong.min} to ${Number(wrong.max).toLocaleString("en")}${wrong.step === "2" ? ", in twos" : ""}.`; return; }
  history.replaceState(null, "", `#${new URLSearchParams(question())}`);
  try {
    shown = await (await ask("api/positions", question(), { signal: asking.signal })).json();
    drawAll();
    $("pictures").setAttribute("aria-busy", "false");
  } catch (error) { fail(error); }
}
function drawAll() {
  const { parameters, waves, decay, slopes } = shown;
  if ($("model").value) for (const name of SIZES) $(name).value = parameters[name];
  for (const name of ["dimensions", "heads", "theta", "context"]) $(name).disabled = Boolean($("model").value);
  $("own-part").hidden = !shown.own.length;
  $("own").replaceChildren(...shown.own.map(figure));
  $("pictures").replaceChildren(...shown.pictures.map(figure));
  const pairs = (values) => values.map((_, place) => place);
  drawChart($("waves"), waves.map(({ name, lengths }) => ({ name, x: pairs(lengths), y: lengths })), { label: "Wave length in positions by pair, for each scaling", log: true, mark: { y: parameters.context } });
  drawChart($("decay"), decay.map(({ name, similarity }) => ({ name, x: pairs(similarity), y: similarity })), { label: "Similarity by distance" });
  $("slopes").replaceChildren(...slopes.map(({ head, slope, halves_at }) => {
    const line = element("tr"), name = element("th", "", String(head));
    name.scope = "row";
    line.append(name, element("td", "", number(slope, 5)), element("td", "", `${number(halves_at, 1)} tokens`));
    return line;
  }));
}
function figure(picture) {
  const node = element("figure"), canvas = element("canvas"), caption = element("figcaption"), [rows, columns] = picture.shape;
  const bytes = bytesOf(picture.image), draw = () => drawTwoSided(canvas, bytes, rows, columns);
  let place = [0, 0];
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", picture.title);
  canvas.setAttribute("aria-describedby", "detail");
  const tell = () => {
    const value = (bytes[place[0] * columns + place[1]] / 127.5 - 1) * picture.most;
    $("detail").textContent = `${picture.title}: ${picture.rows} ${place[0]}, ${picture.columns === picture.rows ? "with " : ""}${picture.columns} ${place[1]}: ${number(value, 2)}`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    place = [at((event.clientY - box.top) / box.height, rows), at((event.clientX - box.left) / box.width, columns)];
    tell();
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    place = [Math.min(rows - 1, Math.max(0, place[0] + move[0])), Math.min(columns - 1, Math.max(0, place[1] + move[1]))];
    tell();
  });
  canvas.addEventListener("focus", tell);
  canvas.redraw = draw;
  draw();
  caption.append(element("strong", "", picture.title), element("span", "soft", `${picture.meaning} Down: ${picture.rows}; across: ${picture.columns}.`));
  node.append(canvas, caption);
  return node;
}
for (const name of [...SIZES, "model"]) $(name).addEventListener("input", debounced(200, draw));
onTheme(() => { for (const canvas of document.querySelectorAll("figure canvas")) canvas.redraw(); });
$("export").addEventListener("click", async () => {
  $("export").disabled = true;
  try { save(await (await ask("api/positions/export", question())).blob(), "positions.html"); } catch (error) { fail(error); }
  $("export").disabled = false;
});

// --- finished runs ---

function drawRun() {
  const run = runs.find(({ name }) => name === $("run").value);
  $("run-choice").hidden = $("run-table").hidden = !run;
  if (!run) {
    $("run-note").textContent = "No finished run below the folder in which the Studio was started. Make one: lmworks eval positions --corpus runs/corpus --tokenizer runs/tokenizer --out runs/positions";
    return;
  }
  $("run-note").textContent = `${run.seeds} models per scheme, ${run.depth} layers, ${number(run.num_steps)} steps at ${number(run.context_length)} tokens; measured on ${number(run.windows)} windows of ${number(run.test_length)} tokens from ${number(run.documents)} documents.`;
  $("run-summary").textContent = run.summary;
  const middles = run.bins.map(([first, last]) => (first + last) / 2), trained = Math.min(...run.schemes.map(({ curve }) => Math.min(...curve.slice(0, 2))));
  drawChart($("run-chart"), run.schemes.map(({ name, curve }) => ({ name, x: middles, y: curve })), { label: "Bits per byte by position, for each scheme", mark: { x: run.context_length }, most: 1.3 * trained });
  $("run-table").tHead.rows[0].replaceChildren(element("th", "", "Scheme"), ...run.schemes[0].regions.map(({ name, first, last }) => element("th", "", `${name} (${number(first)} to ${number(last)})`)));
  $("run-table").tBodies[0].replaceChildren(...run.schemes.map((scheme) => {
    const line = element("tr"), head = element("th", "", scheme.name);
    head.scope = "row";
    head.append(element("span", "soft", scheme.about));
    line.append(head, ...scheme.regions.map(regionCell));
    return line;
  }));
}
function regionCell({ bits_per_byte, versus, versus_over_seeds, verdict }) {
  const node = element("td", "", number(bits_per_byte.estimate, 3));
  if (!versus) return node;
  const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(value), 3)}`;
  const range = ({ low, high }) => (low === null ? "" : ` [${signed(low)}, ${signed(high)}]`);
  node.append(element("span", "soft", `${signed(versus.estimate)}${range(versus)}`));
  if (versus_over_seeds) node.append(element("span", "soft", `seeds${range(versus_over_seeds) || ": one"}`));
  node.append(element("span", verdict === "better" || verdict === "worse" ? verdict : "soft", verdict));
  return node;
}
$("run").addEventListener("change", drawRun);

async function begin() {
  const values = new URLSearchParams(location.hash.slice(1));
  for (const name of SIZES) if (values.has(name)) $(name).value = values.get(name);
  try {
    const found = await (await ask("api/positions/runs")).json();
    runs = found.runs;
    $("model").append(...found.models.map((name) => new Option(name)));
    if (found.models.includes(values.get("model"))) $("model").value = values.get("model");
    $("run").replaceChildren(...runs.map(({ name }) => new Option(name)));
  } catch (error) { fail(error); }
  drawRun();
  await draw();
  document.body.dataset.ready = "1";
}
