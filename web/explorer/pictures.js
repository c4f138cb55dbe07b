// Where pictures come from: examples, files and the camera.

/** Cut the largest square out of the middle of a picture and resize it, on white. */
export async function toSquare(bitmap, size) {
  const { width, height } = bitmap;
  const side = Math.min(width, height);
  const square = await createImageBitmap(
    bitmap,
    Math.floor((width - side) / 2),
    Math.floor((height - side) / 2),
    side,
    side,
    { resizeWidth: size, resizeHeight: size, resizeQuality: "high" },
  );
  const context = newContext(size);
  context.fillStyle = "white";
  context.fillRect(0, 0, size, size);
  context.drawImage(square, 0, 0);
  return context.getImageData(0, 0, size, size);
}

function newContext(size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** Load a file of example pictures, which lie side by side. */
export async function loadExamples({ name, side, labels }) {
  const response = await fetch(new URL(name, import.meta.url));
  const sprite = await createImageBitmap(await response.blob());
  return Promise.all(
    labels.map(async (label, i) => ({
      label,
      bitmap: await createImageBitmap(sprite, i * side, 0, side, side),
    })),
  );
}

/** Read a file that the visitor has chosen or dropped. */
export async function readFile(file) {
  try {
    return { label: file.name, bitmap: await createImageBitmap(file) };
  } catch {
    throw new Error(
      `“${file.name}” is not a picture that this browser can read. ` +
        "Choose a JPEG, PNG or WebP file.",
    );
  }
}

/** Show the camera in a dialog and return the picture that the visitor takes, or null. */
export async function takePicture(dialog) {
  const video = dialog.querySelector("video");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    throw new Error("The camera cannot be used. Allow it in your browser, or choose a file.");
  }
  try {
    video.srcObject = stream;
    dialog.returnValue = "";
    dialog.showModal();
    await video.play();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    if (dialog.returnValue !== "take") return null;
    return { label: "your picture", bitmap: await createImageBitmap(video) };
  } finally {
    for (const track of stream.getTracks()) track.stop();
  }
}
