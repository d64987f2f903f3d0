// Thumbs under an answer, and after a thumb down: what was wrong, or the answer as it should be.

let asking = null; // the id of the answer of which it is asked what was wrong

function thumbs(message) {
  const node = element("span", "thumbs");
  for (const [rating, label] of [["up", "Good answer"], ["down", "Bad answer"]]) {
    const button = iconButton(`thumb-${rating}`, label, () => rate(message, rating));
    button.setAttribute("aria-pressed", message.feedback?.rating === rating);
    node.append(button);
  }
  return node;
}
async function rate(message, rating, comment = "") {
  const isTaken = message.feedback?.rating === rating && !comment; // the same thumb again takes it back
  const path = `api/conversations/${current.id}/messages/${message.id}/feedback`;
  try {
    const { feedback } = await get(path, { rating: isTaken ? null : rating, comment });
    message.feedback = feedback;
    asking = feedback?.rating === "down" && !comment ? message.id : null;
    say(feedback ? "Thank you" : "Taken back");
    drawAll();
    drawn.get(message.id)?.querySelector(asking ? ".wrong input" : `.thumbs [aria-label="${rating === "up" ? "Good" : "Bad"} answer"]`)?.focus();
    tell(current.id);
  } catch (error) { fail(error); }
}
function wrong(message) { // what was wrong: a word on it, or a correction
  const form = element("div", "wrong"), text = element("input"), send = element("button", "button", "Send");
  text.placeholder = "What was wrong?";
  text.maxLength = 1000;
  text.setAttribute("aria-label", "What was wrong?");
  const correct = element("button", "button", "Write it better");
  send.type = correct.type = "button";
  const end = () => { asking = null; drawAll(); };
  const sendIt = () => { const said = text.value.trim(); if (said) rate(message, "down", said); else end(); };
  send.addEventListener("click", sendIt);
  correct.addEventListener("click", () => { asking = null; edit(message.id); });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); end(); $("input").focus(); }
    if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); sendIt(); }
  });
  form.append(text, send, correct);
  return form;
}
