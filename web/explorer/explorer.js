// The page: it connects the visitor's choices, the models and the views.

import { element } from "./drawings.js";
import { Engine, latest } from "./engine.js";
import { PatchGrid } from "./grid.js";
import { loadExamples, readFile, takePicture, toSquare } from "./pictures.js";
import { boards, find, patches, state, visible } from "./state.js";
import { point, showAnswer, showCurve, showMask, showResult } from "./views.js";

const START_RATIO = 0.75; // fraction of hidden patches, as in pre-training
const CURVE_POINTS = 8; // of the classifier's curve
const THUMBNAIL = 32; // pixels

// The site keeps the theme that a visitor chose on another page.
try {
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "auto";
} catch {
  // Without storage, the page follows the system.
}

let about, engine;
let arrived = 0; // bytes of the files that are being loaded
let expected = 0;

// ---- Models -------------------------------------------------------------------------------

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
    showCurve(model.classes, curve, keep.length);
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
  const distance = (index) => Math.hypot(offset(index % side), offset(Math.floor(index / side)));
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
  const { model } = state;
  state.picture = picture;
  find("picture-name").textContent = picture.label;
  const image = await toSquare(picture.bitmap, model.size);
  if (picture !== state.picture || model !== state.model) return; // a newer choice
  state.image = image;
  boards.input.canvas.width = boards.input.canvas.height = state.model.size;
  boards.input.canvas.getContext("2d").putImageData(state.image, 0, 0);
  reconstruct();
  classify();
}

function setModel(model) {
  const before = state.model?.side;
  state.model = model;
  state.image = state.result = state.pointed = null;
  boards.input.resize(model.side);
  boards.output.resize(model.side);
  if (before !== model.side) {
    state.order = Array.from({ length: patches() }, (_, i) => i);
    state.hidden = state.order.map((i) => i < Math.floor(START_RATIO * patches()));
    find("ratio").max = patches() - 1;
    find("most").textContent = patches() - 1;
    shuffle(sameForAll());
    choose(centralPatch());
  }
  find("patch-size").textContent = Array(2).fill(model.size / model.side).join("×");
  expect([model.file]);
  find("classify").hidden = !model.classifier;
  find("verdict").hidden = !model.classifier;
  if (model.classifier) {
    find("class-count").textContent = model.classes.length;
    find("classes").textContent = new Intl.ListFormat("en-GB").format(model.classes);
    if (state.classifies) expect([model.classifier]);
    const size = (model.classifier.bytes / 1e6).toFixed(1);
    find("load-classifier").textContent = `Load the classifier (${size} MB)`;
  }
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

/** Make a radio button that shows a picture. */
async function thumbnail(picture, number) {
  const canvas = element("canvas", { width: THUMBNAIL, height: THUMBNAIL });
  const square = await toSquare(picture.bitmap, THUMBNAIL);
  canvas.getContext("2d").putImageData(square, 0, 0);
  const radio = element("input", { type: "radio", name: "example", class: "unseen" });
  radio.ariaLabel = `${picture.label}, picture ${number}`;
  radio.addEventListener("change", () => setPicture(picture));
  return element("label", { title: picture.label }, radio, canvas);
}

/** Make a row of example pictures. */
async function showExamples(sprite) {
  const pictures = await loadExamples(sprite);
  const thumbnails = await Promise.all(pictures.map((picture, i) => thumbnail(picture, i + 1)));
  const legend = element("legend", {}, sprite.title);
  const shelf = element("div", { class: "shelf" }, ...thumbnails);
  return element("fieldset", {}, legend, shelf);
}

/** Take a picture from a source that may fail or give none. */
async function take(source) {
  try {
    const picture = await source;
    if (!picture) return;
    const shelf = find("own-pictures");
    const label = await thumbnail(picture, shelf.children.length + 1);
    shelf.append(label);
    find("own").hidden = false;
    find("problem").hidden = true;
    label.control.click();
  } catch (error) {
    complain(error);
  }
}

function connect() {
  const actions = { choose, point };
  let brush; // what dragging does: hide or show
  boards.input = new PatchGrid(find("input"), {
    ...actions,
    press: (index) => toggle(index, (brush = !state.hidden[index])),
    paint: (index) => toggle(index, brush),
  });
  boards.output = new PatchGrid(find("output"), { ...actions, press: choose });

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
      if (state.result) showResult();
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
    find("answer").focus(); // the button is gone
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
