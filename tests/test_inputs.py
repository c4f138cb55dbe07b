"""Bad input of every kind: one clear line, status 2, nothing overwritten, nothing run."""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

import maevit_course
from common import DATA, QUICK
from maevit_course.cli import main
from maevit_course.core import InputError, fingerprint
from maevit_course.data import ImageData, load_data
from maevit_course.evaluation import show_confusion
from maevit_course.finetuning import FINETUNE_RECIPES, finetune
from maevit_course.masking import random_masking
from maevit_course.models import Classifier, ModelConfig, load_model
from maevit_course.pretraining import PRETRAIN_RECIPES
from maevit_course.reports import report
from maevit_course.runs import RunRecord
from maevit_course.weights import CorruptFileError, from_bytes, read_weights, to_bytes

fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SMALL = ["--recipe", "small", "--epochs", "1", "--batch-size", "2"]


def save_npz(path, **changes):
    "Eight grey images of two classes in MedMNIST's layout, with changes; None leaves an array out."
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    arrays = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images, "test_labels": labels} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def make_folder(root, classes=("cat", "dog"), test_classes=None, n=3):
    "An image folder with a few small pictures in each class."
    for split, names in (("train", classes), ("test", test_classes or classes)):
        for c, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                image = Image.new("RGB", (8, 8), (80 * c, 30 * i, 99))
                image.save(root / split / name / f"{i}.png")
    return root


def npz(**changes):
    return lambda t: save_npz(t / "x.npz", **changes)


def folder(*classes):
    return lambda t: make_folder(t / "x", *classes)


def without_classes(t):
    for split in ("train", "test"):
        (t / "x" / split).mkdir(parents=True)
    return t / "x"


def with_file(name, content):
    "An image folder with one more file."

    def make(t):
        (make_folder(t / "x") / name).write_bytes(content)
        return t / "x"

    return make


def truncated_image(t):
    file = make_folder(t / "x") / "train/cat/0.png"
    file.write_bytes(file.read_bytes()[:40])
    return t / "x"


def broken_link(t):
    (make_folder(t / "x") / "train/cat/gone.png").symlink_to("nowhere")
    return t / "x"


def loop_of_links(t):
    (t / "x").symlink_to(t / "x")
    return t / "x"


def truncated_npz(t):
    file = save_npz(t / "x.npz")
    file.write_bytes(file.read_bytes()[:200])
    return file


def damaged_npz(t):
    np.savez_compressed(t / "x.npz", train_images=np.arange(9999))
    content = (t / "x.npz").read_bytes()
    (t / "x.npz").write_bytes(content[:90] + b"\xff" * 50 + content[140:])
    return t / "x.npz"


def npy_called_npz(t):
    np.save(t / "x.npy", np.zeros(3))
    return (t / "x.npy").rename(t / "x.npz")


no_images = {"train_images": np.zeros((0, 8, 8), np.uint8), "train_labels": np.zeros(0, int)}
no_size = np.zeros((8, 0, 0), np.uint8)
# What is wrong with the data → (how it is made in a folder t, what the message must say)
DATA_ERRORS = {
    "missing path": (lambda t: t / "nowhere", "nowhere"),
    "empty folder": (lambda t: t, "no images in"),
    "folder without classes": (without_classes, "no images in"),
    "classes differ": (folder(("cat", "dog"), ("cat", "cow")), "different classes: ['cow', 'dog']"),
    "truncated image": (truncated_image, "cat/0.png"),
    "text called an image": (with_file("train/dog/text.png", b"hello"), "text.png"),
    "broken link": (broken_link, "gone.png"),
    "loop of links": (loop_of_links, "x"),
    "no such key": (npz(test_labels=None), "lacks test_labels"),
    "label below zero": (npz(train_labels=np.arange(8) - 1), "range from -1"),
    "label too large": (npz(train_labels=np.arange(8) * 10**9), "labels"),
    "label beyond the names": (npz(class_names=np.array(["one"])), "between 0 and 0"),
    "labels of wrong shape": (npz(train_labels=np.zeros((8, 2), int)), "(8, 2)"),
    "labels are words": (npz(train_labels=np.array(["a"] * 8)), "integers"),
    "labels are NaN": (npz(train_labels=np.full(8, np.nan)), "integers"),
    "images are floats": (npz(train_images=np.zeros((8, 8, 8))), "uint8"),
    "images are NaN": (npz(train_images=np.full((8, 8, 8, 3), np.nan)), "uint8"),
    "images have two colours": (npz(train_images=np.zeros((8, 8, 8, 2), np.uint8)), "(8, 8, 8, 2)"),
    "images are not square": (npz(train_images=np.zeros((8, 8, 9), np.uint8)), "8×9"),
    "no images at all": (npz(**no_images), "0 images"),
    "images of no size": (npz(train_images=no_size), "0×0"),
    "truncated npz": (truncated_npz, "npz"),
    "damaged npz": (damaged_npz, "npz"),
    "npy called npz": (npy_called_npz, "npz"),
    "npz with an object": (npz(train_images=np.array([{}], dtype=object)), "npz"),
}


