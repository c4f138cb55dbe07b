"""The command line and the library on real files, end to end."""

import json
import re

import numpy as np
import pytest

from common import DATA, QUICK
from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.data import load_data
from maevit_course.decoder import MAE
from maevit_course.evaluation import embeddings
from maevit_course.pretraining import SMALL_MODEL


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


def test_bench_prints_numbers(capsys):
    assert main(["bench", *DATA, "--recipe", "small", "--seconds", "0.2", "--json"]) == 0
    rates = json.loads(capsys.readouterr().out)
    assert all(rates[name] > 0 for name in ("data", "step", "training", "efficiency"))


def test_weights_know_their_recipe_and_the_checkpoint_its_step(pretrained):
    from maevit_course.runs import read_safetensors, read_weights

    _, about = read_weights(pretrained, "mae")
    assert about["recipe"]["epochs"] == 6 and about["model"]["patch_size"] == 4
    _, about = read_safetensors(pretrained / "checkpoint.safetensors")
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
    assert re.search(r"pre-trained \d+\.\d %   from scratch \d+\.\d %", said)
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("<img") == 2 and 'src="http' not in page
    for run in ("pretrain", "pretrained", "scratch"):
        assert (tmp_path / "demo" / run / "report.html").exists()
    assert main([*words, "--out", str(tmp_path / "demo")]) == 0  # once more: all is done already


def test_an_unknown_way_to_pool_is_refused():
    mae, (data, _) = MAE(SMALL_MODEL), load_data("shapes", limit=4)
    with pytest.raises(InputError, match="'cls'"):
        embeddings(mae.encoder, data, 32, 4, pool="cls")
