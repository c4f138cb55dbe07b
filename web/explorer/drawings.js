// Maps, bars and curves. They show numbers that the models computed, and say them in words, too.

import { nameOf, patchAfter, patchAt } from "./grid.js";

export const percent = (value) => `${Math.round(100 * value)}\u00a0%`;

/** Create an element with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * Draw one value per patch in the text colour of the canvas: the larger, the stronger.
 * @param {number[]} values one per patch; null where there is none, which is drawn in grey
 * @param {number} top the value with the full colour
 */
export function drawMap(canvas, values, side, top) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const { color } = getComputedStyle(canvas);
  values.forEach((value, index) => {
    context.fillStyle = value === null ? "gray" : color;
    context.globalAlpha = value === null ? 0.3 : Math.min(1, Math.max(0, value / top));
    context.fillRect(index % side, Math.floor(index / side), 1, 1);
  });
}

/** Return the index of the largest value; some may be null. */
const largest = (values) =>
  values.reduce((best, value, i) => (value > (values[best] ?? -Infinity) ? i : best), 0);

/** Say where a map is strongest. */
export function strongest(values, side) {
  const best = largest(values);
  return `strongest at ${nameOf(best, side).toLowerCase()} (${percent(values[best])})`;
}

/**
 * Make a square map with a caption. A frame marks the chosen patch, if it has a place.
 * @param {{chosen: number, top: number, words: string, write: Function, note: Node}} options the
 *   chosen token, the value with the full colour, what a screen reader says, how to write a value,
 *   and a second line of the caption
 */
export function mapFigure(caption, values, side, { chosen, top, words, write, note = "" }) {
  const canvas = element("canvas");
  const square = element("div", { class: "map", role: "img", tabindex: 0 }, canvas);
  square.ariaLabel = `${caption}: ${words}`;
  if (chosen < values.length) square.append(frameAt(chosen, side));
  const value = element("output");
  const figure = element("figure", {}, square, element("figcaption", {}, caption, note, value));
  showValues(square, value, values, side, write);
  // The colour is known when the figure is in the page.
  queueMicrotask(() => drawMap(canvas, values, side, top));
  return figure;
}

/**
 * Replace the children of a container. If the focus is on one of its maps, it stays on the map
 * that takes its place, and on the same patch, so that arrow keys go on working.
 */
export function replaceMaps(container, ...children) {
  const maps = () => [...container.querySelectorAll(".map")];
  const { activeElement } = document;
  const number = maps().indexOf(activeElement);
  container.replaceChildren(...children);
  const map = maps()[number];
  if (!map) return;
  map.dataset.place = activeElement.dataset.place;
  map.focus({ preventScroll: true });
}

/** Show in `output` the value under the pointer, or at the patch to which the arrow keys lead. */
function showValues(square, output, values, side, write) {
  const place = () => Number(square.dataset.place ?? largest(values));
  const show = (index) => {
    if (index === null) return;
    square.dataset.place = index;
    const value = values[index] === null ? "hidden" : write(values[index]);
    output.textContent = `${nameOf(index, side)}: ${value}`;
  };
  for (const name of ["pointerdown", "pointermove"]) {
    square.addEventListener(name, (event) => show(patchAt(event, square, side)));
  }
  square.addEventListener("focus", () => show(place()));
  square.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const next = patchAfter(event.key, place(), side);
    show(next);
    if (next !== null) event.preventDefault(); // the page does not scroll
  });
  for (const name of ["pointerleave", "blur"]) {
    square.addEventListener(name, () => (output.textContent = ""));
  }
}

/** Show the share of the class token, which has no place in a map, in the colours of the map. */
export function tokenNote(share, top) {
  const square = element("i", { style: `--share: ${Math.min(1, share / top)}` });
  const title = `${percent(share)} to the class token`;
  return element("span", { class: "token", title }, square, percent(share));
}

function frameAt(index, side) {
  const frame = element("i");
  const [row, column] = [Math.floor(index / side), index % side];
  frame.style.cssText = `--row: ${row}; --column: ${column}; --side: ${side}`;
  return frame;
}

/** Make a table of probabilities: with the visible patches, and with the whole picture. */
export function probabilityTable(classes, visible, whole) {
  const order = classes.map((_, i) => i).sort((a, b) => visible[b] - visible[a]);
  const bar = (value) => {
    const cell = element("td", {}, element("span", { class: "bar" }), percent(value));
    cell.firstChild.style.setProperty("--value", value);
    return cell;
  };
  const rows = order.map((i) =>
    element("tr", {}, element("th", { scope: "row" }, classes[i]), bar(visible[i]), bar(whole[i])),
  );
  const head = ["Class", "Visible patches", "Whole picture"].map((name) =>
    element("th", { scope: "col" }, name),
  );
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * Draw how probabilities change with the number of visible patches.
 * @param {{visible: number, probabilities: number[]}[]} curve from few visible patches to all
 * @param {number} now how many are visible in the picture above
 */
export function probabilityCurve(classes, curve, now) {
  const [width, height, left, bottom] = [460, 220, 44, 40];
  const most = curve.at(-1).visible;
  const x = (visible) => left + ((width - left - 10) * visible) / most;
  const y = (probability) => 10 + (height - 10 - bottom) * (1 - probability);
  const total = (i) => curve.reduce((sum, { probabilities }) => sum + probabilities[i], 0);
  const shown = classes.map((_, i) => i).sort((a, b) => total(b) - total(a)).slice(0, 3);
  const line = (i) => curve.map((p) => `${x(p.visible)},${y(p.probabilities[i])}`).join(" ");
  const text = (atX, atY, words, anchor) =>
    `<text x="${atX}" y="${atY}" text-anchor="${anchor}">${words}</text>`;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  const inWords = shown.map((i) => {
    const values = curve.map((p) => `${percent(p.probabilities[i])} at ${p.visible}`);
    return `${classes[i]}: ${values.join(", ")}`;
  });
  svg.ariaLabel = `Probability against the number of visible patches. ${inWords.join(". ")}`;
  svg.innerHTML = [
    ...[0, 0.5, 1].map((p) => `<path class="line" d="M${left},${y(p)}H${width - 10}"/>`),
    ...[0, 0.5, 1].map((p) => text(left - 6, y(p) + 4, percent(p), "end")),
    `<path class="now" d="M${x(now)},10V${y(0)}"/>`,
    ...[1, most / 2, most].map((n) => text(x(n), height - 22, n, "middle")),
    text((left + width) / 2, height - 4, "visible patches", "middle"),
    ...shown.map((i, k) => `<polyline class="curve curve-${k}" points="${line(i)}"/>`),
  ].join("");
  const names = shown.map((i, k) => element("li", { class: `curve-${k}` }, classes[i]));
  return element("figure", { class: "chart" }, svg, element("ul", { class: "legend" }, ...names));
}
