// The page: what the visitor has chosen, and how it is shown.

import {
  drawMap,
  element,
  mapFigure,
  percent,
  probabilityCurve,
  probabilityTable,
  strongest,
} from "./drawings.js";
import { Engine, latest } from "./engine.js";
import { nameOf, PatchGrid } from "./grid.js";
import { loadExamples, readFile, takePicture, toSquare } from "./pictures.js";

const find = (id) => document.getElementById(id);
const START_RATIO = 0.75; // fraction of hidden patches, as in pre-training
const CURVE_POINTS = 8; // of the classifier's curve

/** Everything that the page shows follows from these values. */
const state = {
  model: null, // an entry of models.json
  picture: null, // {label, bitmap}
  image: null, // its pixels at the size of the model
  order: [], // patches in random order: those that come first are hidden first
  hidden: [], // true for each hidden patch
  chosen: 0, // a patch, or the number of patches for the class token
  view: "prediction", // what the second board shows
  result: null, // the model's outputs, and the visible patches that they belong to
  classifies: false, // whether the classifier has been asked for
};

// The site keeps the theme that a visitor chose on another page.
try {
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "auto";
} catch {
  // Without storage, the page follows the system.
}

let about, engine, input, output;
let arrived = 0; // bytes of the files that are being loaded
let expected = 0;

// ---- Models -------------------------------------------------------------------------------

const patches = () => state.model.side ** 2;
const visible = () => state.order.filter((index) => !state.hidden[index]).sort((a, b) => a - b);

const reconstruct = latest(async () => {
  if (!state.image) return;
  const [model, image, keep, start] = [state.model, state.image, visible(), performance.now()];
  try {
    const outputs = await engine.run(model.file.name, image, keep);
    if (model !== state.model) return;
    state.result = { ...outputs, image, keep };
    find("speed").textContent =
      `The last reconstruction took ${Math.round(performance.now() - start)} ms.`;
    find("problem").hidden = true;
    showResult();
  } catch (error) {
    complain(error);
  }
});

const classify = latest(async (isOld) => {
  if (!state.classifies || !state.image || !state.model.classifier) return;
  const [model, image, keep] = [state.model, state.image, visible()];
  const rank = [...state.order].reverse().sort((a, b) => state.hidden[a] - state.hidden[b]);
  const ask = async (number) => {
    const first = rank.slice(0, number).sort((a, b) => a - b);
    const { probabilities } = await engine.run(model.classifier.name, image, first);
    return { visible: number, probabilities: [...probabilities.data] };
  };
  try {
    const whole = await ask(patches());
    const now = await ask(keep.length);
    if (isOld()) return;
    showAnswer(model.classes, now.probabilities, whole.probabilities);
    const steps = Array.from({ length: CURVE_POINTS - 1 }, (_, i) => (i + 1) / CURVE_POINTS);
    const numbers = new Set([1, ...steps.map((step) => Math.round(step * patches()))]);
    const curve = [now, whole];
    for (const number of numbers) {
      if (isOld()) return;
      if (number !== keep.length) curve.push(await ask(number));
    }
    curve.sort((a, b) => a.visible - b.visible);
    find("answers").children[1].replaceWith(probabilityCurve(model.classes, curve, keep.length));
  } catch (error) {
    complain(error);
  }
});

// ---- Choices ------------------------------------------------------------------------------

/** Set a mask and let the models follow. At least one patch stays visible. */
function setHidden(hidden) {
  if (hidden.every(Boolean)) return;
  state.hidden = hidden;
  showMask();
  reconstruct();
  classify();
}

function toggle(index, value = !state.hidden[index]) {
  setHidden(state.hidden.map((before, i) => (i === index ? value : before)));
}

/** Hide `number` patches: change as few as possible, in the random order. */
function hideSome(number) {
  const hidden = [...state.hidden];
  let excess = hidden.filter(Boolean).length - number;
  for (const index of excess > 0 ? [...state.order].reverse() : state.order) {
    if (excess && hidden[index] === excess > 0) {
      hidden[index] = !hidden[index];
      excess -= Math.sign(excess);
    }
  }
  setHidden(hidden);
}

/** Draw a new random mask with the same number of hidden patches. */
function shuffle(random = Math.random) {
  const number = state.hidden.filter(Boolean).length;
  const keys = state.order.map(random);
  state.order = keys.map((_, i) => i).sort((a, b) => keys[a] - keys[b]);
  setHidden(state.order.map((_, i) => state.order.indexOf(i) < number));
}

