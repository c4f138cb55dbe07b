"""Exported models compute what ours do, and what cannot be exported is refused by name."""

import importlib.util
import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from common import DATA
from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.data import load_data, normalize
from maevit_course.export import PACKAGES, InferenceGraph, export_model
from maevit_course.models import MAE, Classifier, ModelConfig, load_model
from maevit_course.pretraining import SMALL_MODEL

PAPER = ModelConfig()
TINY = ModelConfig(
    image_size=12,
    patch_size=4,
    width=24,
    depth=2,
    heads=2,
    decoder_width=12,
    decoder_depth=1,
    decoder_heads=2,
)
SIZES = {"paper": PAPER, "small": SMALL_MODEL, "other": replace(PAPER, image_size=48), "odd": TINY}


def needs(*targets):
    "Skip where a package of the extra is missing."
    missing = [
        name
        for target in targets
        for name in PACKAGES[target]
        if not importlib.util.find_spec(name)
    ]
    return pytest.mark.skipif(bool(missing), reason=f"the extra `export` lacks {missing}")


def make(config, kind, classes=10):
    "A model whose biases and norms have values too, as after training."
    torch.manual_seed(0)
    model = MAE(config) if kind == "mae" else Classifier(config.encoder(), classes, config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def bytes_of(config, n):
    generator = torch.Generator().manual_seed(1)
    shape = (n, 3, config.image_size, config.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", ["classifier", "mae"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_other_libraries_compute_the_same(to, name, kind, tmp_path):
    if not importlib.util.find_spec(to):
        pytest.skip(f"{to} is not installed")
    model = make(SIZES[name], kind)
    assert 0 < export_model(model, to, tmp_path / "out")["difference"] <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@needs("timm")
@pytest.mark.parametrize("pool", ["dummy", "mean", "all"])
def test_timm_pools_like_ours(pool, tmp_path):
    import timm

    config = replace(TINY, pool=pool)
    model, images = make(config, "classifier"), bytes_of(config, 4)
    export_model(model, "timm", tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(normalize(images)), model(normalize(images)), atol=1e-5)
    norms = [m for m in theirs.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert theirs.blocks[0].attn.attn_drop.p == 0.1


@needs("transformers")
def test_transformers_knows_the_classes_and_the_preprocessing(tmp_path):
    from transformers import AutoImageProcessor, ViTForImageClassification

    model = load_model("shapes-classifier")
    export_model(model, "transformers", tmp_path / "out")
    theirs = ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert tuple(theirs.config.id2label.values()) == model.classes
    images = bytes_of(model.config, 3)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, normalize(images), atol=1e-6)


@needs("onnx")
@pytest.mark.parametrize(
    ("name", "kind", "attentions"),
    [("paper", "classifier", True), ("small", "mae", False), ("other", "classifier", False)],
)
def test_onnx_computes_the_same(name, kind, attentions, tmp_path):
    import onnxruntime

    model, file = make(SIZES[name], kind), tmp_path / "model.onnx"
    assert 0 < export_model(model, "onnx", file, attentions)["difference"] <= 1e-5
    session = onnxruntime.InferenceSession(str(file))
    outputs = [output.name for output in session.get_outputs()]
    first = "logits" if kind == "classifier" else "embeddings"
    assert outputs == ([first, "attentions"] if attentions else [first])
    images = bytes_of(model.config, 5)  # a batch of another size than any that was tried
    theirs = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        ours = InferenceGraph(model, attentions)(images)
    assert all(np.abs(a - b.numpy()).max() <= 1e-5 for a, b in zip(theirs, ours))
    about = session.get_modelmeta().custom_metadata_map
    assert about["model"] == kind
    assert kind == "mae" or json.loads(about["classes"]) == list(model.classes)


@needs("onnx")
def test_onnx_takes_what_others_refuse(tmp_path):
    model = make(replace(TINY, norm_first=False, pool="mean"), "classifier")
    assert export_model(model, "onnx", tmp_path / "x.onnx", True)["difference"] <= 1e-5


@needs("onnx")
def test_eight_bits_are_measured(tmp_path, capsys):
    model, (_, test) = make(SMALL_MODEL, "classifier"), load_data(DATA[1])
    model.classes = test.classes
    file, small = tmp_path / "a.onnx", tmp_path / "b.onnx"
    export_model(model, "onnx", file)
    results = export_model(model, "onnx", small, int8=test)
    assert small.stat().st_size < 0.35 * file.stat().st_size
    expected = (model.predict_logits(test.images).argmax(1) == test.labels).float().mean().item()
    assert results["accuracy"] == pytest.approx(expected, abs=0.02)
    assert results["int8_accuracy"] == pytest.approx(expected, abs=0.1)
    mae = make(TINY, "mae")
    assert 0.9 < export_model(mae, "onnx", tmp_path / "c.onnx", int8=test)["int8_cosine"] < 1


def test_the_graph_is_the_model():
    "Whatever the norms' place and the pooling, and with attention weights or without."
    for norm_first in (True, False):
        for pool in ("dummy", "mean", "all"):
            model = make(replace(TINY, norm_first=norm_first, pool=pool), "classifier")
            images = bytes_of(model.config, 4)
            with torch.no_grad():
                logits, attentions = InferenceGraph(model, True)(images)
                assert torch.allclose(logits, model(normalize(images)), atol=1e-6)
            assert attentions.shape == (4, 2, 2, 10, 10)
            assert torch.allclose(attentions.sum(-1), torch.ones(()), atol=1e-5)


def test_what_cannot_be_mapped_is_refused_by_name(tmp_path):
    def refused(model, to, message, **options):
        with pytest.raises(InputError, match=message):
            export_model(model, to, tmp_path / "out", **options)
        assert not list(tmp_path.iterdir())

    post = make(replace(TINY, norm_first=False), "classifier")
    mean = make(replace(TINY, pool="mean"), "classifier")
    refused(post, "timm", "norm_first is False")
    refused(post, "transformers", "norm_first is False")
    refused(mean, "transformers", "pool is 'mean'")
    refused(mean, "timm", "attentions is an option of 'onnx'", attentions=True)
    refused(mean, "keras", "cannot export to 'keras'")
    test = load_data(DATA[1])[1]
    refused(mean, "timm", "int8 is an option of 'onnx'", int8=test)
    refused(mean, "onnx", "was trained on the classes 0, 1", int8=test)


@pytest.mark.parametrize("to", PACKAGES)
def test_without_the_extra_there_is_one_clear_line(to, tmp_path, capsys):
    words = ["export", "--weights", "shapes-classifier", "--to", to]
    missing = ImportError(f"No module named {to!r}")
    with mock.patch("maevit_course.export.importlib.import_module", side_effect=missing):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install '.[export]'" in said
    assert not list(tmp_path.iterdir())


@needs("timm")
def test_a_wrong_export_is_not_kept(tmp_path, monkeypatch):
    "Nor is anything that exists overwritten."
    model, out = make(TINY, "classifier"), tmp_path / "out"
    monkeypatch.setattr(
        "maevit_course.export.class_token_first",
        lambda positions: (positions[None, :1].clone(), positions[None]),
    )
    with pytest.raises(InputError, match="nothing is written"):
        export_model(model, "timm", out)
    assert not list(tmp_path.iterdir())
    out.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        export_model(model, "timm", out)
    assert out.read_text() == "precious"


@needs("timm")
def test_export_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "new/folder"
    words = ["export", "--weights", "shapes-classifier", "--to", "timm", "--image-size", "40"]
    assert main([*words, "--out", str(out)]) == 0
    assert "largest difference" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["model_args"]["img_size"] == 40
    assert config["pretrained_cfg"]["label_names"][0] == "disc"
