"""Images of one's own: read with little memory, only once, and looked at before training."""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from common import ON_CPU, SECONDS
from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.data import load_data, read_image
from maevit_course.folders import cache_folder, find_images, read_pixels
from maevit_course.inspection import inspect_source, patch_for, size_advice
from maevit_course.models import ModelConfig
from maevit_course.progress import watched
from maevit_course.weights import read_weights

SMALL = ["--recipe", "small", "--epochs", "1", "--batch-size", "4", "--precision", "fp32"]


def write_images(folder, n, size=(12, 9)):
    "Different small images, as files."
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.full((size[1], size[0], 3), i % 256, np.uint8)
        pixels[0, 0] = i // 256
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "120 images without labels, and a cache beside them."
    monkeypatch.setenv("MAEVIT_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "photos", 120)


@pytest.fixture
def decoded(monkeypatch):
    "The files that are decoded."
    files = []

    def reading(path, *options):
        files.append(path)
        return read_image(path, *options)

    monkeypatch.setattr("maevit_course.data.read_image", reading)
    return files


def load(source, **options):
    with warnings.catch_warnings(record=True):
        return load_data(source, **options)


def entries(folder):
    return sorted((folder.parent / "cache").iterdir())


def test_images_are_decoded_once(photos, decoded):
    train, test = load(photos)
    assert len(decoded) == 114 + 6 and len(set(decoded)) == 120
    again, test_again = load(photos)
    assert len(decoded) == 120 + 6  # the six test images are too few for the cache
    assert torch.equal(again.images, train.images) and torch.equal(test_again.images, test.images)
    assert again.describe() == train.describe()
    again.images[:] = 0  # what is changed in memory is not changed in the cache
    assert torch.equal(load(photos)[0].images, train.images)


@pytest.mark.parametrize("option", [{"size": 7}, {"fit": "pad"}])
def test_the_cache_tells_options_apart(option, photos, decoded):
    load(photos)
    decoded.clear()
    train, _ = load(photos, **option)
    side = 7 if "size" in option else 12
    assert len(decoded) == 120 and train.images.shape[-1] == side
    assert len(entries(photos)) == 2


def test_a_changed_folder_is_read_again(photos, decoded):
    load(photos)
    Image.new("RGB", (12, 9), "red").save(photos / "119.png")
    os.utime(photos / "119.png", (0, 0))
    decoded.clear()
    train, test = load(photos)
    assert len(decoded) == 120 and len(entries(photos)) == 1  # replaced, not added
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    both = torch.cat([train.images, test.images])
    assert (both == red).flatten(1).all(1).sum() == 1
    (photos / "000.png").unlink()
    assert sum(map(len, load(photos))) == 119


def test_a_damaged_cache_is_not_believed(photos, decoded):
    train, _ = load(photos)
    (entry,) = entries(photos)
    content = entry.read_bytes()
    damages = [content[:-1], content[:50], b"", content[:-9] + b"\1" + content[-8:], content * 2]
    damages += [content[:32] + b"\xff" * 32 + content[64:], b"0" * 32 + content[32:]]
    for damaged in damages:
        entry.write_bytes(damaged)
        decoded.clear()
        assert torch.equal(load(photos)[0].images, train.images) and len(decoded) == 120
        assert entry.read_bytes() == content


def test_several_may_write_the_cache_at_once(photos):
    with ThreadPoolExecutor(8) as pool:
        several = list(pool.map(lambda _: load(photos)[0].images, range(8)))
    assert all(torch.equal(images, several[0]) for images in several)
    assert len(entries(photos)) == 1  # and no temporary file


def test_a_cache_that_cannot_be_written_costs_only_time(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAEVIT_CACHE", str(tmp_path / "file/cache"))
    with pytest.warns(UserWarning, match="cannot keep the decoded images"):
        assert len(load_data(photos)[0]) == 114
    monkeypatch.setenv("MAEVIT_CACHE", "0")
    assert cache_folder() is None and len(load(photos)[0]) == 114
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_system_keeps_such_files():
    def place(platform, **variables):
        with (
            mock.patch.dict(os.environ, variables, clear=True),
            mock.patch("sys.platform", platform),
            mock.patch("pathlib.Path.home", return_value=type(cache_folder())("/home/me")),
        ):
            return cache_folder().as_posix()

    with mock.patch.dict(os.environ, MAEVIT_CACHE="somewhere"):
        assert place("linux") == "/home/me/.cache/maevit"
        assert place("darwin") == "/home/me/Library/Caches/maevit"
        assert place("win32") == "/home/me/AppData/Local/maevit"
        assert place("win32", LOCALAPPDATA="/local") == "/local/maevit"
        assert place("linux", XDG_CACHE_HOME="/xdg") == "/xdg/maevit"
        assert place("linux", XDG_CACHE_HOME="/xdg", MAEVIT_CACHE="/mine") == "/mine"


MEMORY = r"""
import re, sys
from pathlib import Path
from maevit_course.data import read_image
from maevit_course.folders import decode_files

def peak():
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

files = sorted(Path(sys.argv[1]).iterdir())
decode_files(files[:300], 64, "crop", read_image)  # threads and readers need their memory once
before = peak()
images = decode_files(files, 64, "crop", read_image)
print((peak() - before) / images.nbytes)
"""


def test_reading_needs_the_memory_of_the_result(tmp_path):
    "A list of arrays and a copy of it would need two or three times as much."
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process its peak of memory")
    folder = write_images(tmp_path / "photos", 1, size=(64, 64))
    for i in range(1, 8000):
        os.link(folder / "000.png", folder / f"{i:04d}.png")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, folder],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=ON_CPU | {"MAEVIT_PROGRESS": "0"},
    )
    assert 0.5 < float(done.stdout) < 1.25, done.stderr


