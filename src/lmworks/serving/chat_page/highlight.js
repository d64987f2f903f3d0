// Colours for code: words, strings, comments and numbers, as most languages have them.

const WORDS = new Set(("abstract and as assert async await base begin bool boolean break case catch char class const continue "
  + "def default defer del delete do double elif else elsif end enum except export extends false final finally float fn for "
  + "foreach from func function global goto if impl implements import in instanceof int interface is lambda let local long loop "
  + "match mod module mut namespace new nil none nonlocal not null of or package pass private protected pub public raise ref "
  + "return self select short static string struct super switch table then this throw throws trait true try type typedef "
  + "typeof undefined union unsafe unsigned use using val var void volatile when where while with yield "
  + "insert update into values group order by having join left right inner outer on limit create drop").split(" "));
const HASH = new Set("python py bash sh shell zsh ruby rb yaml yml toml r perl make makefile dockerfile elixir conf ini nim".split(" "));
const DASHES = new Set("sql lua haskell hs ada elm".split(" "));
const PLAIN = new Set("text txt plain output console log markdown md diff csv".split(" "));
const LONGEST = 60_000; // characters

function highlight(code, text, language) {
  if (!language || PLAIN.has(language) || text.length > LONGEST) { code.textContent = text; return; }
  const comment = HASH.has(language) ? "#[^\\n]*" : DASHES.has(language) ? "--[^\\n]*" : "\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)|<!--[\\s\\S]*?(?:-->|$)";
  const pieces = new RegExp(`(${comment})|("""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'?|\`(?:\\\\.|[^\`\\\\])*\`?)|([A-Za-z_$][\\w$]*)|(\\b\\d[\\w.]*)`, "g");
  const ignoreCase = language === "sql";
  let at = 0;
  for (const found of text.matchAll(pieces)) {
    const [whole, note, quoted, word] = found;
    if (word && !WORDS.has(ignoreCase ? word.toLowerCase() : word)) {
      if (!/^(True|False|None)$/.test(word)) continue;
    }
    if (found.index > at) code.append(text.slice(at, found.index));
    code.append(element("span", note ? "c" : quoted ? "s" : word ? "k" : "n", whole));
    at = found.index + whole.length;
  }
  code.append(text.slice(at));
}
