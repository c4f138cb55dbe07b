"""Files are labelled and embedded in batches, from Python and from the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.data import preprocess
from maevit_course.inference import embed_files, find_images, predict_files, show_neighbours
from maevit_course.models import Classifier, ModelConfig, load_model
from maevit_course.shapes import make_shapes

CLASSIFIER = "c10-classifier"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A folder of 230 images, which are three batches, and other files."
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(make_shapes(230, seed=2)[0]):
        path = folder / "abc"[i % 3] / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden/x.png").write_bytes(b"")
    return folder


def test_a_classifier_of_two_classes_names_both(photos):
    config = ModelConfig(image_size=16, patch_size=4, width=16, depth=1, heads=2)
    classifier = Classifier(config.encoder(), ("a", "b"), config)
    rows = predict_files(classifier, [photos / "a"])
    assert all(sorted(row["classes"]) == ["a", "b"] for row in rows)


def test_batches_give_the_same_as_one_call(photos):
    classifier, files = load_model(CLASSIFIER), find_images([photos])
    assert len(files) == 230 and files == sorted(photos.glob("[abc]/*.png"))
    rows = predict_files(classifier, [photos], top=10, precision="fp32")
    assert [row["path"] for row in rows] == [str(file) for file in files]
    expected = classifier.predict_logits(list(files), precision="fp32").softmax(1)
    for row, probabilities in zip(rows, expected):
        values, order = probabilities.sort(descending=True)
        assert row["classes"] == [classifier.classes[i] for i in order]
        assert row["probabilities"] == pytest.approx(values.tolist(), abs=1e-5)


@torch.no_grad()
def test_embeddings_of_every_kind(photos):
    mae, files = load_model("c10"), find_images([photos])
    x = preprocess(list(files), 32)
    from maevit_course.patches import patchify

    tokens = mae.encoder(patchify(x, 4))
    expected = {"mean": tokens[:, :-1].mean(1), "dummy": tokens[:, -1], "patches": tokens[:, :-1]}
    for pool, values in expected.items():
        found, features = embed_files(mae, [photos], pool)
        assert found == files and torch.allclose(features, values, atol=1e-5)
    with pytest.raises(InputError, match="pool is 'all'"):
        embed_files(mae, [photos], "all")


def test_unreadable_files_are_left_out(photos, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    words = ["predict", "--weights", CLASSIFIER, str(photos / "a/000.png"), str(bad)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 and "000.png" in said.out
    assert said.err.count("\n") == 1 and "left out 1 file of 2" in said.err
    assert main(["predict", "--weights", CLASSIFIER, str(bad)]) == 2
    assert "none of the 1 files can be used" in capsys.readouterr().err


def test_predictions_as_text_csv_and_json(photos, tmp_path, capsys):
    words = ["predict", "--weights", CLASSIFIER, str(photos / "a"), "--top", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 77 and printed[0].count(" %") == 2
    for kind in ("csv", "json"):
        assert main([*words, "--out", str(tmp_path / f"x.{kind}")]) == 0
    assert "classes of 77 images" in capsys.readouterr().out
    rows = json.loads((tmp_path / "x.json").read_text())
    lines = list(csv.reader((tmp_path / "x.csv").open()))
    assert lines[0] == ["path", "class1", "probability1", "class2", "probability2"]
    for row, line, text in zip(rows, lines[1:], printed, strict=True):
        assert line[:2] == [row["path"], row["classes"][0]]
        assert float(line[4]) == row["probabilities"][1]
        assert text.split()[:2] == line[:2]


def test_embeddings_as_npz_and_csv_and_neighbours(photos, tmp_path, capsys):
    image = photos / "a/000.png"
    words = ["embed", "--weights", "c10", str(photos)]
    assert main([*words, "--out", str(tmp_path / "x.npz"), "--neighbours", str(image)]) == 0
    assert main([*words, "--out", str(tmp_path / "x.csv"), "--pool", "dummy"]) == 0
    with np.load(tmp_path / "x.npz") as stored:
        assert stored["features"].shape == (230, 128) and stored["paths"][0] == str(image)
    lines = list(csv.reader((tmp_path / "x.csv").open()))
    assert len(lines) == 231 and len(lines[1]) == 129
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 500
    assert "neighbours: " in capsys.readouterr().out


def test_the_nearest_neighbour_is_a_copy_of_the_image(photos, tmp_path):
    "And never the image itself."
    mae, image = load_model("c10"), photos / "b/001.png"
    (tmp_path / "copy.png").write_bytes(image.read_bytes())
    files, features = embed_files(mae, [photos, tmp_path])
    axes = show_neighbours(mae, image, files, features, n=3).axes
    titles = [axis.get_title() for axis in axes]
    assert titles[:2] == ["query", "1.00"] and float(titles[2]) < 1
    pixels = [axis.images[0].get_array() for axis in axes[:2]]
    assert np.array_equal(*pixels)
    with pytest.raises(InputError, match="no other image"):
        show_neighbours(mae, image, [image], features[:1])


def test_an_autoencoder_predicts_no_classes(photos):
    with pytest.raises(InputError, match="MAE has no classes"):
        predict_files(load_model("c10"), [photos])


WRONG = {
    "predict --weights c10-classifier nowhere": "'nowhere'",
    "predict --weights c10-classifier empty": "no images in 'empty'",
    "predict --weights c10-classifier x.png --top 0": "top is 0",
    "predict --weights c10-classifier x.png --top 11": "top is 11",
    "predict --weights c10-classifier x.png --out x.txt": "'x.txt'",
    "predict --weights c10-classifier x.png --out no/x.csv": "no folder 'no'",
    "predict --weights c10 x.png": "holds mae weights",
    "embed --weights c10 x.png --out x.csv --pool patches": "must end in .npz",
    "embed --weights c10 x.png --out x.npz --pool patches --neighbours x.png": "'patches'",
    "embed --weights c10 x.png --out x.npz --neighbours x.png": "no other image",
    "embed --weights nowhere x.png --out x.npz": "'nowhere'",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save("x.png")
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and WRONG[words] in said
