// Texts to begin with. The sentence in several languages shows parity.

const SENTENCE = {
  English: "Water boils at one hundred degrees, and high in the mountains it boils sooner. Whoever cooks rice up there needs more patience than wood.\n",
  German: "Wasser kocht bei hundert Grad, und hoch in den Bergen kocht es früher. Wer dort oben Reis kocht, braucht mehr Geduld als Holz.\n",
  Spanish: "El agua hierve a cien grados, y en lo alto de las montañas hierve antes. Quien cocina arroz allí arriba necesita más paciencia que leña.\n",
  Russian: "Вода кипит при ста градусах, а высоко в горах она закипает раньше. Кто варит там рис, тому терпения нужно больше, чем дров.\n",
  Arabic: "يغلي الماء عند مئة درجة، وفي أعالي الجبال يغلي أسرع. من يطبخ الأرز هناك يحتاج إلى الصبر أكثر من الحطب.\n",
  Hindi: "पानी सौ डिग्री पर उबलता है, और ऊँचे पहाड़ों में जल्दी उबलता है। वहाँ चावल पकाने वाले को लकड़ी से ज़्यादा धीरज चाहिए।\n",
  Japanese: "水は百度で沸騰し、高い山ではもっと早く沸騰する。そこで米を炊く人には、薪よりも忍耐が要る。\n",
};
const EXAMPLES = {
  "English": [["English", SENTENCE.English + "\nIt isn't unbelievable: the cook's counter-intuitive, re-heated leftovers weren't half bad.\n"]],
  "Deutsch": [["Deutsch", SENTENCE.German + "\nDie Donaudampfschifffahrtsgesellschaft heißt Größere ebenso willkommen wie Übermüdete.\n"]],
  "Seven languages": Object.entries(SENTENCE),
  "Code": [["code", "def mean(values: list[float]) -> float:\n    \"\"\"The arithmetic mean; NaN for none.\"\"\"\n    if not values:\n        return float(\"nan\")\n\n    return sum(values) / len(values)  # O(n)\n\n\nassert mean([1.5, 2.5]) == 2.0\n\tfor (int i = 0; i < 10; i++) { x[i] += 0xFF; }\n"]],
  "Numbers and signs": [["numbers", "3.14159 · 1,234,567.89 · 2026-11-24T15:04:05Z · 0x7fff\n+49 (0)30 901820 · user_name@example.org · C:\\Temp\\a b.txt\n½ × 10⁻³ ≈ 0.0005 ≠ 5e-4?!   ...   — “quoted”\n"]],
  "Emoji and marks": [["emoji", "🙂 👩‍👩‍👧 🇩🇪 👍🏽 ❤️ e\u0301 = é, a\u0308 = ä, ﬁ, ①, Ａ\n<|endoftext|> <s> [MASK] stay text unless you let them be read\n"]],
};
