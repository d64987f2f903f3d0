// Asking, and following the answers that the server writes: by a stream, or by looking now and then
// where another process writes.

const following = new Map(); // message id -> AbortController

async function send(question) { // { content, attachments?, edited? }
  if (writing()) return;
  try {
    if (!current) {
      current = { messages: [], ...await get("api/conversations", { settings: draft }) };
      current.active_root = null;
      history.pushState(null, "", `#${current.id}`);
    }
    const id = current.id;
    if (!question.edited) question.parent = path().at(-1)?.id ?? null;
    take(await get(`api/conversations/${id}/answers`, question));
    loadList().catch(() => {});
    tell(id);
    return true;
  } catch (error) { fail(error); drawAll(); return false; }
}
async function regenerate(message) {
  if (writing()) return;
  try {
    take(await get(`api/conversations/${current.id}/messages/${message.id}/regenerate`, {}));
    tell(current.id);
  } catch (error) { fail(error); }
}
function take({ question, answer }) { // what was added, before the server is asked for all of it
  for (const message of [question, answer]) {
    const index = current.messages.findIndex(({ id }) => id === message.id);
    if (index < 0) current.messages.push(message);
    const above = current.messages.find(({ id }) => id === message.parent_id);
    if (above) above.active_child = message.id; else current.active_root = message.id;
  }
  const known = current.messages.find(({ id }) => id === question.id);
  known.active_child = answer.id;
  if (!current.title) current.title = question.content.split("\n")[0].slice(0, 60);
  drawAll();
  toEnd();
  followAll();
}
function followAll() {
  for (const message of path()) if (message.state === "writing" && !following.has(message.id)) follow(current, message);
}
function find(conversationId, messageId) {
  return current?.id === conversationId ? current.messages.find(({ id }) => id === messageId) : undefined;
}
async function follow(conversation, message) {
  const controller = new AbortController(), { id } = message;
  following.set(id, controller);
  let failures = 0, isFresh = true;
  try {
    for (;;) {
      try {
        const shown = find(conversation.id, id);
        if (!shown) return; // another conversation is open: the answer is read when this one is again
        if (isFresh) shown.content = "";
        const path = `api/conversations/${conversation.id}/messages/${id}/events?after=${shown.content.length}`;
        isFresh = false;
        for await (const event of events(await ask(path, undefined, { signal: controller.signal }))) {
          failures = 0;
          if (await heard(conversation.id, id, event)) return;
        }
      } catch (error) {
        if (controller.signal.aborted) return;
        failures += 1;
        if (!(error instanceof TypeError) || failures > 3) { lost(conversation.id, id, error); return; }
        await pause(300 * failures);
        isFresh = true;
      }
    }
  } finally { following.delete(id); busy(); }
}
const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));

async function heard(conversationId, id, event) { // true: that was the last of it
  const message = find(conversationId, id);
  if (!message) return true;
  if (event.message) {
    const isWritten = event.message.state === "writing"; // by another process, which we can't follow
    Object.assign(message, event.message);
    if (isWritten) { redraw(message); await pause(700); return false; }
    redraw(message, true);
    say(message.state === "whole" ? "The answer is complete" : message.info?.error ?? "Stopped");
    loadList().catch(() => {});
    loadModels().catch(() => {});
    tell(conversationId);
      if (panelShown() === "memory") drawMemory();
    return true;
  }
  if (event.status) message.status = event.status;
  if (event.prompt_tokens) message.prompt_tokens = event.prompt_tokens;
  if (event.text) message.content += event.text;
  redraw(message);
  return false;
}
function lost(conversationId, id, error) {
  const message = find(conversationId, id);
  if (!message) return;
  message.state = "cut";
  message.info = { ...message.info, error: plain(error) };
  say(plain(error));
  redraw(message, true);
}

let frame = 0;
const waiting = new Set();
function redraw(message, now = false) { // at most once per picture on screen
  waiting.add(message.id);
  if (now) { cancelAnimationFrame(frame); paint(); } else frame ||= requestAnimationFrame(paint);
}
function paint() {
  frame = 0;
  const isFollowing = atEnd();
  for (const message of path()) if (waiting.has(message.id) && drawn.has(message.id)) nodeOf(message);
  waiting.clear();
  busy();
  if (isFollowing) toEnd();
}
async function stop() {
  const message = writing();
  if (!message) return;
  try { await get(`api/conversations/${current.id}/messages/${message.id}/stop`, {}); } catch (error) { fail(error); }
}
function busy() {
  const isBusy = Boolean(writing());
  document.body.toggleAttribute("data-busy", isBusy);
  $("log").setAttribute("aria-busy", isBusy); // read out whole, not token by token
  $("act").setAttribute("aria-label", isBusy ? "Stop" : "Send");
  ready();
}
