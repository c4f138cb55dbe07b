"""Bad input of every kind: one clear line, status 2, nothing overwritten, nothing run."""

import contextlib
import io
import os
import re
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from common import QUICK
from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.data import load_data
from maevit_course.evaluate import show_confusion
from maevit_course.report import read_run, report
from maevit_course.runs import Damaged, digest, pack, read_weights, save_weights, unpack

SMALL = ["--recipe", "small", "--epochs", "1", "--batch-size", "2"]


def save_npz(path, **changes):
    "Eight grey images of two classes in MedMNIST's layout, with changes; None leaves an array out."
    images, labels = np.zeros((8, 8, 8), np.uint8), np.arange(8) % 2
    arrays = (
        dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
        | changes
    )
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def make_folder(root, classes=("cat", "dog"), test_classes=None, n=3):
    "An image folder with a few small pictures in each class."
    for split, names in (("train", classes), ("test", test_classes or classes)):
        for c, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (80 * c, 30 * i, 99)).save(
                    root / split / name / f"{i}.png"
                )
    return root


def spoil(path, content):
    path.write_bytes(content)
    return path


# What is wrong with the data → (how it is made in a folder t, what the message must say)
DATA = {
    "missing path": (lambda t: t / "nowhere", "nowhere"),
    "empty folder": (lambda t: t, "no folder"),
    "folder without classes": (
        lambda t: [(t / "x" / s).mkdir(parents=True) for s in ("train", "test")] and t / "x",
        "no images in",
    ),
    "classes differ": (
        lambda t: make_folder(t / "x", ("cat", "dog"), ("cat", "cow")),
        "different classes: ['cow', 'dog']",
    ),
    "truncated image": (
        lambda t: spoil(
            make_folder(t / "x") / "train/cat/0.png", (t / "x/train/cat/1.png").read_bytes()[:40]
        ).parents[2],
        "cat/0.png",
    ),
    "text as image": (
        lambda t: spoil(make_folder(t / "x") / "train/dog/readme.txt", b"hello").parents[2],
        "readme.txt",
    ),
    "broken link": (
        lambda t: [(make_folder(t / "x") / "train/cat/gone.png").symlink_to("nowhere")] and t / "x",
        "gone.png",
    ),
    "loop of links": (lambda t: [(t / "x").symlink_to(t / "x")] and t / "x", "x"),
    "no such key": (
        lambda t: save_npz(t / "x.npz", test_labels=None) or t / "x.npz",
        "lacks test_labels",
    ),
    "label below zero": (
        lambda t: save_npz(t / "x.npz", train_labels=np.arange(8) - 1) or t / "x.npz",
        "range from -1",
    ),
    "label too large": (
        lambda t: save_npz(t / "x.npz", train_labels=np.arange(8) * 10**9) or t / "x.npz",
        "labels",
    ),
    "label beyond the names": (
        lambda t: save_npz(t / "x.npz", class_names=np.array(["one"])) or t / "x.npz",
        "between 0 and 0",
    ),
    "labels of wrong shape": (
        lambda t: save_npz(t / "x.npz", train_labels=np.zeros((8, 2), int)) or t / "x.npz",
        "(8, 2)",
    ),
    "labels are words": (
        lambda t: save_npz(t / "x.npz", train_labels=np.array(["a"] * 8)) or t / "x.npz",
        "integers",
    ),
    "labels are NaN": (
        lambda t: save_npz(t / "x.npz", train_labels=np.full(8, np.nan)) or t / "x.npz",
        "integers",
    ),
    "images are floats": (
        lambda t: save_npz(t / "x.npz", train_images=np.zeros((8, 8, 8))) or t / "x.npz",
        "uint8",
    ),
    "images are NaN": (
        lambda t: save_npz(t / "x.npz", train_images=np.full((8, 8, 8, 3), np.nan)) or t / "x.npz",
        "uint8",
    ),
    "images have two colours": (
        lambda t: (
            save_npz(t / "x.npz", train_images=np.zeros((8, 8, 8, 2), np.uint8)) or t / "x.npz"
        ),
        "(8, 8, 8, 2)",
    ),
    "images are not square": (
        lambda t: save_npz(t / "x.npz", train_images=np.zeros((8, 8, 9), np.uint8)) or t / "x.npz",
        "8×9",
    ),
    "no images at all": (
        lambda t: (
            save_npz(
                t / "x.npz",
                train_images=np.zeros((0, 8, 8), np.uint8),
                train_labels=np.zeros(0, int),
            )
            or t / "x.npz"
        ),
        "0 images",
    ),
    "images of no size": (
        lambda t: save_npz(t / "x.npz", train_images=np.zeros((8, 0, 0), np.uint8)) or t / "x.npz",
        "0×0",
    ),
    "truncated npz": (
        lambda t: save_npz(t / "x.npz") or spoil(t / "x.npz", (t / "x.npz").read_bytes()[:200]),
        "npz",
    ),
    "damaged npz": (
        lambda t: (
            np.savez_compressed(t / "x.npz", train_images=np.arange(9999))
            or spoil(
                t / "x.npz",
                (t / "x.npz").read_bytes()[:90] + b"\xff" * 50 + (t / "x.npz").read_bytes()[140:],
            )
        ),
        "npz",
    ),
    "npy called npz": (
        lambda t: (
            [np.save(t / "x.npy", np.zeros(3)), (t / "x.npy").rename(t / "x.npz")] and t / "x.npz"
        ),
        "npz",
    ),
    "npz with an object": (
        lambda t: save_npz(t / "x.npz", train_images=np.array([{}], dtype=object)) or t / "x.npz",
        "npz",
    ),
}