def test_an_error_in_a_thread_names_the_first_bad_file(photos):
    for name in ("050.png", "100.png"):
        (photos / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"050\.png"):
        load_data(photos, size=8)


def test_links_to_folders_are_followed_once(tmp_path):
    folder = write_images(tmp_path / "photos", 3)
    write_images(tmp_path / "elsewhere", 2)
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(tmp_path)
    found, test = find_images(folder)
    assert len(found) == 5 and test is None and not found.classes


def test_padding_keeps_the_whole_image(tmp_path):
    image = Image.new("RGB", (90, 30), "white")
    image.paste("red", (0, 0, 10, 30))
    for i in range(2):
        image.save(tmp_path / f"{i}.png")
    Image.new("L", (300, 1), 255).save(tmp_path / "2.png")  # so thin that it nearly vanishes
    train, test = load(tmp_path, size=30, fit="pad")
    assert train.describe()["fit"] == "pad" and train.images.shape == (2, 3, 30, 30)
    for pixels in torch.cat([train.images, test.images]):
        middle = pixels[:, 15] if pixels[0, 15, 20] == 255 else pixels[:, 14]
        assert (pixels[:, 0] == 128).all() and middle[0].min() > 250
    cropped, _ = load(tmp_path, size=30)
    assert "fit" not in cropped.describe() and cropped.images[:, 0].min() > 250


