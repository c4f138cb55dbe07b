// How the page shows the state.

import {
  drawMap,
  element,
  mapFigure,
  percent,
  probabilityCurve,
  probabilityTable,
  replaceMaps,
  strongest,
  tokenNote,
} from "./drawings.js";
import { latest } from "./engine.js";
import { nameOf } from "./grid.js";
import { boards, find, patches, state } from "./state.js";

// The second picture's title in each view.
const TITLES = {
  prediction: "What it predicts",
  original: "What was there",
  errors: "How far it is off",
};

export function showMask() {
  const [hidden, all] = [state.hidden.filter(Boolean).length, patches()];
  const describe = (index) => ({
    hidden: state.hidden[index],
    chosen: index === state.chosen,
    label: state.hidden[index] ? "hidden" : "visible",
  });
  boards.input.update(describe);
  showReadout();
  find("ratio").value = hidden;
  const text = `${hidden} of ${all} (${percent(hidden / all)})`;
  find("ratio-text").textContent = text;
  find("ratio").setAttribute("aria-valuetext", text);
  const place = state.chosen < all ? describeChosen() : "the class token";
  find("chosen").replaceChildren("You chose ", element("strong", {}, place), ".");
}

function describeChosen() {
  const kind = state.hidden[state.chosen] ? "a hidden" : "a visible";
  return `${kind} patch in ${nameOf(state.chosen, state.model.side).toLowerCase()}`;
}

const errorText = (index) => state.result.errors.data[index].toFixed(3);

export function showResult() {
  showPrediction();
  showReadout();
  summarise();
  showMaps();
}

function showPrediction() {
  const { side, size } = state.model;
  const { errors, image, picture, keep } = state.result;
  const isVisible = new Set(keep);
  find("output-title").textContent = TITLES[state.view];
  boards.output.update((index) => ({
    hidden: false,
    chosen: index === state.chosen,
    label: `${isVisible.has(index) ? "visible" : "hidden"}, error ${errorText(index)}`,
  }));
  if (state.view === "errors") {
    const values = [...errors.data];
    drawMap(boards.output.canvas, values, side, Math.max(...values));
  } else {
    boards.output.canvas.width = boards.output.canvas.height = size;
    const shown =
      state.view === "original"
        ? image
        : new ImageData(new Uint8ClampedArray(picture.data), size, size);
    boards.output.canvas.getContext("2d").putImageData(shown, 0, 0);
  }
}

/** Draw all maps of the chosen token, once the browser has painted the prediction. */
const showMaps = latest(async () => {
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  if (!state.result) return; // the visitor has changed the model
  showAttention("encoder", state.result.keep);
  showAttention("decoder", Array.from({ length: patches() }, (_, i) => i));
  showSimilar();
});

/** Show the attention of the chosen token in all layers and heads of one part of the model. */
function showAttention(part, tokens) {
  const { side } = state.model;
  const all = [...tokens, patches()]; // the class token is the last one
  const query = all.indexOf(state.chosen);
  const layers = find(part);
  if (part === "encoder") {
    find("encoder-hint").textContent =
      query < 0
        ? "The encoder never sees a hidden patch, so there is no attention to show. " +
          "Choose a visible patch, or look at the decoder."
        : "The encoder sees only the visible patches and the class token. Hidden patches are grey.";
  }
  if (query < 0) return layers.replaceChildren();
  const [depth, heads, length] = state.result[part].dims;
  const { data } = state.result[part];
  const row = (layer, head) => {
    const start = ((layer * heads + head) * length + query) * length;
    return data.subarray(start, start + length);
  };
  const figures = Array.from({ length: depth }, (_, layer) => {
    const maps = Array.from({ length: heads }, (_, head) => {
      const weights = row(layer, head);
      const values = Array(patches()).fill(null);
      tokens.forEach((token, i) => (values[token] = weights[i]));
      const top = Math.max(...values);
      const note = tokenNote(weights.at(-1), top);
      const words = `${strongest(values, side)}, ${note.title}`;
      const options = { chosen: state.chosen, top, words, write: percent, note };
      return mapFigure(`Head ${head + 1}`, values, side, options);
    });
    const name = `Layer ${layer + 1}`;
    const group = { class: "layer", role: "group", "aria-label": name, style: `--heads: ${heads}` };
    return element("div", group, element("h4", {}, name), ...maps);
  });
  replaceMaps(layers, ...figures);
}

