"""The command line and the library on real files, end to end."""

import io
import json
import re

import numpy as np
import pytest

from common import DATA, FP16, QUICK
from maevit_course.cli import main
from maevit_course.data import load_data
from maevit_course.models import load_model
from maevit_course.weights import from_bytes, read_weights


def test_finetune_evaluate_and_report(pretrained, tmp_path, capsys):
    out = tmp_path / "classifier"
    assert (
        main(
            [
                "finetune",
                *QUICK,
                "--epochs",
                "3",
                "--weights",
                str(pretrained),
                "--labels-per-class",
                "20",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "finetune",
                *QUICK,
                "--epochs",
                "3",
                "--labels-per-class",
                "20",
                "--out",
                str(tmp_path / "scratch"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["evaluate", *DATA, "--weights", str(out), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["accuracy"]
    logged = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    assert measured == pytest.approx(logged, abs=0.02)  # float32 here, bf16 in training
    assert main(["evaluate", *DATA, "--weights", str(pretrained)]) == 0
    for run in (out, tmp_path / "scratch", pretrained):
        page = (run / "report.html").read_text()
        assert page.count("<img") == 2 and 'src="http' not in page


def test_from_pre_training_to_evaluation_in_fp16(tmp_path, capsys):
    mae, out = tmp_path / "mae", tmp_path / "classifier"
    words = [*FP16, "--epochs", "2", "--warmup-epochs", "0"]
    assert main(["pretrain", *words, "--out", str(mae)]) == 0
    assert main(["finetune", *words, "--weights", str(mae), "--out", str(out)]) == 0
    for run in (mae, out):
        assert json.loads((run / "config.json").read_text())["recipe"]["precision"] == "fp16"
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["loss_scale"] >= 2**12 and (run / "report.html").exists()
    capsys.readouterr()
    assert main(["evaluate", *DATA, "--weights", str(out), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["accuracy"]  # in float32
    assert measured == pytest.approx(last["test_accuracy"], abs=0.02)


def test_bench_prints_numbers(capsys):
    assert main(["bench", *DATA, "--recipe", "small", "--seconds", "0.2", "--json"]) == 0
    rates = json.loads(capsys.readouterr().out)
    assert all(rates[name] > 0 for name in ("data", "step", "training", "efficiency"))


def test_weights_know_their_recipe_and_the_checkpoint_its_step(pretrained):
    _, about = read_weights(pretrained, "mae")
    assert about["recipe"]["epochs"] == 6 and about["model"]["patch_size"] == 4
    _, about = from_bytes((pretrained / "checkpoint.safetensors").read_bytes())
    assert about["epoch"] == 6 and about["step"] == 0


def test_a_limit_takes_images_of_every_class(tmp_path):
    images, labels = np.zeros((400, 8, 8), np.uint8), np.arange(400) // 40
    np.savez(
        tmp_path / "sorted.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    train, _ = load_data(str(tmp_path / "sorted.npz"), limit=100)
    assert len(train) == 100 and len(train.labels.unique()) == 10


def test_demo_compares_two_classifiers(tmp_path, capsys):
    "The first command of the README, as short as it can be."
    words = ["demo", "--epochs", "1", "--finetune-epochs", "2", "--limit", "640"]
    assert main([*words, "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"pre-trained +\d+\.\d %\n  from scratch +\d+\.\d %", said)
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("<img") == 2 and 'src="http' not in page
    for run in ("pretrain", "pretrained", "scratch"):
        assert (tmp_path / "demo" / run / "report.html").exists()
    assert main([*words, "--out", str(tmp_path / "demo")]) == 0  # once more: all is done already
    assert main([*words, "--limit", "320", "--out", str(tmp_path / "demo")]) == 2  # not this one


def test_a_demo_with_fewer_labels_than_a_batch_is_found_again(tmp_path, capsys):
    words = ["demo", "--epochs", "1", "--finetune-epochs", "2", "--limit", "640"]
    for _ in range(2):
        assert main([*words, "--labels-per-class", "5", "--out", str(tmp_path / "demo")]) == 0
    assert "3/3 scratch: done before" in capsys.readouterr().out


def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["reproduce", "α", "--scale", "ablations", "--list"]) == 0
    terminal.flush()
    assert rb"\u03b1 0, seed 0" in terminal.buffer.getvalue()


def test_a_run_is_repeated_from_its_settings(pretrained, tmp_path, capsys):
    "With all images, with few labels from weights, and never with other data or weights."
    few, again = tmp_path / "few", tmp_path / "again"
    words = ["finetune", *QUICK, "--epochs", "1", "--labels-per-class", "10"]
    assert main([*words, "--weights", str(pretrained), "--out", str(few)]) == 0
    for run, weights in ((pretrained, []), (few, ["--weights", str(pretrained)])):
        out = str(again / run.name)
        assert main(["rerun", str(run), *DATA, *weights, "--out", out]) == 0
        assert load_model(out).fingerprint() == load_model(run).fingerprint()
    capsys.readouterr()
    assert main(["rerun", str(few), *DATA, "--out", str(tmp_path / "x")]) == 2
    assert "other weights" in capsys.readouterr().err
    images, labels = np.zeros((640, 32, 32), np.uint8), np.arange(640) % 10
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "x.npz", **arrays, test_images=images, test_labels=labels)
    other = ["--data", str(tmp_path / "x.npz")]
    assert main(["rerun", str(pretrained), *other, "--out", str(tmp_path / "x")]) == 2
    assert "does not hold the 640 images" in capsys.readouterr().err


def test_each_class_can_be_measured(pretrained, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["finetune", *QUICK, "--epochs", "1", "--out", out]) == 0
    capsys.readouterr()
    assert main(["evaluate", *DATA, "--weights", out, "--per-class", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    classes, n = results["classes"], 160
    assert len(classes) == 10 and sum(row["images"] for row in classes.values()) == n
    right = sum(row["recall"] * row["images"] for row in classes.values())
    assert right / n == pytest.approx(results["accuracy"])