def test_images_without_labels_are_pre_trained_but_not_fine_tuned(tmp_path, capsys):
    folder, run = write_images(tmp_path / "photos", 40), tmp_path / "run"
    words = ["--data", str(folder), "--size", "8", "--fit", "pad"]
    assert main(["pretrain", *words, *SMALL, "--out", str(run)]) == 0
    assert "holding out 2 of its 40 images" in capsys.readouterr().err
    described = json.loads((run / "config.json").read_text())["data"]
    assert described["held_out"] == {"images": 2, "fraction": 0.05, "seed": 0}
    assert described["images"] == 38 and described["classes"] == [] and described["fit"] == "pad"
    assert "no classes" in (run / "report.html").read_text()

    assert main(["evaluate", "--weights", str(run), *words, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert "test_loss" in results and not any("knn" in name for name in results)
    again = ["rerun", str(run), "--out", str(tmp_path / "again"), "--data", str(folder)]
    assert main(again) == 0
    weights = [read_weights(out)[0] for out in (run, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    capsys.readouterr()
    for line in (
        ["finetune", *words, *SMALL, "--out", str(tmp_path / "fine")],
        ["finetune", *words, *SMALL, "--labels-per-class", "2", "--out", str(tmp_path / "fine")],
        ["evaluate", *words, "--weights", "c10-classifier"],
        ["bench", *words, "--phase", "finetune", "--recipe", "small", "--seconds", "0.1"],
    ):
        assert main(line) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "have no labels: put them into one folder per class" in error
    assert not (tmp_path / "fine").exists()


def test_a_table_trains_a_classifier(tmp_path):
    folder = write_images(tmp_path / "photos", 20)
    rows = [f"{i:03d}.png,{'dark' if i < 10 else 'bright'}" for i in range(20)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    run = tmp_path / "run"
    words = ["finetune", "--data", str(folder / "labels.csv"), *SMALL, "--out", str(run)]
    assert main(words) == 0
    _, about = read_weights(run)
    assert about["classes"] == ["bright", "dark"]
    again = ["rerun", str(run), "--out", str(tmp_path / "again")]
    assert main([*again, "--data", str(folder / "labels.csv")]) == 0
    weights = [read_weights(out)[0] for out in (run, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_inspection_describes_data_runs_and_weights(tmp_path, pretrained, capsys):
    for name, n in (("cat", 30), ("dog", 5)):
        write_images(tmp_path / "my photos" / name, n, size=(40, 20))
    (tmp_path / "my photos/notes.txt").write_text("")
    words = ["inspect", str(tmp_path / "my photos"), "--recipe", "small", "--device", "cpu"]
    assert main(words) == 0
    done = capsys.readouterr()
    for text in ("28 for training, 7 for testing", "40×20 (35)", "cat (30), dog (5)", "64 patches"):
        assert text in done.out
    for advice in ("--fit pad", "--batch-size 8", "--class-weights"):
        assert advice in done.out
    assert f"--data '{tmp_path / 'my photos'}'" in done.out
    assert done.err.count("skipped 1 file") == 1

    assert main(["inspect", str(pretrained)]) == 0
    text = capsys.readouterr().out
    assert "a masked autoencoder with 610,112 parameters" in text and "6 of 6 epochs" in text
    assert "640 images of 32×32 pixels from toys" in text and f"--weights {pretrained}" in text
    (tmp_path / "half").mkdir()
    config = (pretrained / "config.json").read_text()
    (tmp_path / "half/config.json").write_text(config)
    assert "an unfinished run of pretrain" in inspect_source(tmp_path / "half")
    assert "0 of 6 epochs" in inspect_source(tmp_path / "half")
    assert "10: airplane" in inspect_source("c10-classifier")
    log = "".join(json.dumps({"epoch": n, "seconds": n, "loss": 1.0}) + "\n" for n in range(1, 7))
    (tmp_path / "half/metrics.jsonl").write_text(log)
    assert "a finished run without weights of pretrain" in inspect_source(tmp_path / "half")
    (tmp_path / "half/metrics.jsonl").unlink()
    for bad, said in ((config[:-9], "cannot be read"), ("[]", "cannot be read")):
        (tmp_path / "half/config.json").write_text(bad)
        assert main(["inspect", str(tmp_path / "half")]) == 2
        assert said in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_advised_patch_size_fits():
    for side in range(1, 200):
        config = ModelConfig(image_size=side, patch_size=patch_for(side))
        others = [side // p for p in range(1, side + 1) if side % p == 0]
        assert all(abs(n - 12) >= abs(config.n_patches**0.5 - 12) for n in others)


def test_advice_on_sizes_depends_on_the_files():
    paper = ModelConfig()

    def advice(*sizes, side=64, fit="crop"):
        return " ".join(size_advice(Counter(sizes), side, paper, fit))

    assert advice((36, 36), (36, 36), side=36) == ""
    assert "--size 28" in advice((28, 28)) and "--image-size" not in advice((28, 28))
    assert "--image-size 20 --patch-size 2" in advice((20, 20), side=20)
    assert "--size 96 --image-size 96 --patch-size 8" in advice((640, 480))
    assert "--fit pad" in advice((640, 480)) and "--fit pad" not in advice((640, 480), fit="pad")
    assert "enlarged" in advice((100, 50)) and "enlarged" not in advice((100, 50), fit="pad")
    assert "--image-size 128" in advice((500, 500), side=128)


def test_the_pixels_do_not_depend_on_the_cache(photos):
    files = find_images(photos)[0].files
    fresh = read_pixels(files[:50], "photos", 10, "crop", read_image)  # too few for the cache
    kept = [read_pixels(files, "photos", 10, "crop", read_image) for _ in range(2)]
    assert all(torch.equal(images[:50], fresh) for images in kept)


def test_a_terminal_shows_a_bar_while_files_are_read(monkeypatch, capsys):
    monkeypatch.delenv("MAEVIT_PROGRESS", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(watched("abc", 3, "reading letters")) == ["a", "b", "c"]
    shown = capsys.readouterr().out
    assert "[3/3" in shown and "reading letters" in shown


def test_the_current_folder_is_read_like_any_other(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 20)
    monkeypatch.chdir(tmp_path / "photos")
    train, test = load_data(".")
    assert train.name == "photos" and not train.classes and len(train) + len(test) == 20


def test_images_outside_the_class_folders_are_reported(tmp_path):
    for name in ("train/cat", "train/cat/more", "test/cat"):
        write_images(tmp_path / name, 2)
    with pytest.warns(UserWarning, match="skipped 2 images outside train/<class>/"):
        train, _ = load_data(tmp_path)
    assert len(train) == 2
