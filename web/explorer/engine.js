// The page's connection to the worker that runs the models.

export class Engine {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map(); // number of a request → how to settle its promise
  #count = 0;

  /**
   * @param {string} program file name of ONNX Runtime's compressed program
   * @param {(bytes: number) => void} onProgress told about every piece that has arrived
   */
  constructor(program, onProgress) {
    this.program = program;
    this.#worker.onmessage = ({ data }) => {
      if (data.progress) return onProgress(data.progress);
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data.outputs);
    };
    this.#worker.onerror = (event) => {
      for (const { reject } of this.#waiting.values()) {
        reject(new Error(event.message || "This browser cannot run the models."));
      }
      this.#waiting.clear();
    };
  }

  /**
   * Run a model on the pixels of a canvas.
   * @param {string} model its file name
   * @param {ImageData} [image] square picture of the model's size; without it, only load the model
   * @param {number[]} [keep] indices of the visible patches, at least one
   * @returns {Promise<Object>} outputs by name, each with `data` and `dims`
   */
  run(model, image, keep) {
    const id = this.#count++;
    const input = image && { pixels: new Uint8Array(image.data), size: image.width, keep };
    this.#worker.postMessage({ id, model, program: this.program, input });
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }
}

/**
 * Return a function that runs `job` for the newest state. While it runs, further requests are
 * joined into one. `job` receives a function that tells whether its state is out of date.
 */
export function latest(job) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    try {
      while (again) {
        again = false;
        await job(() => again);
      }
    } finally {
      running = false;
    }
  };
}
