"""Store the images of an .npz in half the space, without loss: as tall WebP strips of 500 images.

python3 tools/gpu/sheets.py encode cifar10.npz FOLDER
python3 tools/gpu/sheets.py decode FOLDER cifar10.npz
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

STRIP = 500  # images; WebP allows 16,383 rows of pixels
INDEX = "index.json"


def fingerprint(array: np.ndarray) -> str:
    "Return the SHA-256 of an array's values."
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def encode(file: Path, folder: Path) -> None:
    "Write the arrays of an .npz file into a folder; images are (N, S, S, 3) uint8."
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    with np.load(file) as arrays:
        for name in arrays.files:
            array = arrays[name]
            index[name] = {"shape": array.shape, "sha256": fingerprint(array)}
            if not name.endswith("_images"):
                np.save(folder / f"{name}.npy", array)
                continue
            for first in range(0, len(array), STRIP):
                strip = array[first : first + STRIP].reshape(-1, array.shape[2], 3)
                Image.fromarray(strip).save(
                    folder / f"{name}-{first:06d}.webp", lossless=True, exact=True
                )
    (folder / INDEX).write_text(json.dumps(index))


def decode(folder: Path, file: Path) -> None:
    "Undo `encode`. Raises `ValueError` if an array differs from the original."
    arrays = {}
    for name, about in json.loads((folder / INDEX).read_text()).items():
        if name.endswith("_images"):
            strips = [Image.open(path) for path in sorted(folder.glob(f"{name}-*.webp"))]
            pixels = np.concatenate([np.asarray(strip.convert("RGB")) for strip in strips])
            arrays[name] = pixels.reshape(about["shape"])
        else:
            arrays[name] = np.load(folder / f"{name}.npy")
        if fingerprint(arrays[name]) != about["sha256"]:
            raise ValueError(
                f"{name} in {str(folder)!r} differs from the original: encode it again"
            )
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(file)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("encode", "decode"):
        sys.exit(__doc__)
    {"encode": encode, "decode": decode}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