def refused(words, said, capsys, warned=0):
    "Status 2, and a single line that says this, after as many warnings."
    assert main([str(w) for w in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1] and len(lines) == 1 + warned, lines
    assert all(line.startswith("maevit: ") for line in lines), lines


@pytest.mark.parametrize("what", DATA_ERRORS)
def test_bad_data(what, tmp_path, capsys):
    make, said = DATA_ERRORS[what]
    refused(["pretrain", "--data", make(tmp_path), *SMALL, "--out", tmp_path / "run"], said, capsys)
    assert not (tmp_path / "run").exists()


def images(*names):
    "A folder with small images."

    def make(t):
        for i, name in enumerate(names):
            (t / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(t / "x" / name)
        return t / "x"

    return make


def also(make, name, content=None):
    "The same with one more file, or with a link that leads nowhere."

    def more(t):
        file = make(t) / name
        file.write_bytes(content) if content is not None else file.symlink_to("nowhere")
        return t / "x"

    return more


FLAT = images(*[f"{i}.png" for i in range(20)])
NESTED = images(*[f"2023/{month}/{i}.png" for month in ("05", "06") for i in range(10)])
CLASSES = images(*[f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)])
SPLIT = folder()
VAL = images(*[f"{split}/{c}/0.png" for split in ("train", "val") for c in ("cat", "dog")])


def csv(text, encoding="utf-8"):
    "A table of the images of a flat folder."

    def make(t):
        (FLAT(t) / "x.csv").write_bytes(text.encode(encoding))
        return t / "x/x.csv"

    return make


LABELS = "\n".join(["path,label", *(f"{i}.png,{i % 2}" for i in range(20))])
PAIRS = TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) % 2)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


class Table(list):
    "What `datasets` calls a data set, as far as it matters here."

    def __init__(self, rows, **features):
        super().__init__(rows)
        self.columns, names = features, {"names": ["cat", "dog"]}
        self.features = {column: type(kind, (), names)() for column, kind in features.items()}


def hugging_face(saved):
    "A folder that the package `datasets`, of which we make a stand-in, has saved."

    def make(t):
        (t / "x").mkdir()
        (t / "x/dataset_dict.json").write_text("{}")
        load = mock.Mock(**({"side_effect": saved} if callable(saved) else {"return_value": saved}))
        module = types.SimpleNamespace(load_from_disk=load) if saved is not None else None
        return mock.patch.dict(sys.modules, {"datasets": module}), t / "x"

    return make


ROWS = [{"image": Image.new("L", (9, 9), i), "label": i % 2} for i in range(10)]
TABLE = Table(ROWS, image="Image", label="ClassLabel")


def damaged(path):
    raise ValueError("it is damaged")


def cifar(work):
    "CIFAR-10 whose download does something else."
    return lambda t: (mock.patch("torchvision.datasets.CIFAR10", work), "cifar10")


def downloaded(root, train, download):
    data = np.zeros((10, 32, 32, 3), np.uint8)
    return types.SimpleNamespace(data=data, targets=[0, 1] * 5, classes=["plane", "car"])


def unreachable(root, train, download):
    raise OSError("no network")


def wrong_checksum(root, train, download):
    raise RuntimeError("File not found or corrupted.")