/** Show which positional embeddings resemble that of the chosen token. */
function showSimilar() {
  const { side } = state.model;
  const write = (value) => value.toFixed(2);
  const figures = ["encoder", "decoder"].map((part) => {
    const { data } = state.result[`${part}_positions`];
    const start = state.chosen * (patches() + 1);
    const values = [...data.subarray(start, start + patches())];
    const best = values
      .map((value, index) => ({ value, index }))
      .filter(({ index }) => index !== state.chosen)
      .sort((a, b) => b.value - a.value)
      .slice(0, 4);
    const items = best.map(({ value, index }) =>
      element("li", {}, `${nameOf(index, side)}: ${write(value)}`),
    );
    const title = part === "encoder" ? "Encoder" : "Decoder";
    const words = "cosine similarity of the chosen position to all others";
    const options = { chosen: state.chosen, top: 1, words, write };
    const figure = mapFigure(title, values, side, options);
    const heading = element("p", {}, `${title}: most similar positions`);
    return element("div", {}, figure, element("div", {}, heading, element("ol", {}, ...items)));
  });
  replaceMaps(find("similar"), ...figures);
}

let summaryTimer;

/** Write the errors down; a screen reader hears them when the visitor pauses. */
function summarise() {
  const { errors, keep } = state.result;
  const isVisible = new Set(keep);
  const mean = (wanted) => {
    const values = [...errors.data].filter((_, index) => isVisible.has(index) === wanted);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  const hidden = patches() - keep.length;
  const onHidden = hidden ? ` ${mean(false).toFixed(3)} on the hidden patches and` : "";
  clearTimeout(summaryTimer);
  summaryTimer = setTimeout(() => {
    find("summary").textContent =
      `${hidden} of ${patches()} patches are hidden. The error says how far the predicted ` +
      `colours are off, and 0 is perfect. It is${onHidden} ${mean(true).toFixed(3)} ` +
      "on the visible ones.";
  }, 300);
}

export function showAnswer(classes, now, whole) {
  const best = (values) => values.indexOf(Math.max(...values));
  const [a, b] = [best(now), best(whole)];
  find("answer").textContent =
    `From the visible patches, the classifier answers ${classes[a]} (${percent(now[a])}); ` +
    `from the whole picture, ${classes[b]} (${percent(whole[b])}).`;
  const verdict = element("strong", {}, `${classes[a]} ${percent(now[a])}`);
  find("verdict").replaceChildren("The classifier answers: ", verdict);
  const answers = find("answers");
  const chart = answers.children[1] ?? element("div");
  answers.replaceChildren(probabilityTable(classes, now, whole), chart);
}

export function showCurve(classes, curve, now) {
  find("answers").children[1].replaceWith(probabilityCurve(classes, curve, now));
}

/** Mark the patch at which the visitor points in both boards, and show its error. */
export function point(index) {
  state.pointed = index;
  boards.input.mark(index);
  boards.output.mark(index);
  showReadout();
}

function showReadout() {
  const { pointed, hidden, model, result } = state;
  if (pointed === null || !result) {
    find("readout").textContent = "Point at a patch, or tap it, to read its error.";
    return;
  }
  const kind = hidden[pointed] ? "hidden" : "visible";
  find("readout").textContent =
    `${nameOf(pointed, model.side)} · ${kind} · error ${errorText(pointed)}`;
}
