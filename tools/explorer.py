"""Build the explorer, a web page in which the bundled models run.

    python tools/explorer.py site/explorer

This copies the page from web/explorer and adds what it loads: ONNX Runtime, the models as ONNX
files, example pictures, and models.json, which lists them. ONNX Runtime comes from npm
(`npm ci` in web/), and the export needs the extra `export`. Any file server can serve the folder.
"""

import argparse
import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from maevit_course.core import InputError
from maevit_course.decoder import insert_mask_tokens
from maevit_course.encoder import add_positions, gather_tokens
from maevit_course.export import attention_weights, quiet, require
from maevit_course.models import MAE, Classifier, load_model
from maevit_course.patches import patchify, unpatchify
from maevit_course.shapes import SHAPE_CLASSES, make_shapes
from maevit_course.weights import bundled_weights

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
#: Autoencoders that the page offers if they are bundled, the first one at the start: name, title,
#: and the example picture with which it starts. The classifier's name is the same, `-classifier`.
MODELS = [
    ("c10", "Photographs", {"shelf": 0, "picture": 5}),
    ("shapes", "Drawn shapes", {"shelf": 1, "picture": 5}),
]
#: What the page needs of onnxruntime-web, and what it calls it.
RUNTIME = {"ort.wasm.bundle.min.mjs": "ort.mjs", "ort-wasm-simd-threaded.wasm": "ort.wasm.gz"}
#: The first 24 test images of CIFAR-10 in a committed figure, and what they show.
GALLERY = ROOT / "results/small/c10-100/gallery.jpg"
PHOTOGRAPHS = (
    "automobile dog ship ship frog automobile truck automobile ship automobile bird truck "
    "ship dog automobile frog automobile cat automobile automobile frog airplane truck automobile"
).split()
SIDE = 32  # pixels of an example picture


def run_layers(
    layers: nn.ModuleList,
    x: Tensor,  # (1, T, D)
) -> tuple[Tensor, Tensor]:  # (1, T, D), and attention weights (L, H, T, T)
    "Apply transformer layers and keep their attention weights."
    weights = []
    for layer in layers:
        weights.append(
            attention_weights(layer.attention, layer.norm1(x) if layer.norm_first else x)
        )
        x = layer(x)
    return x, torch.cat(weights)


def similarity(
    positions: Tensor,  # (N+1, D), the class token last
) -> Tensor:  # (N+1, N+1), 1 on the diagonal
    "Return the cosine similarities of all positional embeddings."
    unit = nn.functional.normalize(positions, dim=1)
    return unit @ unit.T


