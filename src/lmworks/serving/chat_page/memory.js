// What a model was sent, or would be sent now, part by part, and why.

let memoryFor = null; // an answer whose prompt is shown; null: the newest, or the one to come

function memoryOf(message) {
  const { left_out: left, recalled, noted } = message.info?.memory ?? {};
  return { left, recalled, noted };
}
function showMemoryOf(message) {
  memoryFor = message.id;
  showPanel("memory");
}
const NAMES = { system: "System prompt", summary: "Notes", recalled: "Recalled", turn: "Messages", template: "Template", answer: "Kept for the answer" };

async function drawMemory() {
  const shown = path().find(({ id }) => id === memoryFor) ?? lastAnswer();
  const nodes = [];
  if (shown?.info?.memory) {
    try {
      const plan = await get(`api/conversations/${current.id}/messages/${shown.id}/memory`);
      if (!current || panelShown() !== "memory") return;
      nodes.push(...memoryNodes(plan, shown));
    } catch (error) { nodes.push(element("p", "failure", plain(error))); }
  } else nodes.push(element("p", "", "With each answer you can see here what the model was sent: the system prompt, the messages, and what was recalled or left out because not all of it fits."));
  $("memory").replaceChildren(...nodes);
}
function memoryNodes(plan, message) {
  const sums = {}, nodes = [];
  for (const { kind, tokens } of plan.parts) sums[kind] = (sums[kind] ?? 0) + Math.max(0, tokens);
  const limit = plan.context_tokens, about = plan.exact ? "" : "about ";
  nodes.push(element("p", "total", limit ? `${about}${number(plan.prompt_tokens)} of ${number(limit)} tokens sent` : `${about}${number(plan.prompt_tokens)} tokens sent`));
  if (limit) sums.answer = plan.answer_tokens;
  const gauge = element("div", "gauge"), names = element("div", "keys-of");
  const whole = limit ?? plan.prompt_tokens;
  for (const [kind, tokens] of Object.entries(sums)) {
    if (!tokens) continue;
    const bar = element("i", `of-${kind}`), key = element("span", `of-${kind}`, `${NAMES[kind]} ${number(tokens)}`);
    bar.style.width = `${100 * tokens / whole}%`;
    gauge.append(bar);
    names.append(key);
  }
  nodes.push(gauge, names);
  const place = path().findIndex(({ id }) => id === message.id);
  nodes.push(element("p", "", `For answer ${Math.floor(place / 2) + 1} by ${message.model}. ${plan.exact ? "Counted by the model's own tokenizer." : "Estimated: the endpoint's tokenizer is not here."}`));
  nodes.push(element("h3", "", "Sent"), ...plan.parts.filter(({ kind }) => kind !== "template").map((part) => partNode(part, textOf(part))));
  if (plan.left_out.length) {
    nodes.push(element("h3", "", "Left out"));
    nodes.push(...plan.left_out.map((item) => partNode({ ...item, kind: "left" }, textOf(item))));
  }
  return nodes;
}
function textOf({ text, turn_id: id, kind }) {
  if (text) return text;
  if (kind === "system") return settings().system;
  const message = current.messages.find((each) => each.id === id);
  return message ? [...message.attachments.map(({ name }) => `[${name}]`), message.content].join("\n") : "";
}
function partNode({ kind, role, number: place, tokens, why }, text) {
  const node = element("details", `part of-${kind}`), head = element("summary");
  const who = kind === "turn" || kind === "left" ? `${place} ${role === "user" ? "you" : role === "assistant" ? "model" : role}` : kind === "recalled" ? `${place || ""} recalled` : NAMES[kind];
  head.append(element("span", "who", who), element("span", "what", text.slice(0, 120)), element("span", "tokens", number(tokens)));
  node.append(head);
  if (why) node.append(element("div", "why", kind === "recalled" && role ? `${role}: ${why}` : why));
  node.append(element("pre", "", text));
  return node;
}
