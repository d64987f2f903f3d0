// Texts to begin with. The same sentences in several languages, line by line, show parity.

const SENTENCES = {
  English: "Water boils at one hundred degrees.\nHigh in the mountains it boils sooner.\nWhoever cooks rice up there needs patience.\nThe old bridge was closed last winter.\nNobody knows when the next train will come.\nWe drank tea and waited until evening.\nMy sister writes letters with a green pen.\n",
  German: "Wasser kocht bei hundert Grad.\nHoch in den Bergen kocht es früher.\nWer dort oben Reis kocht, braucht Geduld.\nDie alte Brücke wurde letzten Winter gesperrt.\nNiemand weiß, wann der nächste Zug kommt.\nWir tranken Tee und warteten bis zum Abend.\nMeine Schwester schreibt Briefe mit einem grünen Stift.\n",
  Spanish: "El agua hierve a cien grados.\nEn lo alto de las montañas hierve antes.\nQuien cocina arroz allí arriba necesita paciencia.\nEl viejo puente se cerró el invierno pasado.\nNadie sabe cuándo llegará el próximo tren.\nBebimos té y esperamos hasta la noche.\nMi hermana escribe cartas con un bolígrafo verde.\n",
  Russian: "Вода кипит при ста градусах.\nВысоко в горах она закипает раньше.\nТому, кто варит там рис, нужно терпение.\nСтарый мост закрыли прошлой зимой.\nНикто не знает, когда придёт следующий поезд.\nМы пили чай и ждали до вечера.\nМоя сестра пишет письма зелёной ручкой.\n",
  Arabic: "يغلي الماء عند مئة درجة.\nفي أعالي الجبال يغلي أسرع.\nمن يطبخ الأرز هناك يحتاج إلى الصبر.\nأُغلق الجسر القديم في الشتاء الماضي.\nلا أحد يعرف متى يأتي القطار التالي.\nشربنا الشاي وانتظرنا حتى المساء.\nأختي تكتب الرسائل بقلم أخضر.\n",
  Hindi: "पानी सौ डिग्री पर उबलता है।\nऊँचे पहाड़ों में वह जल्दी उबलता है।\nवहाँ चावल पकाने वाले को धीरज चाहिए।\nपुराना पुल पिछली सर्दियों में बंद हो गया।\nकोई नहीं जानता कि अगली रेलगाड़ी कब आएगी।\nहमने चाय पी और शाम तक इंतज़ार किया।\nमेरी बहन हरी कलम से चिट्ठियाँ लिखती है।\n",
  Japanese: "水は百度で沸騰する。\n高い山ではもっと早く沸騰する。\nそこで米を炊く人には忍耐が要る。\n古い橋は去年の冬に閉鎖された。\n次の電車がいつ来るか誰も知らない。\n私たちはお茶を飲んで夕方まで待った。\n妹は緑色のペンで手紙を書く。\n",
};
const EXAMPLES = {
  "English": [["English", SENTENCES.English + "\nIt isn't unbelievable: the cook's counter-intuitive, re-heated leftovers weren't half bad.\n"]],
  "Deutsch": [["Deutsch", SENTENCES.German + "\nDie Donaudampfschifffahrtsgesellschaft heißt Größere ebenso willkommen wie Übermüdete.\n"]],
  "Seven languages": Object.entries(SENTENCES),
  "Code": [["code", "def mean(values: list[float]) -> float:\n    \"\"\"The arithmetic mean; NaN for none.\"\"\"\n    if not values:\n        return float(\"nan\")\n\n    return sum(values) / len(values)  # O(n)\n\n\nassert mean([1.5, 2.5]) == 2.0\n\tfor (int i = 0; i < 10; i++) { x[i] += 0xFF; }\n"]],
  "Numbers and signs": [["numbers", "3.14159 · 1,234,567.89 · 2026-11-24T15:04:05Z · 0x7fff\n+49 (0)30 901820 · user_name@example.org · C:\\Temp\\a b.txt\n½ × 10⁻³ ≈ 0.0005 ≠ 5e-4?!   ...   — “quoted”\n"]],
  "Emoji and marks": [["emoji", "🙂 👩‍👩‍👧 🇩🇪 👍🏽 ❤️ e\u0301 = é, a\u0308 = ä, ﬁ, ①, Ａ\n<|endoftext|> <s> [MASK] stay text unless you let them be read\n"]],
};
