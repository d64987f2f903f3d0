// The tables: figures, languages, and the words that change.

function total(key) { return full().reduce((sum, text) => sum + text[key], 0); }
function tokensOf(name) {
  const found = full().map(({ id }) => counts.get(`${name}\n${id}`));
  return found.length && found.every((tokens) => tokens !== undefined) ? found.reduce((a, b) => a + b) : null;
}
function cell(label, text, small, className) {
  const node = element("td");
  node.dataset.label = label;
  node.append(element("span", className ?? "", text));
  if (small !== null) node.append(element("span", "soft", small ?? ""));
  return node;
}
function between(interval, show) {
  return interval?.low == null ? "" : `[${show(interval.low)}, ${show(interval.high)}]`.replaceAll(" %", "");
}
function savedCell(row, wait, isFirst) {
  if (isFirst) return cell("Saved", "–", "the measure");
  if (!row?.saved) return cell("Saved", wait);
  const { estimate, low, high } = row.saved;
  const className = low > 0 ? "better" : high < 0 && high !== null ? "worse" : "";
  return cell("Saved", share(estimate), between(row.saved, share), className);
}
function failuresCell(row, wait) {
  if (!row) return cell("Round trip", wait);
  if (!row.failures) return cell("Round trip", "exact");
  const node = cell("Round trip", `${number(row.failures)} differ`, "", "worse");
  node.title = `Passages that do not come back as they were. The first: ${row.first_failure}`;
  return node;
}
function meterOf(part) {
  const meter = element("span", "meter"), bar = element("i");
  bar.style.transform = `scaleX(${part})`;
  meter.append(bar);
  return meter;
}
function figureRow(name, most) {
  const entry = loaded.find((other) => other.name === name), row = rows.get(name), tokens = tokensOf(name);
  const known = tokens !== null && tokens > 0, wait = full().length ? "…" : "–", head = element("th", "", name), line = element("tr");
  head.scope = "row";
  head.append(element("span", "soft", `${entry.kind}, ${number(entry.vocab_size)} tokens`));
  const amount = cell("Tokens", tokens === null ? wait : number(tokens));
  amount.lastChild.replaceWith(meterOf(known ? tokens / most : 0));
  line.append(
    head, amount,
    cell("Bytes per token", known ? number(total("bytes") / tokens, 3) : wait, between(row?.bytes_per_token, (value) => number(value, 3))),
    cell("Tokens per word", known ? number(tokens / Math.max(1, total("words")), 2) : wait),
    savedCell(row, wait, name === chosen[0]),
    cell("Of the window", !settings.window ? "–" : tokens === null ? wait : `${number(100 * tokens / settings.window, 1)} %`),
    cell("Price", !settings.price ? "–" : tokens === null ? wait : number(tokens * settings.price / 1e6, 6)),
    failuresCell(row, wait),
  );
  return line;
}
function drawFigures() {
  const most = Math.max(1, ...chosen.map((name) => tokensOf(name) ?? 0));
  $("figures").tBodies[0].replaceChildren(...chosen.map((name) => figureRow(name, most)));
}
function drawLanguages() {
  $("languages").hidden = !languageRows.length;
  const names = [...new Set(languageRows.map(({ tokenizer }) => tokenizer))];
  const languages = [...new Set(languageRows.map(({ language }) => language))];
  const most = Math.max(...languageRows.map(({ parity }) => parity));
  $("parity-note").textContent = "Parity: tokens for each token of the first text, where the texts say the same. " + (fairness.length
    ? "They have equally many lines, so each line is taken for a translation, and brackets are 95 % intervals over lines." : "With six lines or more that are translations of each other, it has an interval.");
  $("language-rows").tHead.rows[0].replaceChildren(...["Text", ...names].map((name) => element("th", "", name)));
  $("language-rows").tBodies[0].replaceChildren(...languages.map((language) => {
    const line = element("tr"), head = element("th", "", language);
    head.scope = "row";
    line.append(head, ...names.map((name) => {
      const row = languageRows.find((other) => other.tokenizer === name && other.language === language);
      const fair = fairness.find((other) => other.tokenizer === name && other.language === language)?.parity;
      const parity = fair?.estimate ?? row.parity, range = between(fair, (value) => number(value, 2));
      const node = cell(name, `${number(parity, 2)} ${range}`, `${number(row.tokens)} tokens, ${number(row.fertility, 2)} per word, ${number(row.bytes_per_token, 2)} bytes each`);
      node.insertBefore(meterOf(parity / most), node.lastChild);
      return node;
    }));
    return line;
  }));
}
async function drawChanges(signal) {
  const [before, after] = [$("before").value, $("after").value];
  $("changes").hidden = chosen.length < 2 || !full().length;
  if ($("changes").hidden || before === after) { showWords([], 0); $("changes-sum").textContent = ""; return; }
  const body = () => ({ texts: question().texts, before, after });
  const found = await (await askAbout("api/tokenizers/changes", body, signal)).json();
  const cost = settings.price ? `, ${number(Math.abs(found.saved) * settings.price / 1e6, 6)} in price` : "";
  const lost = found.gained - found.saved;
  $("changes-sum").textContent = !found.num_changed ? "No word is cut into another number of tokens." :
    `${number(found.num_changed)} word${found.num_changed === 1 ? " is" : "s are"} cut into another number of tokens: ${number(found.gained)} saved, ${number(lost)} lost${cost}.`;
  showWords(found.words, SHOWN_WORDS);
}
function showWords(words, most) {
  $("words").tBodies[0].replaceChildren(...words.slice(0, most).map(changedRow));
  $("more-words").hidden = words.length <= most;
  $("more-words").textContent = `Show ${number(words.length)}`;
  $("more-words").onclick = () => showWords(words, words.length);
}
function changedRow(word) {
  const line = element("tr"), head = element("th", "", word.word);
  head.scope = "row";
  const cut = (label, parts) => {
    const node = element("td", "parts");
    node.dataset.label = label;
    node.append(...parts.map((part, place) => element("span", `p${place % 5}`, part)));
    return node;
  };
  line.append(head, cell("Times", number(word.count), null), cut("Before", word.before), cut("After", word.after),
    cell("Tokens saved", `${word.saved > 0 ? "+" : "−"}${number(Math.abs(word.saved))}`, null, word.saved > 0 ? "better" : "worse"));
  return line;
}
