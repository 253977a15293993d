// Draws markdown that grows, in JupyterLab by the page's own renderer, untrusted and so sanitised; elsewhere as plain text.
// Shared by the live views: `LiveWidget` puts this and view.js in front of each view's own module.

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

// A block longer than this is cut where that shows least, since what is not finished is drawn anew again and again.
const LONG = 3000;

const ITEM = /^(?:[-*+]|\d{1,9}[.)])[ \t]/;

// Of a long unfinished block, what may be drawn once and for all: a piece of code, which goes on below under the same first
// line (`opening`), whole items of a list, or whole sentences. Null where it cannot be cut.
function finishedPiece(text) {
  let fence = null, opening = "", start = 0, position = 0, item = 0;
  for (const line of text.split("\n")) {
    const mark = line.match(/^(`{3,}|~{3,})/)?.[1];
    if (fence) {
      if (mark && mark[0] === fence[0] && mark.length >= fence.length && !line.trim().slice(mark.length)) fence = null;
    } else if (mark) {
      [fence, opening, start] = [mark, `${line}\n`, position];
    } else if (ITEM.test(line)) {
      item = position;
    }
    position += line.length + 1;
  }
  if (fence && start) return { piece: text.slice(0, start), opening: "", closing: "", join: "" };
  if (fence) {
    const piece = text.slice(0, text.lastIndexOf("\n") + 1);
    return piece.length > opening.length ? { piece, opening, closing: fence, join: "nbllm-cut" } : null;
  }
  const whole = { opening: "", closing: "" };
  if (ITEM.test(text)) return item ? { ...whole, piece: text.slice(0, item), join: "nbllm-cut" } : null;
  if (/^[ \t>|#=+~-]/m.test(text)) return null; // no plain paragraph
  for (const { index, 0: end } of [...text.matchAll(/[.!?]\s+|[。！？]/g)].slice(-50).reverse()) {
    const piece = text.slice(0, index + end.length);
    const count = (mark) => piece.split(mark).length - 1;
    const isEven = ["`", "*", "$"].every((mark) => count(mark) % 2 === 0);
    if (isEven && count("[") === count("]") && count("(") === count(")")) return { ...whole, piece, join: "nbllm-run" };
  }
  return null;
}

// An async function that draws the text so far into `body`: blocks that are finished once, the rest again each time; `foot`
// stays the last thing there.
function growingMarkdown(model, body, foot = null) {
  const host = model.widget_manager?.rendermime;
  if (!host) {
    const draw = growingText(body);
    if (foot) body.after(foot);
    return draw;
  }
  const rendermime = harmless(host);
  // One element for all blocks, as in the finished output, so that their distances are the same.
  const page = body.appendChild(document.createElement("div"));
  page.className = "jp-RenderedHTMLCommon jp-RenderedMarkdown";
  if (foot) page.append(foot);
  let frozen = 0, opening = "", above = "", tail = [];

  async function put(text, below = "") {
    const renderer = rendermime.createRenderer("text/markdown");
    await renderer.renderModel({
      data: { "text/markdown": text }, metadata: {}, trusted: false, setData() {},
    });
    const nodes = [...renderer.node.childNodes];
    if (above) renderer.node.firstElementChild?.classList.add(`${above}-above`);
    if (below) renderer.node.lastElementChild?.classList.add(`${below}-below`);
    for (const node of tail) node.remove();
    for (const node of nodes) page.insertBefore(node, foot);
    if (/[$\\]/.test(text)) {
      for (const node of nodes) if (node.nodeType === 1) rendermime.latexTypesetter?.typeset(node);
    }
    return nodes;
  }

  return async (text) => {
    let rest = opening + text.slice(frozen);
    const cut = finishedLength(rest);
    if (cut > opening.length) {
      await put(rest.slice(0, cut));
      frozen += cut - opening.length;
      [rest, opening, above, tail] = [rest.slice(cut), "", "", []];
    }
    const found = rest.length > LONG + opening.length && finishedPiece(rest);
    if (found) {
      await put(found.piece + found.closing, found.join);
      frozen += found.piece.length - opening.length;
      rest = found.opening + rest.slice(found.piece.length);
      [opening, above, tail] = [found.opening, found.join, []];
    }
    tail = await put(rest);
  };
}

// The same for text that is no markdown; what is there already is left alone.
function growingText(body) {
  const node = body.appendChild(document.createTextNode(""));
  body.classList.add("nbllm-plain");
  return (text) => { node.appendData(text.slice(node.length)); };
}

// A function that lets `draw` run soon: in the next frame, never twice at once, and no sooner after a slow one than four
// times as long as that took, so that the page stays responsive however long the answer grows.
function paced(draw) {
  let drawing = false, dirty = false, scheduled = false, rest = 0;
  const schedule = () => {
    if (drawing) { dirty = true; return; }
    if (scheduled) return;
    scheduled = true;
    const wait = rest - performance.now();
    if (wait > 0) setTimeout(() => requestAnimationFrame(paint), wait);
    else requestAnimationFrame(paint);
  };
  const paint = async () => {
    scheduled = false;
    drawing = true;
    const start = performance.now();
    try { await draw(); } finally { drawing = false; }
    const end = performance.now();
    rest = end + 4 * (end - start);
    if (dirty) { dirty = false; schedule(); }
  };
  return schedule;
}
