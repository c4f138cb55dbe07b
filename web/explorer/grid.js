// A picture that is divided into patches, for mouse, finger, keyboard and screen reader.

const STEPS = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
};

/** Say where a patch is. */
export function nameOf(index, side) {
  return `Row ${Math.floor(index / side) + 1}, column ${(index % side) + 1}`;
}

export class PatchGrid {
  #cells = [];
  #focused = 0;
  #painting = false;

  /**
   * @param {HTMLElement} board holds the canvas and an empty element with the role `grid`
   * @param {Object} actions what to do about a patch, each with its index:
   *   `press(index)` when it is clicked, tapped, or the space bar is pressed;
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
    this.grid.addEventListener("pointerleave", () => this.actions.point(null));
    for (const end of ["pointerup", "pointercancel"]) {
      this.grid.addEventListener(end, () => (this.#painting = false));
    }
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

  #at(event) {
    const box = this.grid.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.side);
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.side);
    const inside = row >= 0 && column >= 0 && row < this.side && column < this.side;
    return inside ? row * this.side + column : null;
  }

  #down(event) {
    if (event.button) return;
    this.#painting = true;
    this.last = this.#at(event);
    this.grid.setPointerCapture(event.pointerId); // the line goes on outside the grid
    if (this.last === null) return;
    this.actions.press(this.last);
    this.#cells[this.last].focus({ preventScroll: true });
    event.preventDefault(); // nothing is selected or dragged
  }

  #move(event) {
    const index = this.#at(event);
    this.actions.point(index);
    if (!this.#painting || index === null || index === this.last) return;
    this.last = index;
    this.actions.paint?.(index);
  }

  #focus(cell) {
    this.#cells[this.#focused].tabIndex = -1;
    this.#focused = this.#cells.indexOf(cell);
    cell.tabIndex = 0;
    this.actions.point(this.#focused);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const index = this.#focused;
    if (event.key === " ") this.actions.press(index);
    else if (event.key === "Enter") this.actions.choose(index);
    else if (event.key in STEPS) this.#go(index, ...STEPS[event.key]);
    else if (event.key === "Home") this.#go(index, 0, -this.side);
    else if (event.key === "End") this.#go(index, 0, this.side);
    else return;
    event.preventDefault();
  }

  #go(index, down, right) {
    const limit = (value) => Math.max(0, Math.min(this.side - 1, value));
    const row = limit(Math.floor(index / this.side) + down);
    const column = limit((index % this.side) + right);
    this.#cells[row * this.side + column].focus();
  }
}
