// The live view of several answers: a table of how they go, and below it their texts in columns.

const FINAL = ["complete", "interrupted", "incomplete", "failed"];
const PER_TOKEN = 4; // as in compare.py
const STATE = 0, FIRST = 1, TIME = 2, SPEED = 3, TOKENS = 4;

function render({ model, el }) {
  const state = states.get(model.get("key"));
  const names = model.get("names");
  el.classList.add("nbllm-compare");
  const table = el.appendChild(make("div", "nbllm-compare-table jp-RenderedHTMLCommon")).appendChild(make("table"));
  const head = table.appendChild(make("thead")).appendChild(make("tr"));
  for (const heading of ["Model", "State", "First token", "Time", "Tokens/s", "Tokens", "Cost"]) {
    head.append(make("th", "", heading));
  }
  const all = stopButton(model);
  all.textContent = "Stop all";
  all.title = "Stop all answers; what has arrived stays";
  head.children[1].replaceChildren(controls(make("span", "", "State"), all));
  const lines = table.appendChild(make("tbody"));
  const grid = el.appendChild(make("div", "nbllm-compare-grid"));
  const status = el.appendChild(make("div", "nbllm-compare-status"));
  status.setAttribute("role", "status"); // what is read aloud: that one has ended, not each word
  const columns = names.map((name, index) => column(model, state, index, name, lines, grid));
  let next = 0, said = "";

  // One column a frame, in turn: four that grow would block the page four times as long.
  const schedule = paced(async () => {
    for (let tried = 0; tried < columns.length; tried++) {
      const drawn = await columns[next].draw();
      next = (next + 1) % columns.length;
      if (drawn) { schedule(); return; }
    }
  });
  const count = () => {
    const rows = model.get("rows");
    rows.forEach((row, index) => columns[index].tell(row, state.now()));
    const ended = rows.filter((row) => FINAL.includes(row.state)).length;
    all.disabled ||= ended === rows.length;
    const words = ended ? `${ended} of ${rows.length} have ended` : "";
    if (words !== said) status.textContent = said = words;
    if (ended === rows.length) clearInterval(timer);
  };
  const timer = setInterval(count, 250);
  const changed = () => { count(); schedule(); };
  state.listeners.add(schedule);
  model.on("change:rows", changed);
  changed();
  return () => { clearInterval(timer); state.listeners.delete(schedule); model.off("change:rows", changed); };
}

function column(model, state, index, name, lines, grid) {
  const part = String(index);
  const line = lines.appendChild(make("tr"));
  line.append(make("td", "", name));
  const cells = ["State", "First token", "Time", "Tokens/s", "Tokens", "Cost"].map(() => line.appendChild(make("td", "", "—")));
  const words = make("span", "", "");
  const stop = stopButton(model, part);
  stop.title = "Stop this answer; what has arrived stays";
  stop.setAttribute("aria-label", `Stop ${name}`);
  cells[STATE].replaceChildren(controls(words, stop));
  const section = grid.appendChild(make("section", "nbllm-column"));
  section.setAttribute("aria-label", `Answer of ${name}`);
  section.appendChild(make("div", "nbllm-column-name jp-RenderedHTMLCommon")).append(make("h4", "", name));
  const body = section.appendChild(make("div", "nbllm-answer-body"));
  const error = section.appendChild(make("div", "nbllm-column-error"));
  body.classList.toggle("nbllm-code", model.get("plain"));
  const draw = model.get("plain") ? growingText(body) : growingMarkdown(model, body);
  let drawn = 0, began = null, thought = false;

  return {
    // Whether there was something to draw.
    async draw() {
      const { text } = state.part(part);
      if (text.length === drawn) return false;
      drawn = text.length;
      await draw(text);
      return true;
    },
    tell(row, now) {
      const { text } = state.part(part);
      const over = FINAL.includes(row.state);
      row.cells.forEach((said, at) => { put(at === STATE ? words : cells[at], said); });
      section.classList.toggle("nbllm-waiting", !text && !over);
      if (over) {
        stop.disabled = true;
        stop.classList.add("nbllm-gone"); // it keeps its place
        put(error, [row.error, row.action && `→ ${row.action}`].filter(Boolean).join("\n"));
        return;
      }
      const shown = (seconds) => `${seconds.toFixed(1)}\u00a0s`;
      if (row.first === null) put(cells[FIRST], `${shown(now)} …`);
      put(cells[TIME], shown(now));
      thought ||= row.cells[STATE] === "thinking"; // what is not seen is not counted, nor is its time
      if (!text) return;
      began ??= thought ? now : row.first ?? now;
      const tokens = text.length / PER_TOKEN;
      put(cells[TOKENS], `≈\u00a0${Math.round(tokens)}`);
      if (now - began > 0.5) put(cells[SPEED], `≈\u00a0${Math.round(tokens / (now - began))}`);
    },
  };
}

function controls(words, button) {
  const both = make("div", "nbllm-compare-state");
  both.append(words, button);
  return both;
}

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = text;
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export default {
  initialize({ model }) {
    const forget = receive(model);
    // The kernel's seconds at the moment when it told its state, which this page counts on.
    const origin = performance.now() / 1000 - model.get("clock");
    states.get(model.get("key")).now = () => performance.now() / 1000 - origin;
    return forget;
  },
  render,
};