/** Return the visible patch that is nearest to the centre. */
function centralPatch() {
  const { side } = state.model;
  const offset = (place) => place - (side - 1) / 2;
  const distance = (index) =>
    Math.hypot(offset(index % side), offset(Math.floor(index / side)));
  return visible().reduce((a, b) => (distance(b) < distance(a) ? b : a));
}

/** Return a source of random numbers that gives every visitor the same first mask. */
function sameForAll() {
  let seed = 7;
  return () => (seed = (seed * 16807) % 2147483647) / 2147483647;
}

function choose(index) {
  state.chosen = index;
  showMask();
  if (state.result) showResult();
}

async function setPicture(picture) {
  state.picture = picture;
  state.image = await toSquare(picture.bitmap, state.model.size);
  input.canvas.width = input.canvas.height = state.model.size;
  input.canvas.getContext("2d").putImageData(state.image, 0, 0);
  reconstruct();
  classify();
}

function setModel(model) {
  const before = state.model?.side;
  state.model = model;
  state.image = state.result = null;
  input.resize(model.side);
  output.resize(model.side);
  if (before !== model.side) {
    state.order = Array.from({ length: patches() }, (_, i) => i);
    state.hidden = state.order.map((i) => i < Math.floor(START_RATIO * patches()));
    find("ratio").max = patches() - 1;
    shuffle(sameForAll());
    choose(centralPatch());
  }
  expect([model.file]);
  find("classify").hidden = !model.classifier;
  if (model.classifier) {
    const size = (model.classifier.bytes / 1e6).toFixed(1);
    find("load-classifier").textContent = `Load the classifier (${size} MB)`;
  }
}

// ---- Views --------------------------------------------------------------------------------

function showMask() {
  const [hidden, all] = [state.hidden.filter(Boolean).length, patches()];
  const describe = (index) => ({
    hidden: state.hidden[index],
    chosen: index === state.chosen,
    label: state.hidden[index] ? "hidden" : "visible",
  });
  input.update(describe);
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

function showResult() {
  showPrediction();
  summarise();
  showMaps();
}

function showPrediction() {
  const { side, size } = state.model;
  const { errors, image, picture, keep } = state.result;
  const isVisible = new Set(keep);
  output.update((index) => ({
    hidden: false,
    chosen: index === state.chosen,
    label: `${isVisible.has(index) ? "visible" : "hidden"}, error ${errorText(index)}`,
  }));
  if (state.view === "errors") {
    const values = [...errors.data];
    drawMap(output.canvas, values, side, Math.max(...values));
  } else {
    output.canvas.width = output.canvas.height = size;
    const shown =
      state.view === "original"
        ? image
        : new ImageData(new Uint8ClampedArray(picture.data), size, size);
    output.canvas.getContext("2d").putImageData(shown, 0, 0);
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
      const note = `class token ${percent(weights.at(-1))}`;
      const words = `${strongest(values, side)}, ${note}`;
      const options = { chosen: state.chosen, top: Math.max(...values), words, note };
      return mapFigure(`Head ${head + 1}`, values, side, options);
    });
    const name = `Layer ${layer + 1}`;
    const group = { class: "layer", role: "group", "aria-label": name, style: `--heads: ${heads}` };
    return element("div", group, element("h4", {}, name), ...maps);
  });
  layers.replaceChildren(...figures);
}

/** Show which positional embeddings resemble that of the chosen token. */
function showSimilar() {
  const { side } = state.model;
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
      element("li", {}, `${nameOf(index, side)}: ${value.toFixed(2)}`),
    );
    const title = part === "encoder" ? "Encoder" : "Decoder";
    const words = "cosine similarity of the chosen position to all others";
    const figure = mapFigure(title, values, side, { chosen: state.chosen, top: 1, words });
    const heading = element("p", {}, `${title}: most similar positions`);
    return element("div", {}, figure, element("div", {}, heading, element("ol", {}, ...items)));
  });
  find("similar").replaceChildren(...figures);
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
  const onHidden = hidden ? ` is ${mean(false).toFixed(3)} on the hidden patches and` : " is";
  clearTimeout(summaryTimer);
  summaryTimer = setTimeout(() => {
    find("summary").textContent =
      `${hidden} of ${patches()} patches are hidden. The mean squared error${onHidden} ` +
      `${mean(true).toFixed(3)} on the visible ones.`;
  }, 300);
}

function showAnswer(classes, now, whole) {
  const best = (values) => values.indexOf(Math.max(...values));
  const [a, b] = [best(now), best(whole)];
  find("answer").textContent =
    `From the visible patches, the classifier answers ${classes[a]} (${percent(now[a])}); ` +
    `from the whole picture, ${classes[b]} (${percent(whole[b])}).`;
  const answers = find("answers");
  const chart = answers.children[1] ?? element("div");
  answers.replaceChildren(probabilityTable(classes, now, whole), chart);
}