def refused(words, said, capsys, warned=0):
    "Status 2, and a single line that says this, after as many warnings."
    assert main([str(w) for w in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        said in lines[-1]
        and len(lines) == 1 + warned
        and all(line.startswith("maevit: ") for line in lines)
    ), lines


@pytest.mark.parametrize("what", DATA)
def test_bad_data(what, tmp_path, capsys):
    make, said = DATA[what]
    refused(["pretrain", "--data", make(tmp_path), *SMALL, "--out", tmp_path / "run"], said, capsys)
    assert not (tmp_path / "run").exists()


SETTINGS = {
    "pretrain --recipe papre": "'papre'",
    "pretrain --recipe small --epochs 0": "epochs is 0",
    "pretrain --recipe small --epochs -3": "epochs is -3",
    "pretrain --recipe small --epochs many": "many",
    "pretrain --recipe small --batch-size 0": "batch_size is 0",
    "pretrain --recipe small --limit 100 --batch-size 101": "batch_size 101",
    "pretrain --recipe small --base-lr nan": "base_lr is nan",
    "pretrain --recipe small --weight-decay -1": "weight_decay (-1.0)",
    "pretrain --recipe small --betas 0.9 1": "betas",
    "pretrain --recipe small --seed -1": "seed (-1)",
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
    "pretrain --recipe small --minutes -1": "minutes (-1.0)",
    "pretrain --recipe small --checkpoint-minutes -1": "checkpoint_minutes (-1.0)",
    "pretrain --recipe small --limit 0": "limit (0)",
    "pretrain --recipe small --size 0": "size (0)",
    "pretrain --recipe small --size 99999": "size (99999)",
    "finetune --recipe small --weights nowhere": "'nowhere'",
    "finetune --recipe small --labels-per-class 99999": "99999",
    "finetune --recipe small --labels-per-class -1": "-1",
    "finetune --recipe small --layer-decay 2": "layer_decay (2.0)",
    "finetune --recipe small --test-every 0": "test_every (0)",
    "evaluate --weights nowhere": "'nowhere'",
    "bench --seconds 0": "seconds",
    "bench --batch-size 0": "batch_size is 0",
    "fly": "'fly'",
}


@pytest.mark.parametrize("words", SETTINGS)
def test_bad_settings(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    limit = (
        []
        if "--limit" in words or words.split()[0] in ("fly", "evaluate") or "nowhere" in words
        else ["--limit", "300"]
    )
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
            "not what was written",
        ),
        "foreign": (pack(tensors, {}), "foreign weights"),
        "of a classifier without classes": (
            pack(tensors, about | {"kind": "classifier"}),
            "does not name its classes",
        ),
        "of another shape": (
            pack(tensors, about | {"model": about["model"] | {"width": 64}}),
            "do not fit",
        ),
        "without its sizes": (pack(tensors, {"kind": "mae"}), "which model"),
        "of sizes that are no numbers": (
            pack(tensors, about | {"model": about["model"] | {"width": 128.5}}),
            "width is 128.5",
        ),
        "of sizes that are words": (
            pack(tensors, about | {"model": about["model"] | {"dropout": "much"}}),
            "which model",
        ),
        "of no description": (pack(tensors, ["mae"]), "no readable safetensors"),
        "of a classifier with one long class": (
            pack(tensors, about | {"kind": "classifier", "classes": "cat"}),
            "does not name its classes",
        ),
        "of a model from the future": (
            pack(tensors, about | {"model": about["model"] | {"magic": 1}}),
            "magic",
        ),
        "a tensor short": (
            pack({n: t for n, t in tensors.items() if "head" not in n}, about),
            "do not fit",
        ),
    }
    for content, said in bad.values():
        spoil(tmp_path / "model.safetensors", content)
        refused(["evaluate", *QUICK[:4], "--weights", tmp_path], said, capsys)
    spoil(tmp_path / "model.safetensors", pack(tensors, about | {"kind": "classifier"}))
    refused(
        ["finetune", *QUICK, "--weights", tmp_path, "--out", tmp_path / "run"],
        "holds classifier weights",
        capsys,
    )
    refused(
        ["finetune", *QUICK, "--weights", pretrained, "--depth", "6", "--out", tmp_path / "run"],
        "depth (4 → 6)",
        capsys,
    )


