// Runs the models, so that the page stays responsive while they compute.

import * as ort from "./ort.mjs";

ort.env.wasm.numThreads = 1; // more would need special headers from the server

const sessions = new Map(); // file name → promise of a session
let runtime; // promise of ONNX Runtime's program
let queue = Promise.resolve(); // one request after the other

/** Fetch a compressed file, report its progress, and return its bytes. */
async function unpack(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`The file ${name} is missing (${response.status}).`);
  const counter = new TransformStream({
    transform(chunk, controller) {
      postMessage({ progress: chunk.length });
      controller.enqueue(chunk);
    },
  });
  const packed = await new Response(response.body.pipeThrough(counter)).blob();
  const start = new Uint8Array(await packed.slice(0, 2).arrayBuffer());
  // Some servers let the browser unpack such files.
  const isPacked = start[0] === 0x1f && start[1] === 0x8b;
  const stream = packed.stream();
  const plain = isPacked ? stream.pipeThrough(new DecompressionStream("gzip")) : stream;
  return new Response(plain).arrayBuffer();
}

/** Open a model once; later calls return the same session. */
async function open(model, program) {
  runtime ??= unpack(program).catch((error) => {
    runtime = undefined; // so that the next request tries again
    throw error;
  });
  if (!sessions.has(model)) {
    sessions.set(
      model,
      Promise.all([unpack(model), runtime]).then(([bytes, binary]) => {
        ort.env.wasm.wasmBinary = binary;
        return ort.InferenceSession.create(new Uint8Array(bytes));
      }),
    );
  }
  return sessions.get(model);
}

/** Run a model and return its outputs as plain arrays and their sizes, by name. */
async function run({ model, program, input }) {
  const session = await open(model, program);
  if (!input) return {}; // it only had to be loaded
  const { pixels, size, keep } = input;
  const results = await session.run({
    pixels: new ort.Tensor("uint8", pixels, [size, size, 4]),
    keep: new ort.Tensor("int64", BigInt64Array.from(keep, BigInt), [keep.length]),
  });
  return Object.fromEntries(
    Object.entries(results).map(([name, { data, dims }]) => [name, { data, dims }]),
  );
}

async function answer(request) {
  try {
    const outputs = await run(request);
    const buffers = Object.values(outputs).map(({ data }) => data.buffer);
    postMessage({ id: request.id, outputs }, { transfer: buffers }); // moved, not copied
  } catch (error) {
    sessions.delete(request.model);
    postMessage({ id: request.id, error: error.message });
  }
}

onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};
