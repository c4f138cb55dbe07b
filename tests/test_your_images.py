"""The commands of the lesson on one's own images work as they are printed there."""

import csv
import importlib.util
import re
import shlex

import nbformat
import pytest
from PIL import Image

from maevit_course.cli import main, parse
from maevit_course.models import load_model
from maevit_course.shapes import make_shapes
from notebooks import ROOT

LESSON = nbformat.read(ROOT / "nbs/50_your_images.ipynb", as_version=4)
BLOCKS = [
    [line for line in block.splitlines() if line.startswith("maevit ")]
    for cell in LESSON.cells
    for block in re.findall(r"```sh\n(.*?)```", cell.source, flags=re.DOTALL)
]
HERE, ON_COLAB = BLOCKS


def write(images, place, name="IMG_{:04d}.jpg"):
    place.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / name.format(i))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A working folder with the lesson's two folders of images, only smaller."
    images, _ = make_shapes(160, seed=3)
    write(images[:80], tmp_path / "photos")
    for part, n in (("train", 16), ("test", 4)):
        for c, name in enumerate(("boat", "fish", "house")):
            write(images[80 + 25 * c :][:n], tmp_path / "labelled" / part / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_work_one_after_the_other(folder, capsys):
    "As they are printed, but for one epoch each."
    names = ["inspect", "pretrain", "finetune", "predict", "export"]
    assert [line.split()[1] for line in HERE] == names
    for line in HERE:
        words = shlex.split(re.sub(r"--epochs \d+", "--epochs 1", line))[1:]
        if words[0] == "export" and not importlib.util.find_spec("onnx"):
            assert main(words) == 2 and ".[export]" in capsys.readouterr().err
        else:
            assert main(words) == 0, line
    assert load_model("runs/named").classes == ("boat", "fish", "house")
    rows = list(csv.reader((folder / "labels.csv").open()))
    assert len(rows) == 81 and rows[0][:2] == ["path", "class1"]


def test_the_commands_for_colab_write_to_drive_and_can_be_repeated():
    bench, pretrain = (parse(shlex.split(line)[1:]) for line in ON_COLAB)
    assert bench.recipe == pretrain.recipe == "paper"
    assert pretrain.run.resume and pretrain.run.minutes == 50
    assert str(pretrain.out).startswith("/content/drive/MyDrive/")