class ExplorerGraph(nn.Module):
    """What the page asks of a model, from the pixels of a canvas to the pixels of another.

    The first output of an autoencoder is its reconstruction as a picture, that of a classifier the
    probability of each class. `names` holds the names of all outputs.
    """

    def __init__(self, model: MAE | Classifier):
        super().__init__()
        self.model = model
        self.names = ["probabilities"]
        if isinstance(model, MAE):
            self.names = ["picture", "prediction", "errors", "encoder", "decoder"]
            self.names += ["encoder_positions", "decoder_positions"]

    def forward(
        self,
        pixels: Tensor,  # (S, S, 4) uint8: red, green, blue and opacity
        keep: Tensor,  # (K,) int64: indices of the visible patches
    ) -> tuple[Tensor, ...]:
        image = 2 * (pixels[..., :3].permute(2, 0, 1)[None].float() / 255) - 1  # as `normalize`
        patches = patchify(image, self.model.config.patch_size)  # (1, N, P)
        if isinstance(self.model, MAE):
            return self.reconstruct(self.model, patches, keep[None])
        return (self.model(image, keep[None]).softmax(1)[0],)

    def reconstruct(self, mae: MAE, patches: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        "Return the autoencoder's outputs, in the order of `names`."
        encoder, decoder = mae.encoder, mae.decoder
        x = add_positions(encoder.embed(gather_tokens(patches, keep)), keep, encoder.positions)
        x, encoder_maps = run_layers(encoder.layers, x)  # (L, H, K+1, K+1)
        z = decoder.adapt(encoder.project(encoder.norm(x)))
        x = insert_mask_tokens(z, keep, decoder.mask_embedding, patches.shape[1])
        x, decoder_maps = run_layers(decoder.layers, x + decoder.positions)  # (L, H, N+1, N+1)
        prediction = decoder.head(decoder.norm(x[:, :-1]))  # (1, N, P)
        errors = (prediction - patches).square().mean(-1)  # (1, N), as in Eq. 1
        maps = encoder_maps, decoder_maps
        alike = similarity(encoder.positions), similarity(decoder.positions)
        picture = to_canvas(unpatchify(prediction, mae.config.patch_size)[0])
        return picture, prediction[0], errors[0], *maps, *alike


def to_canvas(
    image: Tensor,  # (3, S, S), normalised
) -> Tensor:  # (S, S, 4) uint8
    "Turn an image into the opaque pixels of a canvas."
    levels = (127.5 * (image + 1)).round().clamp(0, 255).permute(1, 2, 0)
    return torch.cat([levels, torch.full_like(levels[..., :1], 255)], dim=-1).to(torch.uint8)


def halve_weights(
    proto: Any,  # an ONNX model, which is changed
) -> None:
    """Store the weights of an ONNX graph in 16 bits where that loses nothing, and cast them back.

    The bundled weights have 16 bits, so the graph computes the same in float32 and its file is
    half as large.
    """
    onnx = require("onnx", "onnx")
    graph, casts = proto.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        short, name = values.astype("float16"), tensor.name
        if values.size > 1 and (short == values).all():
            tensor.CopyFrom(onnx.numpy_helper.from_array(short, f"{name}.half"))
            casts.append(
                onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
            )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def to_onnx(model: MAE | Classifier) -> bytes:
    "Export what the page asks of a model to ONNX, for any number of visible patches."
    require("onnxscript", "onnx")
    graph, size = ExplorerGraph(model).eval(), model.config.image_size
    with quiet():
        program = torch.onnx.export(
            graph,
            (torch.zeros(size, size, 4, dtype=torch.uint8), torch.arange(5)),
            input_names=["pixels", "keep"],
            output_names=graph.names,
            dynamic_shapes={"pixels": {}, "keep": {0: torch.export.Dim("visible")}},
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    halve_weights(proto)
    return proto.SerializeToString()


def pack(content: bytes, path: Path) -> int:
    "Write a compressed file, the same bytes each time, and return its size."
    path.write_bytes(gzip.compress(content, 9, mtime=0))
    return path.stat().st_size


def export_models(out: Path) -> list[dict[str, Any]]:
    "Write the bundled models of `MODELS` and describe them for the page."
    described = []
    for name, title, start in MODELS:
        if name not in bundled_weights():
            continue
        mae = load_model(name, "mae")
        config, file = mae.config, f"{name}.onnx.gz"
        about = {
            "name": name,
            "title": title,
            "start": start,
            "size": config.image_size,
            "side": config.image_size // config.patch_size,
            "file": {"name": file, "bytes": pack(to_onnx(mae), out / file)},
        }
        if (classifier := f"{name}-classifier") in bundled_weights():
            model, file = load_model(classifier, "classifier"), f"{classifier}.onnx.gz"
            if model.config.image_size != config.image_size:
                raise InputError(
                    f"{classifier!r} reads images of {model.config.image_size} pixels, but the "
                    f"autoencoder reads {config.image_size}: bundle two models of the same size"
                )
            about["classifier"] = {"name": file, "bytes": pack(to_onnx(model), out / file)}
            about["classes"] = list(model.classes)
        described.append(about)
    return described


def gallery_photographs() -> list[Image.Image]:
    "Cut the original test images out of the figure, in which a pixel measures 2.4 pixels."
    figure = Image.open(GALLERY).convert("RGB")
    boxes = [
        (11 + 257.1 * column, 10 + 86.6 * row) for row in range(6) for column in range(4)
    ]  # left and top edges
    return [
        figure.resize((SIDE, SIDE), Image.Resampling.BOX, (x, y, x + 77.5, y + 77.5))
        for x, y in boxes
    ]


def write_sprite(
    title: str, pictures: list[Image.Image], labels: list[str], path: Path
) -> dict[str, Any]:
    "Write pictures side by side into one file and describe it for the page."
    sprite = Image.new("RGB", (SIDE * len(pictures), SIDE))
    for i, picture in enumerate(pictures):
        sprite.paste(picture, (SIDE * i, 0))
    sprite.save(path, optimize=True)
    return {"title": title, "name": path.name, "side": SIDE, "labels": labels}


def export_pictures(out: Path) -> list[dict[str, Any]]:
    "Write the example pictures and describe them for the page."
    images, labels = make_shapes(2 * len(SHAPE_CLASSES), SIDE, seed=1)
    shapes = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    names = [SHAPE_CLASSES[label] for label in labels.tolist()]
    photographs = gallery_photographs(), PHOTOGRAPHS, out / "photographs.png"
    return [
        write_sprite("Photographs (CIFAR-10)", *photographs),
        write_sprite("Drawn shapes", shapes, names, out / "shapes.png"),
    ]


def export_runtime(out: Path) -> dict[str, Any]:
    "Install the packages of web/ if necessary and write ONNX Runtime's two files."
    folder = WEB / "node_modules/onnxruntime-web/dist"
    if not folder.is_dir():
        if not shutil.which("npm"):
            raise InputError(f"{folder} is missing and npm is not installed: install Node.js")
        subprocess.run(["npm", "ci", "--ignore-scripts", "--silent"], cwd=WEB, check=True)
    (script, script_name), (binary, binary_name) = RUNTIME.items()
    shutil.copy(folder / script, out / script_name)
    size = pack((folder / binary).read_bytes(), out / binary_name)
    return {"name": binary_name, "bytes": size}


def build(out: Path) -> None:
    "Write the explorer into a folder, which is created if necessary."
    shutil.copytree(WEB / "explorer", out, dirs_exist_ok=True)
    about = {
        "runtime": export_runtime(out),
        "models": export_models(out),
        "pictures": export_pictures(out),
    }
    (out / "models.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write, for example site/explorer")
    out = parser.parse_args().out
    try:
        build(out)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    total = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {total / 1e6:.1f} MB in {sum(1 for _ in out.iterdir())} files")


if __name__ == "__main__":
    main()
