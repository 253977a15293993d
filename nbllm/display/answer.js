// The live view of one answer: its reasoning, folded away, its text, and a line below with what is known of it and Stop.

function render({ model, el }) {
  const state = states.get(model.get("key"));
  el.classList.add("nbllm-answer");
  const reasoning = thoughts(state);
  const body = document.createElement("div");
  body.className = "nbllm-answer-body";
  body.setAttribute("aria-live", "polite");
  const foot = document.createElement("p");
  foot.className = "nbllm-foot";
  const status = foot.appendChild(document.createElement("em"));
  const stop = foot.appendChild(stopButton(model));
  el.append(reasoning.node, body);
  const plain = model.get("plain");
  body.classList.toggle("nbllm-code", plain);
  const drawText = plain ? growingText(body) : growingMarkdown(model, body, foot);
  if (plain) el.append(foot);

  const schedule = paced(async () => {
    const over = Boolean(model.get("final"));
    // In most places the finished output has taken the view's place by now.
    if (over) await new Promise((done) => setTimeout(done, 300));
    if (over && !el.isConnected) return;
    const { text } = state.part("text");
    el.classList.toggle("nbllm-waiting", !text && !state.part("reasoning").text && !over);
    stop.hidden = over;
    status.textContent = model.get("status");
    reasoning.draw(Boolean(text) || over);
    await drawText(text);
  });
  state.listeners.add(schedule);
  model.on("change:status", schedule);
  schedule();
  return () => { state.listeners.delete(schedule); model.off("change:status", schedule); reasoning.stop(); };
}

// What the model thinks before it speaks, in a part that can be unfolded.
function thoughts(state) {
  const node = document.createElement("details");
  node.className = "nbllm-reasoning";
  node.hidden = true;
  const summary = node.appendChild(document.createElement("summary"));
  const box = node.appendChild(document.createElement("div"));
  const draw = growingText(box);
  let timer = 0, over = false;
  const tell = () => {
    const { began, ended } = state;
    const seconds = Math.round(((ended ?? performance.now()) - began) / 1000);
    const shown = seconds ? ` ${ended ? "for " : ""}${seconds} s` : "";
    summary.textContent = ended ? `Thought${shown}` : `Thinking…${shown}`;
  };
  const stop = () => { clearInterval(timer); timer = 0; };
  const unfolded = () => {
    const below = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
    draw(state.part("reasoning").text);
    if (below) box.scrollTop = box.scrollHeight;
  };
  node.ontoggle = () => { if (node.open) { unfolded(); box.scrollTop = box.scrollHeight; } };
  return {
    node,
    stop,
    draw(ended) {
      if (!state.part("reasoning").text) return;
      node.hidden = false;
      state.began ??= performance.now();
      if (ended) state.ended ??= performance.now();
      if (node.open) unfolded();
      if (over) return;
      over = ended;
      tell();
      if (ended) stop();
      else timer ||= setInterval(tell, 1000);
    },
  };
}

export default { initialize: ({ model }) => receive(model), render };
