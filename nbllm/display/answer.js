// The live view of one answer. Deltas arrive with their offset; what was missed is asked for again. In JupyterLab
// the page's own markdown renderer draws them, untrusted and so sanitised; elsewhere they stay plain text until the
// kernel puts the finished markdown in the view's place.

const states = (globalThis.__nbllmAnswers ??= new Map());

function initialize({ model }) {
  // State lives with the model, not with a view: deltas may arrive before there is one, or when there are two.
  const state = { text: "", at: 0, listeners: new Set() };
  const changed = () => state.listeners.forEach((listener) => listener());
  const adopt = () => {
    const { text, at } = model.get("snapshot");
    if (at > state.at) Object.assign(state, { text, at });
  };
  adopt();
  model.on("msg:custom", ({ at, next, delta }) => {
    if (delta === undefined) return;
    if (at === state.at) Object.assign(state, { text: state.text + delta, at: next });
    else if (at > state.at) model.send({ ask: "resync", at: state.at });
    changed();
  });
  model.on("change:snapshot", () => { adopt(); changed(); });
  model.on("change:final", () => { changed(); settle(model); });
  states.set(model.get("key"), state);
  if (model.get("final")) setTimeout(() => settle(model), 500);
  return () => states.delete(model.get("key"));
}

// After a page was reloaded in mid-stream, the kernel's update of the output no longer reaches it: the view itself then
// puts the finished markdown into the notebook. Where the update did arrive, there is nothing left to replace.
function settle(model) {
  const final = model.get("final");
  const cells = model.widget_manager?.context?.model?.cells;
  if (!final || !cells) return;
  for (const cell of cells) {
    const outputs = cell.outputs;
    for (let i = 0; i < (outputs?.length ?? 0); i++) {
      const view = outputs.get(i).data?.["application/vnd.jupyter.widget-view+json"];
      if (view && view.model_id === model.get("own_id")) {
        const json = outputs.get(i).toJSON();
        outputs.set(i, { ...json, data: final.data, metadata: final.metadata });
      }
    }
  }
  model.send({ ask: "close" });
}

// JupyterLab's renderer with a sanitizer on top of its own: an image, or anything else with a source, would be fetched by
// the browser without a click, and its address can carry what the model was told.
function harmless(rendermime) {
  const sanitize = (dirty, options) => {
    const { body } = new DOMParser().parseFromString(rendermime.sanitizer.sanitize(dirty, options), "text/html");
    for (const node of body.querySelectorAll("[src], [srcset], [poster], [background], img, picture, video, audio")) {
      node.replaceWith(`[${node.alt || node.localName}]`);
    }
    return body.innerHTML;
  };
  return rendermime.clone({ sanitizer: { ...rendermime.sanitizer, sanitize } });
}

// Where the text may be cut so that what lies before is finished: a blank line outside fences, followed by a line that
// can continue neither a list nor a quotation.
function finishedLength(text) {
  let cut = 0, fence = null, position = 0, blank = false;
  for (const line of text.split("\n")) {
    const mark = line.match(/^ {0,3}(`{3,}|~{3,})/)?.[1];
    if (fence) {
      if (mark && mark[0] === fence[0] && mark.length >= fence.length && !line.trim().slice(mark.length)) fence = null;
    } else {
      if (blank && /^[^\s>*+\-\d|]/.test(line)) cut = position;
      if (mark) fence = mark;
    }
    blank = !fence && line.trim() === "";
    position += line.length + 1;
  }
  return cut;
}

function render({ model, el }) {
  const state = states.get(model.get("key"));
  const host = model.widget_manager?.rendermime;
  const rendermime = host && harmless(host);
  el.classList.add("nbllm-answer");
  const body = el.appendChild(document.createElement("div"));
  body.className = "nbllm-answer-body";
  body.setAttribute("aria-live", "polite");
  const stop = el.appendChild(stopButton(model));
  let frozen = 0, tail = null, drawing = false, dirty = false, scheduled = 0;

  async function markdown(text) {
    const renderer = rendermime.createRenderer("text/markdown");
    await renderer.renderModel({
      data: { "text/markdown": text }, metadata: {}, trusted: false, setData() {},
    });
    rendermime.latexTypesetter?.typeset(renderer.node);
    return renderer.node;
  }

  async function draw() {
    const rest = state.text.slice(frozen);
    if (!rendermime) { body.textContent = state.text; body.classList.add("nbllm-plain"); return; }
    const cut = finishedLength(rest);
    if (cut) {
      const block = await markdown(rest.slice(0, cut));
      tail ? tail.replaceWith(block) : body.append(block);
      tail = null;
      frozen += cut;
    }
    const node = await markdown(state.text.slice(frozen));
    tail ? tail.replaceWith(node) : body.append(node);
    tail = node;
  }

  async function paint() {
    scheduled = 0;
    if (drawing) { dirty = true; return; }
    drawing = true;
    try { await draw(); } finally { drawing = false; }
    stop.hidden = Boolean(model.get("final"));
    el.classList.toggle("nbllm-waiting", !state.text && !model.get("final"));
    if (dirty) { dirty = false; schedule(); }
  }

  const schedule = () => { scheduled ||= requestAnimationFrame(paint); };
  state.listeners.add(schedule);
  schedule();
  return () => state.listeners.delete(schedule);
}

function stopButton(model) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "nbllm-stop";
  button.textContent = "Stop";
  button.title = "Stop this answer; what has arrived stays";
  button.onclick = async () => {
    button.disabled = true;
    model.send({ ask: "stop" });
    // Kernels without subshells handle the click only after the cell: then interrupt the cell instead. Not when the click was
    // heard or the cell has ended meanwhile, or the interrupt would strike the next cell.
    const heard = new Promise((done) => {
      model.on("msg:custom", ({ stopping }) => stopping && done(true));
      model.on("change:final", () => done(true));
    });
    const late = new Promise((done) => setTimeout(() => done(false), 400));
    if (!(await Promise.race([heard, late])) && !model.get("final")) model.widget_manager?.kernel?.interrupt();
  };
  return button;
}

export default { initialize, render };