def test_a_batch_too_large_for_the_gpu_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "maevit_course.pretrain.reconstruction_loss", mock.Mock(side_effect=torch.OutOfMemoryError)
    )
    refused(
        ["pretrain", *QUICK, "--out", tmp_path / "run"],
        "too little memory for 640 images and steps of 128",
        capsys,
    )


def test_one_class_cannot_be_learned_but_may_be_looked_at(tmp_path, capsys):
    folder = make_folder(tmp_path / "x", ("cat",))
    refused(
        ["finetune", "--data", folder, *SMALL, "--out", tmp_path / "fine"], "two classes", capsys
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
    "1×1, 5000×5000, rotated by EXIF, animated, Unicode and long names, a link in a circle: all are read."
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
        "no checkpoint",
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
    content = pack(tensors, {"names": sorted(tensors)})
    again, about = unpack(content)
    assert about == {"names": sorted(tensors)} and digest(*again.values()) == digest(
        *[tensors[n] for n in again]
    )
    spoilt = bytearray(content)
    spoilt[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed, said = unpack(bytes(spoilt))
    except Damaged:
        return
    # What passes says of itself that it is foreign, or was changed where nothing is said.
    assert said == {} or (
        said == about and digest(*changed, *changed.values()) == digest(*again, *again.values())
    )


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_fuzzed_npz_is_read_or_refused(tmp_path, data):
    "Bytes of a good file changed, cut or replaced: never anything but data or an InputError."
    good = tmp_path / "good.npz"
    if not good.exists():
        save_npz(good)
        np.savez_compressed(tmp_path / "packed.npz", **np.load(good))
    content = bytearray(
        (tmp_path / data.draw(st.sampled_from(["good.npz", "packed.npz"]))).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = (
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    with contextlib.suppress(InputError):
        load_data(str(spoil(tmp_path / "x.npz", bytes(content))))


@given(
    st.binary(max_size=300),
    st.sampled_from(["png", "jpg", "gif", "tiff", "webp", "bmp"]),
    st.data(),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_fuzzed_images_are_read_or_refused(tmp_path, noise, kind, data):
    folder = tmp_path / "x"
    if not folder.exists():
        make_folder(folder, n=1)
    path = folder / f"train/cat/0.{kind}"
    Image.linear_gradient("L").resize((12, 12)).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + len(noise)] = noise
    spoil(path, bytes(content))
    try:
        with contextlib.suppress(InputError):
            load_data(str(folder))
    finally:
        path.unlink()


def test_messages_are_of_one_kind():
    "No message is a bare exception: each of ours names a value or a path."
    with pytest.raises(InputError, match=re.escape("no data set 'x'")):
        load_data("x")
    with pytest.raises(InputError, match="no weights at"):
        read_weights("x")


def test_a_report_of_a_run_without_an_epoch_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="not one epoch is done"):
        report(tmp_path / "run", load_data("shapes", limit=40)[1])
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(InputError, match="not that of a run"):
        read_run(tmp_path / "run")


def test_a_class_may_be_called_anything():
    show_confusion(torch.eye(2), (r"$\x$", "<b>")).savefig(io.BytesIO())


def test_weights_of_sixteen_bits_are_read_as_thirtytwo(tmp_path):
    save_weights(tmp_path / "model.safetensors", torch.nn.Linear(2, 2).bfloat16(), {"kind": "mae"})
    assert read_weights(tmp_path)[0]["weight"].dtype == torch.float32