/** Show the patch at which the visitor points in both boards, and its error. */
function point(index) {
  input.mark(index);
  output.mark(index);
  if (index === null || !state.result) {
    find("readout").textContent = "Point at a patch to read its error.";
    return;
  }
  const place = nameOf(index, state.model.side);
  const kind = state.hidden[index] ? "hidden" : "visible";
  find("readout").textContent = `${place} · ${kind} · mean squared error ${errorText(index)}`;
}

function complain(error) {
  find("problem").textContent = error.message;
  find("problem").hidden = false;
}

// ---- Loading ------------------------------------------------------------------------------

const asked = new Set(); // names of files

/** Count the bytes of files that will be loaded now. */
function expect(files) {
  for (const { name, bytes } of files) {
    if (!asked.has(name)) expected += bytes;
    asked.add(name);
  }
}

function onProgress(bytes) {
  arrived += bytes;
  find("loading").hidden = arrived >= expected;
  find("loading-bar").value = arrived / expected;
  const [now, all] = [arrived, expected].map((value) => (value / 1e6).toFixed(1));
  find("loading-text").textContent = `Loading the model: ${now} of ${all} MB.`;
}

/** Make radio buttons of example pictures. */
async function showExamples(sprite) {
  const pictures = await loadExamples(sprite);
  const labels = pictures.map((picture, i) => {
    const canvas = element("canvas", { width: sprite.side, height: sprite.side });
    canvas.getContext("2d").drawImage(picture.bitmap, 0, 0);
    const radio = element("input", { type: "radio", name: "example", class: "unseen" });
    radio.ariaLabel = `${picture.label}, picture ${i + 1}`;
    radio.addEventListener("change", () => setPicture(picture));
    return element("label", { title: picture.label }, radio, canvas);
  });
  const legend = element("legend", {}, sprite.title);
  const shelf = element("div", { class: "shelf" }, ...labels);
  return element("fieldset", {}, legend, shelf);
}

/** Take a picture from a source that may fail or give none. */
async function take(source) {
  try {
    const picture = await source;
    if (!picture) return;
    for (const radio of document.querySelectorAll("[name=example]")) radio.checked = false;
    find("problem").hidden = true;
    await setPicture(picture);
  } catch (error) {
    complain(error);
  }
}

function connect() {
  const actions = { choose, point };
  let brush; // what dragging does: hide or show
  input = new PatchGrid(find("input"), {
    ...actions,
    press: (index) => toggle(index, (brush = !state.hidden[index])),
    paint: (index) => toggle(index, brush),
  });
  output = new PatchGrid(find("output"), { ...actions, press: choose });

  find("ratio").addEventListener("input", ({ target }) => hideSome(Number(target.value)));
  find("shuffle").addEventListener("click", () => shuffle());
  find("show-all").addEventListener("click", () => hideSome(0));
  find("choose-class").addEventListener("click", () => choose(patches()));
  find("model").addEventListener("change", async ({ target }) => {
    setModel(about.models[target.selectedIndex]);
    await setPicture(state.picture);
  });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      state.view = button.dataset.view;
      for (const other of document.querySelectorAll("[data-view]")) {
        other.ariaPressed = String(other === button);
      }
      showResult();
    });
  }
  find("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) take(readFile(target.files[0]));
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) take(readFile(file));
  });
  find("camera").hidden = !navigator.mediaDevices;
  find("camera").addEventListener("click", () => take(takePicture(find("camera-dialog"))));
  find("load-classifier").addEventListener("click", () => {
    find("classifier-start").hidden = true;
    find("answer").textContent = "Loading the classifier.";
    state.classifies = true;
    expect([state.model.classifier]);
    classify();
  });
  // Maps are drawn in the colours of the theme.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (state.result) showResult();
  });
}

async function start() {
  const response = await fetch(new URL("models.json", import.meta.url));
  about = await response.json();
  engine = new Engine(about.runtime.name, onProgress);
  connect();
  find("model").append(...about.models.map(({ title }) => element("option", {}, title)));
  find("model-choice").hidden = about.models.length < 2;
  expect([about.runtime]);
  setModel(about.models[0]);
  find("examples").append(...(await Promise.all(about.pictures.map(showExamples))));
  await engine.run(state.model.file.name);
  const { shelf, picture } = state.model.start;
  find("examples").children[shelf].querySelectorAll("input")[picture].click();
  find("loading").hidden = true;
  for (const section of document.querySelectorAll("section")) section.inert = false;
}

start().catch(complain);
