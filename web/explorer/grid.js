// A picture that is divided into patches, for mouse, finger, keyboard and screen reader.

const STEPS = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  Home: [0, -Infinity],
  End: [0, Infinity],
};

/** Say where a patch is. */
export function nameOf(index, side) {
  return `Row ${Math.floor(index / side) + 1}, column ${(index % side) + 1}`;
}

/** Return the patch of a square element that is under the pointer, or null outside of it. */
export function patchAt(event, square, side) {
  const box = square.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * side);
  const row = Math.floor(((event.clientY - box.top) / box.height) * side);
  const inside = row >= 0 && column >= 0 && row < side && column < side;
  return inside ? row * side + column : null;
}

/** Return the patch to which a key leads, or null if the key does not move. */
export function patchAfter(key, index, side) {
  if (!(key in STEPS)) return null;
  const [down, right] = STEPS[key];
  const limit = (value) => Math.max(0, Math.min(side - 1, value));
  return limit(Math.floor(index / side) + down) * side + limit((index % side) + right);
}

export class PatchGrid {
  #cells = [];
  #focused = 0;
  #last = null; // where the pressed pointer was last
  #dragged = false; // whether the pressed pointer has left its first patch

  /**
   * @param {HTMLElement} board holds the canvas and an empty element with the role `grid`
   * @param {Object} actions what to do about a patch, each with its index:
   *   `press(index)` when it is clicked, tapped, or the space bar is pressed, or when a drag
   *   that paints begins in it;
   *   `paint(index)` when the pointer is dragged to it, if there is such an action;
   *   `choose(index)` when Enter is pressed, and
   *   `point(index)` when the pointer or the focus comes to it (null when it leaves)
   */
  constructor(board, actions) {
    this.canvas = board.querySelector("canvas");
    this.grid = board.querySelector("[role=grid]");
    this.actions = actions;
    this.grid.addEventListener("keydown", (event) => this.#key(event));
    this.grid.addEventListener("focusin", (event) => this.#focus(event.target));
    this.grid.addEventListener("focusout", () => this.actions.point(null));
    this.grid.addEventListener("pointerdown", (event) => this.#down(event));
    this.grid.addEventListener("pointermove", (event) => this.#move(event));
    this.grid.addEventListener("pointerup", () => this.#up());
    this.grid.addEventListener("pointercancel", () => (this.#last = null)); // the page scrolls
    this.grid.addEventListener("pointerleave", () => this.#leave());
  }

  /** Divide the picture into `side` × `side` patches. */
  resize(side) {
    if (side === this.side) return;
    this.side = side;
    this.#focused = 0;
    this.grid.style.setProperty("--side", side);
    const rows = Array.from({ length: side }, () => {
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      for (let column = 0; column < side; column++) {
        const cell = document.createElement("div");
        cell.setAttribute("role", "gridcell");
        cell.tabIndex = -1;
        row.append(cell);
      }
      return row;
    });
    this.grid.replaceChildren(...rows);
    this.#cells = rows.flatMap((row) => [...row.children]);
    this.#cells[0].tabIndex = 0;
  }

  /** Describe each patch by classes and a label. */
  update(describe) {
    this.#cells.forEach((cell, index) => {
      const { hidden, chosen, label } = describe(index);
      cell.classList.toggle("hidden", hidden);
      cell.classList.toggle("chosen", chosen);
      if (this.grid.ariaMultiSelectable) cell.ariaSelected = String(hidden);
      cell.ariaLabel = `${nameOf(index, this.side)}, ${label}`;
    });
  }

  /** Mark the patch at which the visitor points in another grid. */
  mark(index) {
    this.#cells.forEach((cell, i) => cell.classList.toggle("pointed", i === index));
  }

  #down(event) {
    if (event.button) return;
    this.#last = patchAt(event, this.grid, this.side);
    this.#dragged = false;
    this.grid.setPointerCapture(event.pointerId); // the line goes on outside the grid
    event.preventDefault(); // nothing is selected or dragged
  }

  #move(event) {
    const index = patchAt(event, this.grid, this.side);
    this.actions.point(index);
    if (this.#last === null || index === null || index === this.#last) return;
    if (this.actions.paint) {
      if (!this.#dragged) this.actions.press(this.#last);
      this.actions.paint(index);
      this.#dragged = true;
    }
    this.#last = index;
  }

  /** A patch is pressed when the pointer is lifted, because a finger may want to scroll. */
  #up() {
    if (this.#last === null) return;
    if (!this.#dragged) this.actions.press(this.#last);
    this.#cells[this.#last].focus({ preventScroll: true });
    this.#last = null;
  }

  #leave() {
    this.actions.point(this.grid.contains(document.activeElement) ? this.#focused : null);
  }

  #focus(cell) {
    this.#cells[this.#focused].tabIndex = -1;
    this.#focused = this.#cells.indexOf(cell);
    cell.tabIndex = 0;
    this.actions.point(this.#focused);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const next = patchAfter(event.key, this.#focused, this.side);
    if (event.key === " ") this.actions.press(this.#focused);
    else if (event.key === "Enter") this.actions.choose(this.#focused);
    else if (next !== null) this.#cells[next].focus();
    else return;
    event.preventDefault();
  }
}
