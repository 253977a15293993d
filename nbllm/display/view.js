// The live views' side of `LiveWidget`: what has arrived, Stop, and what is to be done at the end.

const states = (globalThis.__nbllmStates ??= new Map());

// Keeps what arrives of each part of an answer ("text", "reasoning", …) with the model, not with a view: deltas may come
// before there is one, or when there are two. Returns what anywidget's `initialize` is to return.
function receive(model) {
  const parts = {};
  const part = (name) => (parts[name] ??= { text: "", at: 0 });
  const state = { part, listeners: new Set() };
  const changed = () => state.listeners.forEach((listener) => listener());
  const adopt = () => {
    for (const [name, { text, at }] of Object.entries(model.get("snapshot"))) {
      if (at > part(name).at) parts[name] = { text, at };
    }
  };
  adopt();
  const take = ({ part: name, at, next, delta }) => {
    if (delta === undefined) return;
    const known = part(name);
    if (at === known.at) parts[name] = { text: known.text + delta, at: next };
    else if (at > known.at) model.send({ ask: "resync", part: name, at: known.at });
    changed();
  };
  model.on("msg:custom", (message) => {
    if (message.static) replaceView(model, message.static);
    else if (message.parts) {
      for (const [name, [at, delta]] of Object.entries(message.parts)) {
        take({ part: name, at, next: at + [...delta].length, delta });
      }
    } else take(message);
  });
  model.on("change:snapshot", () => { adopt(); changed(); });
  model.on("change:final", () => { changed(); settle(model); });
  states.set(model.get("key"), state);
  if (model.get("final")) setTimeout(() => settle(model), 500);
  return () => states.delete(model.get("key"));
}

// After a page was reloaded in mid-stream, the kernel's update of the output no longer reaches it: the view itself then asks
// for the finished form and puts it into the notebook. Where the update did arrive, there is nothing left to replace.
function settle(model) {
  if (!model.get("final") || !model.widget_manager?.context?.model?.cells) return;
  model.send({ ask: outputsOf(model).length ? "final" : "close" });
}

function replaceView(model, { data, metadata }) {
  for (const [outputs, i] of outputsOf(model)) outputs.set(i, { ...outputs.get(i).toJSON(), data, metadata });
  model.send({ ask: "close" });
}

// Where in the notebook the view is still kept as an output.
function outputsOf(model) {
  const found = [];
  for (const { outputs } of model.widget_manager?.context?.model?.cells ?? []) {
    for (let i = 0; i < (outputs?.length ?? 0); i++) {
      const view = outputs.get(i).data?.["application/vnd.jupyter.widget-view+json"];
      if (view && view.model_id === model.get("own_id")) found.push([outputs, i]);
    }
  }
  return found;
}

// A button that stops the answer, or with a name only that part of it.
function stopButton(model, part) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "nbllm-stop";
  button.textContent = "Stop";
  button.title = "Stop this answer; what has arrived stays";
  button.onclick = async () => {
    button.disabled = true;
    model.send({ ask: "stop", part });
    // Kernels without subshells handle the click only after the cell: then interrupt the cell instead. Not when the click was
    // heard or the cell has ended meanwhile, or the interrupt would strike the next cell.
    const heard = new Promise((done) => {
      model.on("msg:custom", ({ stopping }) => stopping && done(true));
      model.on("change:final", () => done(true));
    });
    const late = new Promise((done) => setTimeout(() => done(false), 400));
    if ((await Promise.race([heard, late])) || model.get("final")) return;
    if (part === undefined) model.widget_manager?.kernel?.interrupt();
    else button.title = "This kernel hears it only after the cell; Stop all works";
  };
  return button;
}