two_labels = torch.zeros(8, 2, dtype=torch.int64)
#: Each kind of source: a good one, the training images, test images and classes in it,
#: and bad ones with what the message must say. A pair is a context and the source.
SOURCES = {
    "shapes": (
        lambda t: "shapes",
        (12_000, 2_000, 10),
        [
            (lambda t: "Shapes", "'Shapes'"),
            (lambda t: "shapes.npz", "'shapes.npz'"),
            (lambda t: t / "shapes", "shapes'"),
        ],
    ),
    "cifar10": (
        cifar(downloaded),
        (10, 10, 2),
        [
            (cifar(unreachable), "no network"),
            (cifar(wrong_checksum), "corrupted"),
            (lambda t: "cifar11", "'cifar11'"),
        ],
    ),
    "train and test": (
        SPLIT,
        (6, 6, 2),
        [
            (images("train/cat/0.png"), "x/test'"),
            (images("test/cat/0.png"), "x/train'"),
            (folder(("cat",), ("cow",)), "['cat', 'cow']"),
        ],
    ),
    "train and val": (
        VAL,
        (2, 2, 2),
        [
            (images("train/cat/0.png", "val/cow/0.png"), "['cat', 'cow']"),
            (images("train/cat/0.png", "val/0.png"), "['cat']"),
            (also(VAL, "val/dog/1.png", b"!"), "dog/1.png"),
        ],
    ),
    "train and test without classes": (
        images("train/0.png", "train/1.png", "test/0.png"),
        (2, 1, 0),
        [
            (also(images("train/0.png", "test/0.png"), "train/1.png", b"!"), "train/1.png"),
            (also(images("train/0.png", "test/0.png"), "test/1.png"), "broken symbolic link"),
            (images("train/0.png", "test/a/0.png"), "['a']"),
        ],
    ),
    "classes": (
        CLASSES,
        (8, 2, 2),
        [
            (images("cat/0.png", "dog/0.png"), "too few images"),
            (also(CLASSES, "cat/9.png", b"hello"), "cat/9.png"),
            (also(CLASSES, "dog/gone.png"), "gone.png"),
        ],
    ),
    "flat": (
        FLAT,
        (19, 1, 0),
        [
            (images("0.png"), "too few images"),
            (also(FLAT, "99.png", b""), "99.png"),
            (also(FLAT, "gone.png"), "broken symbolic link"),
        ],
    ),
    "nested": (
        NESTED,
        (19, 1, 0),
        [
            (lambda t: (t / "x/a/b").mkdir(parents=True) or t / "x", "no images in"),
            (also(NESTED, "2023/05/99.jpg", b"\xff\xd8"), "99.jpg"),
            (also(NESTED, "2023/gone.png"), "broken symbolic link"),
        ],
    ),
    "csv": (
        csv(LABELS),
        (16, 4, 2),
        [
            (csv(LABELS.replace("label", "class", 1)), "no column 'label'"),
            (csv(LABELS + "\n99.png,0"), "line 22 of"),
            (csv(LABELS + "\n7.png,0"), "a second time"),
            (csv(LABELS + "\n7.png"), "lacks a path or a label"),
            (csv("path,label\n"), "lists no images"),
            (csv("path,label\né.png,0", "latin-1"), "cannot be read as a CSV file"),
        ],
    ),
    "npz": (
        npz(),
        (8, 8, 2),
        [
            (npz(test_images=None), "lacks test_images"),
            (npz(train_labels=two_labels.numpy()), "(8, 2)"),
            (truncated_npz, "npz"),
        ],
    ),
    "npz with val": (
        npz(
            test_images=None,
            test_labels=None,
            val_images=np.zeros((3, 8, 8), np.uint8),
            val_labels=np.arange(3) % 2,
        ),
        (8, 3, 2),
        [
            (npz(test_images=None, val_images=np.zeros((3, 8, 8), np.uint8)), "lacks val_labels"),
            (npz(train_images=None), "lacks train_images"),
            (npz(train_labels=np.arange(8) - 1), "range from -1"),
        ],
    ),
    "npz without splits": (
        npz(images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(10) % 2),
        (8, 2, 2),
        [
            (
                npz(images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(9)),
                "must be 10 integers",
            ),
            (npz(images=np.zeros((10, 8, 8))), "uint8"),
            (npz(images=np.zeros((1, 8, 8), np.uint8)), "too few images"),
        ],
    ),
    "PyTorch data set": (
        lambda t: PAIRS,
        (8, 2, 2),
        [
            (lambda t: Stream(), "has no length"),
            (lambda t: TensorDataset(torch.rand(4, 3, 8, 8)), "item 0"),
            (lambda t: TensorDataset(torch.rand(4, 7, 8, 8), torch.arange(4)), "(1, 7, 8, 8)"),
        ],
    ),
    "pair of PyTorch data sets": (
        lambda t: (PAIRS, TensorDataset(torch.rand(3, 1, 9, 9), torch.zeros(3))),
        (10, 3, 2),
        [
            (lambda t: (PAIRS, []), "no items"),
            (lambda t: (PAIRS, [(torch.rand(3, 8, 8), 2)]), "between 0 and 1"),
            (lambda t: (PAIRS, [torch.rand(3, 8, 8)]), "different classes"),
        ],
    ),
    "images alone": (
        lambda t: [torch.rand(3, 8, 8)] * 40,
        (38, 2, 0),
        [
            (lambda t: [torch.rand(3, 8, 8)], "too few images"),
            (lambda t: [torch.rand(3, 8, 8), (torch.rand(3, 8, 8), 0)], "not tuple"),
            (lambda t: [torch.rand(3, 8, 8) * 255] * 3, "0 to 1"),
        ],
    ),
    "Hugging Face": (
        hugging_face(TABLE),
        (8, 2, 2),
        [
            (hugging_face(None), "install the package `datasets`"),
            (hugging_face(damaged), "it is damaged"),
            (hugging_face({"test": TABLE}), "no split 'train', but test"),
            (hugging_face(Table(ROWS, label="ClassLabel")), "no column of images"),
        ],
    ),
    "Hugging Face with splits": (
        hugging_face({"train": TABLE, "validation": Table(ROWS[:3], **TABLE.columns)}),
        (10, 3, 2),
        [
            (hugging_face({"train": TABLE, "test": Table([], **TABLE.columns)}), "no items"),
            (hugging_face({"train": TABLE, "test": Table(ROWS, image="Image")}), "['cat', 'dog']"),
            (hugging_face({"train": Table(ROWS * 2, label="Value")}), "but label"),
        ],
    ),
}


