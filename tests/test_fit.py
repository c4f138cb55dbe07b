"""Images that are not square reach a model as its training images did: cropped or padded."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from maevit_course.cards import write_card
from maevit_course.cli import main
from maevit_course.core import InputError, set_seed
from maevit_course.data import load_data, preprocess
from maevit_course.evaluation import embed
from maevit_course.export import write_timm
from maevit_course.finetuning import FINETUNE_RECIPES, finetune
from maevit_course.inference import embed_files, predict_files
from maevit_course.inspection import inspect_source
from maevit_course.models import MAE, Classifier, ModelConfig, load_model
from maevit_course.pretraining import PRETRAIN_RECIPES, pretrain
from maevit_course.shapes import make_shapes
from maevit_course.weights import export_float16, from_bytes, read_weights, to_bytes

TINY = ModelConfig(12, 3, 24, 1, 3, decoder_width=24, decoder_depth=1, decoder_heads=3)


def wide_image(seed=0):
    "Two drawings next to each other: the crop shows half of each, the pad shows both."
    images, _ = make_shapes(2, seed=seed)
    pixels = torch.cat(list(images), 2).permute(1, 2, 0)  # (32, 64, 3)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A folder of wide images, and two runs on them that pad: pre-training and fine-tuning."
    folder = tmp_path_factory.mktemp("fit")
    for i in range(20):
        path = folder / f"photos/{'ab'[i % 2]}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        wide_image(i).save(path)
    train, test = load_data(folder / "photos", fit="pad")
    sizes = {"batch_size": 16, "precision": "fp32", "model": TINY}
    recipe = replace(PRETRAIN_RECIPES["small"].with_epochs(1), **sizes)
    pretrain(train, recipe, folder / "mae")
    recipe = replace(FINETUNE_RECIPES["small"].with_epochs(1), **sizes)
    finetune(train, test, recipe, folder / "classifier", folder / "mae")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A wide file, and the same file padded by hand."
    folder, wide = tmp_path_factory.mktemp("files"), wide_image(99)
    square = Image.new("RGB", (64, 64), (128, 128, 128))
    square.paste(wide, (0, 16))
    wide.save(folder / "wide.png")
    square.save(folder / "square.png")
    return [folder / "wide.png", folder / "square.png"]


def test_a_padded_file_is_predicted_like_one_padded_by_hand(runs, files):
    classifier, mae = load_model(runs / "classifier"), load_model(runs / "mae")
    assert classifier.fit == mae.fit == "pad"
    wide, square = classifier.predict_logits(files, precision="fp32")
    assert torch.equal(wide, square)
    a, b = predict_files(classifier, files, top=2, precision="fp32")
    assert (a["classes"], a["probabilities"]) == (b["classes"], b["probabilities"])
    assert torch.equal(*embed_files(mae, files)[1])
    cropped = load_model(runs / "classifier")
    cropped.fit = "crop"
    wide, same = cropped.predict_logits(files, precision="fp32")
    assert torch.equal(same, square) and not torch.allclose(wide, square)


def test_tensors_and_pillow_images_are_padded_like_files(runs, files):
    wide = Image.open(files[0])
    tensor = torch.frombuffer(bytearray(wide.tobytes()), dtype=torch.uint8)
    tensor = tensor.reshape(32, 64, 3).permute(2, 0, 1)
    from_file = preprocess(files[0], 12, fit="pad")
    assert torch.equal(preprocess(wide, 12, fit="pad"), from_file)
    torch.testing.assert_close(preprocess(tensor, 12, fit="pad"), from_file, atol=5e-3, rtol=0)
    model = load_model(runs / "mae")
    both = embed(model, tensor[None])["mean"], embed_files(model, files[:1])[1]
    torch.testing.assert_close(*both, atol=5e-3, rtol=0)


def test_a_tall_image_is_padded_at_its_sides():
    tall = preprocess(torch.zeros(1, 3, 9, 4, dtype=torch.uint8), 9, fit="pad")
    grey = tall[0, 0, 0] > -0.5
    assert grey.tolist() == [True] * 2 + [False] * 4 + [True] * 3


def test_the_fit_stays_with_the_weights(runs, tmp_path):
    trained = load_model(runs / "classifier")
    trained.save_pretrained(tmp_path / "copy.safetensors")
    export_float16(runs / "classifier", tmp_path / "half.safetensors")
    for name in ("copy", "half"):
        assert load_model(tmp_path / f"{name}.safetensors").fit == "pad"
    write_timm(trained, tmp_path / "timm")
    described = json.loads((tmp_path / "timm/config.json").read_text())["pretrained_cfg"]
    assert described["crop_mode"] == "border" and described["crop_pct"] == 1.0
    assert "fit" in read_weights(runs / "classifier")[1]
    assert "padded to squares" in inspect_source(runs / "classifier")
    assert "padded with grey to a square" in write_card(runs / "classifier").read_text()


def test_weights_without_the_field_crop(tmp_path):
    "As all weights of version 0.1 do, and all that were trained without `--fit pad`."
    set_seed(0)
    Classifier(TINY.encoder(), 2, TINY).save_pretrained(tmp_path / "x.safetensors")
    assert "fit" not in read_weights(tmp_path / "x.safetensors")[1]
    assert load_model(tmp_path / "x.safetensors").fit == load_model("c10").fit == "crop"
    assert "padded" not in inspect_source(tmp_path / "x.safetensors")
    write_timm(load_model(tmp_path / "x.safetensors"), tmp_path / "timm")
    described = json.loads((tmp_path / "timm/config.json").read_text())["pretrained_cfg"]
    assert described["crop_mode"] == "center"


def test_fine_tuning_takes_the_fit_of_its_own_images(runs, tmp_path):
    train, test = load_data(runs / "photos")
    recipe = replace(FINETUNE_RECIPES["small"].with_epochs(1), batch_size=16, precision="fp32")
    assert finetune(train, test, recipe, tmp_path / "run", runs / "mae").fit == "crop"
    assert load_model(tmp_path / "run").fit == "crop"


def test_an_unknown_fit_in_a_header_is_refused(tmp_path):
    MAE(TINY).save_pretrained(tmp_path / "x.safetensors")
    tensors, about = from_bytes((tmp_path / "x.safetensors").read_bytes())
    (tmp_path / "x.safetensors").write_bytes(to_bytes(tensors, about | {"fit": "stretch"}))
    with pytest.raises(InputError, match="its fit is 'stretch', not 'crop' or 'pad'"):
        load_model(tmp_path / "x.safetensors")


def test_predict_pads_from_the_command_line(runs, files, tmp_path):
    out = tmp_path / "labels.json"
    words = ["predict", *map(str, files), "--weights", str(runs / "classifier"), "--top", "2"]
    assert main([*words, "--out", str(out)]) == 0
    wide, square = json.loads(out.read_text())
    assert wide["probabilities"] == pytest.approx(square["probabilities"], abs=1e-6)


def test_evaluation_follows_the_fit_of_the_weights(runs, capsys):
    words = ["evaluate", "--weights", str(runs / "classifier"), "--data", str(runs / "photos")]
    losses = {}
    for fit in ((), ("--fit", "pad"), ("--fit", "crop")):
        assert main([*words, "--json", "--device", "cpu", *fit]) == 0
        losses[fit] = json.loads(capsys.readouterr().out)["cross_entropy"]
    assert losses[()] == losses["--fit", "pad"] != losses["--fit", "crop"]
