// How a word came together: merge by merge, as the server recorded them.

let merging = new AbortController();
async function drawMerges() {
  if (!$("merges").open) return;
  merging.abort();
  merging = new AbortController();
  $("merge-note").textContent = "";
  $("merge-note").className = "note soft";
  const word = $("word").value, tokenizer = $("merging").value;
  if (!word || !tokenizer) { $("steps").replaceChildren(); return; }
  try {
    const pieces = await (await ask("api/tokenizers/merges", { tokenizer, word }, { signal: merging.signal })).json();
    const merges = pieces.reduce((sum, states) => sum + states.length - 1, 0);
    $("merge-note").textContent = `${pieces.length} piece${pieces.length === 1 ? "" : "s"}, ${merges} merge${merges === 1 ? "" : "s"}: always the pair that was learnt first. The number says when that was.`;
    $("steps").replaceChildren(...pieces.map(stepsOf));
  } catch (error) {
    if (error.name === "AbortError") return;
    $("merge-note").className = "note failure";
    $("merge-note").textContent = plain(error);
    $("steps").replaceChildren();
  }
}
function stepsOf(states) {
  const list = element("ol", "steps");
  list.append(...states.map(({ rank, place, symbols }) => {
    const line = element("li"), parts = element("span", "parts");
    parts.append(...symbols.map((text, at) => element("span", `p${at % 5}${at === place ? " made" : ""}`, text)));
    line.append(element("span", "soft", rank === null ? "the symbols" : `merge ${number(rank + 1)}`), parts);
    return line;
  }));
  return list;
}
$("merges").addEventListener("toggle", drawMerges);
$("merging").addEventListener("change", drawMerges);
$("word").addEventListener("input", debounced(150, drawMerges));
$("merge-form").addEventListener("submit", (event) => event.preventDefault());