def load(make, t):
    "Load a source, and return the warnings too."
    made = make(t)
    has_context = isinstance(made, tuple) and hasattr(made[0], "__enter__")
    context, source = made if has_context else (contextlib.nullcontext(), made)
    with context, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return load_data(source), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("kind", SOURCES)
def test_each_kind_of_source(kind, tmp_path):
    good, (n, n_test, n_classes), bad = SOURCES[kind]
    (tmp_path / "good").mkdir()
    (train, test), told = load(good, tmp_path / "good")
    assert (len(train), len(test), len(train.classes)) == (n, n_test, n_classes)
    assert train.classes == test.classes and train.images.shape[1:] == test.images.shape[1:]
    held = train.describe().get("held_out")
    assert [f"holding out {n_test} of its {n + n_test} images" in line for line in told] == (
        [True] if held else []
    )
    assert held is None or held["images"] == n_test
    assert len(bad) >= 3
    for i, (make, said) in enumerate(bad):
        (tmp_path / str(i)).mkdir()
        with pytest.raises(InputError, match=re.escape(said)):
            load(make, tmp_path / str(i))


def test_files_that_are_no_images_are_skipped_and_counted(tmp_path, capsys):
    make_folder(tmp_path / "x")
    for name in ("train/cat/Thumbs.db", "train/dog/desktop.ini", "test/cat/notes.txt"):
        (tmp_path / "x" / name).write_bytes(b"\0")
    words = ["pretrain", "--data", tmp_path / "x", *SMALL, "--out", tmp_path / "run"]
    assert main([str(word) for word in words]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any("2 files" in line and "Thumbs.db" in line for line in lines), lines
    assert len(load_data(str(tmp_path / "x"))[0]) == 6


def test_a_class_without_training_images_cannot_be_tested(tmp_path, capsys):
    data = save_npz(tmp_path / "x.npz", test_labels=np.arange(8) % 3)
    words = ["finetune", "--data", data, *SMALL, "--out", tmp_path / "run"]
    refused(words, "no training image", capsys)
    words = ["pretrain", "--data", data, *SMALL, "--out", tmp_path / "mae"]
    assert main([str(word) for word in words]) == 0  # labels do not matter here


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_a_batch_larger_than_the_data_set_is_reduced(phase, tmp_path, capsys):
    words = [phase, *DATA, "--recipe", "small", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*words, "--limit", "100", "--batch-size", "101"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "101" in line and "100" in line
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["recipe"]["batch_size"] == 100


def test_a_limit_leaves_the_test_images_alone(tmp_path):
    data = save_npz(tmp_path / "x.npz")
    assert [len(half) for half in load_data(str(data), limit=3)] == [3, 8]
    whole = load_data("shapes")[1]
    some, test = load_data("shapes", limit=3)
    assert len(some) == 3 and torch.equal(test.images, whole.images)


#: What the parser of the command line refuses, in its own words.
PARSED = {
    "pretrain --recipe papre": "papre",
    "pretrain --recipe": "--recipe",
    "pretrain --recipe small --epochs many": "many",
    "pretrain --recipe small --epoch 3": "--epochs",
    "evaluate": "--weights",
    "fly": "fly",
}


@pytest.mark.parametrize("words", PARSED)
def test_a_wrong_command_line_is_explained(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert PARSED[words] in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


SETTINGS = {
    "pretrain --recipe small --epochs 0": "epochs is 0",
    "pretrain --recipe small --epochs -3": "epochs is -3",
    "pretrain --recipe small --batch-size 0": "batch_size is 0",
    "pretrain --recipe small --base-lr nan": "base_lr is nan",
    "pretrain --recipe small --weight-decay -1": "weight_decay is -1.0",
    "pretrain --recipe small --betas 0.9 1": "betas",
    "pretrain --recipe small --seed -1": "seed is -1",
    "pretrain --recipe small --warmup-epochs 21": "warmup_epochs is 21",
    "pretrain --recipe small --mask-ratio 1": "mask_ratio 1.0",
    "pretrain --recipe small --mask-ratio 0": "mask_ratio 0.0",
    "pretrain --recipe small --mask-ratio nan": "mask_ratio nan",
    "pretrain --recipe small --alpha -1": "alpha is -1",
    "pretrain --recipe small --crop-scale 0.9 0.1": "crop scale",
    "pretrain --recipe small --image-size 33": "image_size 33 is not a multiple of patch_size 4",
    "pretrain --recipe small --heads 5": "width 128 is not a multiple of heads 5",
    "pretrain --recipe small --depth -1": "depth is -1",
    "pretrain --recipe small --dropout 1.5": "dropout is 1.5",
    "pretrain --recipe small --width 0": "width is 0",
    "pretrain --recipe small --device gpu": "'gpu'",
    "pretrain --recipe small --device cuda:99": "'cuda:99'",
    "pretrain --recipe small --minutes -1": "minutes is -1.0",
    "pretrain --recipe small --checkpoint-minutes -1": "checkpoint_minutes is -1.0",
    "pretrain --recipe small --limit 0": "limit (0)",
    "pretrain --recipe small --size 0": "size (0)",
    "pretrain --recipe small --size 99999": "size (99999)",
    "finetune --recipe small --weights nowhere": "'nowhere'",
    "finetune --recipe small --labels-per-class 99999": "99999",
    "finetune --recipe small --labels-per-class -1": "-1",
    "finetune --recipe small --layer-decay 2": "layer_decay is 2.0",
    "finetune --recipe small --test-every 0": "test_every is 0",
    "evaluate --weights nowhere": "'nowhere'",
    "bench --seconds 0": "seconds",
    "bench --batch-size 0": "batch_size is 0",
    "pretrain --recipe small --ema 1": "ema is 1",
    "pretrain --recipe small --clip-grad 0": "clip_grad is 0",
    "finetune --recipe small --mixup -1": "mixup is -1",
    "finetune --recipe small --weights c10 --freeze 9": "freeze is 9",
    "finetune --recipe small --freeze 1": "without weights",
    "rerun nowhere --out x": "'nowhere'",
}


@pytest.mark.parametrize("words", SETTINGS)
def test_bad_settings(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = "--limit" in words or "nowhere" in words or words.split()[0] in ("evaluate", "rerun")
    limit = [] if given else ["--limit", "300"]
    refused(words.split() + limit, SETTINGS[words], capsys)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_output_folder_that_cannot_be(pretrained, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    refused(["pretrain", *QUICK, "--out", tmp_path / "file"], "cannot write into", capsys)
    refused(["pretrain", *QUICK, "--out", tmp_path / "file/run"], "cannot write into", capsys)
    refused(["pretrain", *QUICK, "--out", tmp_path / ("n" * 300)], "cannot write into", capsys)
    assert (tmp_path / "file").read_text() == "precious"
    shutil.copy(pretrained / "model.safetensors", tmp_path)  # weights without their run
    refused(["pretrain", *QUICK, "--out", tmp_path], "already holds a run", capsys)
    refused(["pretrain", *QUICK, "--out", tmp_path, "--resume"], "config.json", capsys)


def test_bad_weights(pretrained, tmp_path, capsys):
    tensors, about = read_weights(pretrained)
    whole = (pretrained / "model.safetensors").read_bytes()
    bad = {
        "not safetensors": (b"hello", "no readable safetensors"),
        "truncated": (whole[:-50], "no readable safetensors"),
        "a bit turned": (
            whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:],
            "checksum mismatch",
        ),
        "foreign": (to_bytes(tensors, {}), "foreign weights"),
        "of a classifier without classes": (
            to_bytes(tensors, about | {"kind": "classifier"}),
            "which model",
        ),
        "of another shape": (
            to_bytes(tensors, about | {"model": about["model"] | {"width": 64}}),
            "do not fit",
        ),
        "without its sizes": (to_bytes(tensors, {"kind": "mae"}), "which model"),
        "of sizes that are no numbers": (
            to_bytes(tensors, about | {"model": about["model"] | {"width": 128.5}}),
            "width is 128.5",
        ),
        "of sizes that are words": (
            to_bytes(tensors, about | {"model": about["model"] | {"dropout": "much"}}),
            "which model",
        ),
        "of no description": (to_bytes(tensors, ["mae"]), "no readable safetensors"),
        "of a classifier with one long class": (
            to_bytes(tensors, about | {"kind": "classifier", "classes": "cat"}),
            "which model",
        ),
        "of a classifier whose classes are a number": (
            to_bytes(tensors, about | {"kind": "classifier", "classes": 3}),
            "its classes are 3, not a list of names",
        ),
        "of impossible sizes": (
            to_bytes(tensors, about | {"model": about["model"] | {"heads": 5}}),
            "is not a multiple of heads 5",
        ),
        "of another patch size": (
            to_bytes(tensors, about | {"model": about["model"] | {"patch_size": 2}}),
            "do not fit",
        ),
        "of a model from the future": (
            to_bytes(tensors, about | {"model": about["model"] | {"magic": 1}}),
            "magic",
        ),
        "a tensor short": (
            to_bytes({n: t for n, t in tensors.items() if "head" not in n}, about),
            "do not fit",
        ),
    }
    for content, said in bad.values():
        (tmp_path / "model.safetensors").write_bytes(content)
        refused(["evaluate", *DATA, "--weights", tmp_path], said, capsys)
    (tmp_path / "model.safetensors").write_bytes(to_bytes(tensors, about | {"kind": "classifier"}))
    refused(
        ["finetune", *QUICK, "--weights", tmp_path, "--out", tmp_path / "run"],
        "holds classifier weights",
        capsys,
    )
    refused(
        ["finetune", *QUICK, "--weights", pretrained, "--depth", "6", "--out", tmp_path / "run"],
        "depth is 6, but the weights in",
        capsys,
    )


def test_a_batch_too_large_for_the_gpu_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "maevit_course.pretraining.reconstruction_loss",
        mock.Mock(side_effect=torch.OutOfMemoryError),
    )
    refused(
        ["pretrain", *QUICK, "--out", tmp_path / "run"],
        "too little memory for 640 images and steps of 128",
        capsys,
    )


def test_one_class_cannot_be_learned_but_may_be_looked_at(tmp_path, capsys):
    folder = make_folder(tmp_path / "x", ("cat",))
    refused(
        ["finetune", "--data", folder, *SMALL, "--out", tmp_path / "fine"], "at least two", capsys
    )
    assert main(["pretrain", "--data", str(folder), *SMALL, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_a_folder_of_any_mode_becomes_rgb(mode, tmp_path):
    "A dark and a bright half must still be dark and bright, whatever the mode; sizes differ."
    for split in ("train", "test"):
        for name, side in (("a", 20), ("b", 33)):
            (tmp_path / split / name).mkdir(parents=True)
            grey = np.zeros((side, side), np.uint8)
            grey[:, side // 2 :] = 250
            image = Image.fromarray(grey)
            if mode == "I;16":
                image = Image.fromarray(grey.astype(np.uint16) * 257)
            elif mode in ("I", "F"):
                image = Image.fromarray(grey.astype({"I": np.int32, "F": np.float32}[mode]))
            else:
                image = image.convert("RGB").convert(mode)
            image.save(tmp_path / split / name / "x.tiff")
    train, test = load_data(str(tmp_path))
    assert train.images.shape == test.images.shape == (2, 3, 64, 64)
    assert (train.images[..., 4:60, 4:20].float().mean() < 30) and (
        train.images[..., 4:60, 44:60].float().mean() > 220
    )


def test_odd_but_usable_images(tmp_path):
    "Tiny, huge, rotated by EXIF, animated, with Unicode or long names, a circular link: all work."
    folder = make_folder(tmp_path / "Bilder ❤ 画像", n=1) / "train/cat"
    Image.new("L", (1, 1), 7).save(folder / "tiny.png")
    Image.new("RGB", (5000, 5000), "red").save(folder / "huge.png")
    frames = [Image.new("RGB", (9, 9), c) for c in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.new("RGB", (40, 40))
    turned.paste(
        "white", (0, 0, 40, 10)
    )  # a bright upper edge; EXIF 6 says: turn by 90° clockwise, so it is on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / ("long" * 50 + ".jpg"), exif=exif, quality=95)
    (folder / "circle").symlink_to(folder)
    train, _ = load_data(str(folder.parents[1]))
    assert train.images.shape == (6, 3, 64, 64)
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    edge = train.images[names.index("long" * 50 + ".jpg")].float()
    assert edge[..., -8:].mean() > 240 and edge[..., :40].mean() < 15
    assert train.images[names.index("moving.gif"), 0].min() > 200  # the first frame, red


class Trap:
    "Makes a folder when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_never_run(pretrained, tmp_path, capsys):
    trap = Trap(tmp_path / "sprung")
    torch.save({"model": trap}, tmp_path / "trap.pt")
    shutil.copy(tmp_path / "trap.pt", tmp_path / "model.safetensors")
    np.savez(tmp_path / "x.npz", train_images=np.array([trap], dtype=object))
    run = shutil.copytree(pretrained, tmp_path / "run")
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors", "model.safetensors"):
        shutil.copy(tmp_path / "trap.pt", run / name)
    for words in (
        ["evaluate", "--weights", tmp_path],
        ["finetune", *QUICK, "--weights", tmp_path, "--out", tmp_path / "fine"],
        ["pretrain", "--data", tmp_path / "x.npz"],
        ["evaluate", "--weights", run],
    ):
        refused(words, "", capsys)
    refused(
        ["pretrain", *QUICK, "--epochs", "6", "--out", run, "--resume"],
        "are corrupt",
        capsys,
        warned=1,
    )
    assert not (tmp_path / "sprung").exists()
    with contextlib.suppress(FileExistsError):
        torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap is a real one


def test_the_report_escapes_names(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    folder = make_folder(tmp_path / evil, (evil, "dog"))
    assert main(["finetune", "--data", str(folder), *SMALL, "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert evil not in page and "&lt;img src=x" in page


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9), st.lists(st.floats(width=32), max_size=5), max_size=3
    ),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_packed_bytes_return_or_are_called_damaged(lists, data):
    tensors = {
        name: torch.tensor(values) for name, values in lists.items() if name != "__metadata__"
    }
    content = to_bytes(tensors, {"names": sorted(tensors)})
    again, about = from_bytes(content)
    assert about == {"names": sorted(tensors)} and fingerprint(*again.values()) == fingerprint(
        *[tensors[n] for n in again]
    )
    spoilt = bytearray(content)
    spoilt[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed, said = from_bytes(bytes(spoilt))
    except CorruptFileError:
        return
    # What passes says of itself that it is foreign, or was changed where nothing is said.
    assert said == {} or (
        said == about
        and fingerprint(*changed, *changed.values()) == fingerprint(*again, *again.values())
    )


@given(st.data())
@fuzz
def test_fuzzed_npz_is_read_or_refused(tmp_path, data):
    "Bytes of a good file changed, cut or replaced: never anything but data or an InputError."
    good = tmp_path / "good.npz"
    if not good.exists():
        save_npz(good)
        np.savez_compressed(tmp_path / "packed.npz", **np.load(good))
    name = data.draw(st.sampled_from(["good.npz", "packed.npz"]))
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "x.npz").write_bytes(content)
    with contextlib.suppress(InputError):
        load_data(str(tmp_path / "x.npz"))


@given(
    st.binary(max_size=300),
    st.sampled_from(["png", "jpg", "gif", "tiff", "webp", "bmp"]),
    st.data(),
)
@fuzz
def test_fuzzed_images_are_read_or_refused(tmp_path, noise, kind, data):
    folder = tmp_path / "x"
    if not folder.exists():
        make_folder(folder, n=1)
    path = folder / f"train/cat/0.{kind}"
    Image.linear_gradient("L").resize((12, 12)).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + len(noise)] = noise
    path.write_bytes(content)
    try:
        with contextlib.suppress(InputError):
            load_data(str(folder))
    finally:
        path.unlink()


def test_every_message_names_a_value():
    "No `InputError` has a constant text: each names what was given."
    for file in Path(maevit_course.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "InputError":
                names_value = any(isinstance(n, ast.FormattedValue) for n in ast.walk(raised))
                names_value |= isinstance(raised.args[0], ast.Call)  # a function makes the text
                assert names_value, f"{file.name}:{node.lineno}"


def test_a_report_of_a_run_without_an_epoch_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="no epoch has finished"):
        report(tmp_path / "run", load_data("shapes", limit=40)[1])
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(InputError, match="not that of a run"):
        RunRecord.load(tmp_path / "run")


def test_wrong_settings_from_python_are_named():
    recipe = PRETRAIN_RECIPES["small"]
    wrongs = {"epochs": 1.5, "batch_size": 32.0, "seed": "0", "betas": 0.9, "ema": 2}
    for name, value in wrongs.items():
        with pytest.raises(InputError, match=rf"{name} (is|are) {value!r}"):
            replace(recipe, **{name: value})
    for name in ("freeze", "test_every"):
        with pytest.raises(InputError, match=f"{name} is 1.5"):
            replace(FINETUNE_RECIPES["small"], **{name: 1.5})


def test_train_and_test_have_the_same_classes(tmp_path):
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    train = ImageData(images, labels, ["cat", "dog"])
    assert train.classes == ("cat", "dog")
    for classes in (("dog", "cat"), ("cat", "dog", "cow")):
        with pytest.raises(InputError, match="in the same order"):
            finetune(train, ImageData(images, labels, classes), out=tmp_path / "run")


def test_a_folder_of_the_other_phase_is_not_resumed(pretrained, capsys):
    words = ["finetune", *QUICK, "--out", pretrained, "--resume"]
    refused(words, "it holds a run of the phase 'pretrain'", capsys)


def test_models_are_saved_into_folders_that_exist(tmp_path):
    mae = load_model("c10")
    mae.save_pretrained(tmp_path)
    assert load_model(tmp_path).fingerprint() == mae.fingerprint()
    with pytest.raises(InputError, match="create it first"):
        mae.save_pretrained(tmp_path / "no/where.safetensors")


def test_sizes_of_the_decoder_belong_to_the_weights_too(tmp_path, capsys):
    words = ["pretrain", *QUICK, "--weights", "c10", "--out", tmp_path / "run"]
    refused([*words, "--decoder-depth", "8"], "decoder_depth is 8", capsys)


def test_a_class_may_be_called_anything():
    classes = torch.arange(2)
    show_confusion(classes, classes, (r"$\x$", "<b>")).savefig(io.BytesIO())


def test_weights_of_sixteen_bits_are_read_as_thirtytwo(tmp_path):
    layer = torch.nn.Linear(2, 2).bfloat16()
    content = to_bytes(layer.state_dict(), {"kind": "mae"})
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_weights(tmp_path)[0]["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("pretrain", {"mask_ratio": 1.0}, "mask_ratio 1.0 must hide at least one of the 64"),
        ("pretrain", {"alpha": -1}, "alpha is -1 but must not be negative"),
        ("pretrain", {"crop_scale": (0.0, 1.0)}, r"crop scale \(0.0, 1.0\) must be two numbers"),
        ("finetune", {"layer_decay": 0.0}, "layer_decay is 0.0 but must be above 0"),
        ("finetune", {"mixup": -1.0}, "mixup is -1.0 but must not be negative"),
        ("finetune", {"freeze": -2}, "freeze is -2 but must be at least -1"),
    ],
)
def test_a_recipe_refuses_an_invalid_setting_at_once(kind, setting, message):
    recipes = {"pretrain": PRETRAIN_RECIPES, "finetune": FINETUNE_RECIPES}
    with pytest.raises(InputError, match=message):
        replace(recipes[kind]["small"], **setting)


def test_an_encoder_from_scratch_cannot_be_frozen(tmp_path):
    train, test = load_data("shapes", limit=20)
    recipe = replace(FINETUNE_RECIPES["small"], freeze=-1)
    with pytest.raises(InputError, match="freeze is -1, but without weights"):
        finetune(train, test, recipe, tmp_path / "run")
    with pytest.raises(InputError, match="freeze is 5 but must be a number of layers"):
        replace(recipe, freeze=5).task(train)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.0, 0), (1.0, 144), (1.5, 216)])
def test_a_mask_leaves_some_patches_visible(ratio, hidden):
    with pytest.raises(InputError, match=f"mask ratio {ratio} hides {hidden} of 144 patches"):
        random_masking(2, 144, ratio)


def test_a_model_of_another_kind_or_size_is_refused():
    with pytest.raises(InputError, match="holds classifier weights, but mae weights"):
        load_model("c10-classifier", "mae")
    with pytest.raises(InputError, match="image_size 7 is not a multiple of patch_size 4"):
        load_model("c10-classifier", image_size=7)


def test_a_classifier_needs_images_and_its_own_classes():
    sizes = ModelConfig(12, 3, 8, 1, 2, decoder_width=8, decoder_depth=1, decoder_heads=2)
    classifier = Classifier(sizes.encoder(), ["disc", "ring"], sizes)
    with pytest.raises(InputError, match="there are no images in"):
        classifier.predict([])
    with pytest.raises(InputError, match="was trained on the classes disc, ring, …, but 'shapes'"):
        classifier.require_classes(load_data("shapes", limit=20)[0])


class Named(list):
    "A PyTorch data set with the names of its classes."

    def __init__(self, pairs, *classes):
        super().__init__(pairs)
        self.classes = classes


def test_classes_in_a_different_order_are_refused():
    "Otherwise, the same label would mean a cat in training and a dog in the test."
    pairs = list(PAIRS)
    load_data((Named(pairs, "cat", "dog"), Named(pairs, "cat", "dog")))
    with pytest.raises(InputError, match="same order"):
        load_data((Named(pairs, "cat", "dog"), Named(pairs, "dog", "cat")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs is 0 but must be positive and finite"),
        ({"base_lr": float("nan")}, "base_lr is nan but must be positive and finite"),
        ({"clip_grad": 0.0}, "clip_grad is 0.0 but must be positive, or None"),
        ({"ema": 1.0}, "ema is 1.0 but must be between 0 and 1, or None"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd' but must be 'adamw' or 'muon'"),
        ({"precision": "fp8"}, "precision is 'fp8' but must be 'auto', 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_a_recipe_says_which_values_a_setting_may_have(setting, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        replace(PRETRAIN_RECIPES["small"], **setting)


def test_a_time_limit_of_zero_is_refused():
    with pytest.raises(InputError, match="minutes is 0 but must be positive"):
        maevit_course.RunOptions(minutes=0)
    with pytest.raises(InputError, match="checkpoint_minutes is -1 but must not be negative"):
        maevit_course.RunOptions(checkpoint_minutes=-1)
