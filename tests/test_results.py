"""The records in results/ and the bundled weights are exactly what the runs have left."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch

from cards import ORIGIN
from common import QUICK
from conftest import ROOT
from maevit_course.cli import main
from maevit_course.core import InputError
from maevit_course.data import load_data
from maevit_course.evaluation import reconstruction_error
from maevit_course.models import load_model
from maevit_course.paper.experiments import (
    PLANS,
    has_record,
    list_runs,
    reproduce,
)
from maevit_course.paper.tables import finetuning_table, pretraining_table, read_records, table_3
from maevit_course.runs import Run
from maevit_course.weights import bundled_weights, from_bytes, weights_file

RECORDS = {
    f"{scale}/{name}": record for scale in PLANS for name, record in read_records(scale).items()
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_whole_and_its_summary_follows_from_its_log(name):
    record = RECORDS[name]
    recipe, history, summary = record.config["recipe"], record.history, record.summary
    assert [line["epoch"] for line in history] == list(range(1, recipe["epochs"] + 1))
    assert all(math.isfinite(value) for line in history for value in line.values())
    assert record.summarize().items() <= summary.items()
    commit = record.environment["commit"]
    if name == "evening/finetune-0":  # only a record in results/ had changed, see results/README.md
        commit = commit.removesuffix("-dirty")
    assert len(commit) == 40 and record.environment["torch"]
    if record.config["phase"] == "finetune":
        assert (
            abs(summary["measured"]["accuracy"] - history[-1]["test_accuracy"]) <= 0.003
        )  # float32 against bf16
        assert (record.config["weights"] is None) == (summary["start"] is None)
    else:
        assert (record.folder / "gallery.jpg").stat().st_size < 300_000


def test_records_are_of_the_plan():
    for scale in PLANS:
        kept = {
            e.name for e in list_runs(PLANS[scale]) if has_record(e, ROOT / "results" / scale)
        }  # raises if a recipe is another
        assert kept == {
            folder.name for folder in (ROOT / "results" / scale).glob("*") if folder.is_dir()
        }


def test_fine_tuning_runs_of_one_data_set_had_the_same_images():
    for scale in PLANS:
        seen = {}
        for name, record in read_records(scale).items():
            if "-to-" in name:
                seen.setdefault(name.split("-to-")[1], set()).add(
                    record.config["data"]["fingerprint"]
                )
        assert all(len(fingerprints) == 1 for fingerprints in seen.values())


def test_an_interrupted_or_foreign_record_is_not_taken_for_a_run(tmp_path):
    first = list_runs(PLANS["small"])[0]
    shutil.copytree(RECORDS["small/trial"].folder, tmp_path / "trial")
    assert has_record(first, tmp_path)
    with pytest.raises(InputError, match=r"seed \(0 → 1\)"):
        has_record(replace(first, recipe=replace(first.recipe, seed=1)), tmp_path)
    tune = next(e for e in list_runs(PLANS["small"]) if e.name == "trial-to-c10")
    shutil.copytree(RECORDS["small/trial-to-c10"].folder, tmp_path / "trial-to-c10")
    assert has_record(tune, tmp_path)
    with pytest.raises(InputError, match=r"images \(1000 → 70\)"):
        has_record(replace(tune, labels_per_class=7), tmp_path)
    other = replace(first, recipe=replace(first.recipe, seed=1))
    with pytest.raises(InputError, match=r"seed \(0 → 1\)"):
        has_record(replace(tune, start=other), tmp_path)
    (tmp_path / "trial/summary.json").unlink()
    assert not has_record(first, tmp_path)


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path):
    with Run(tmp_path, {"a": 1}) as run:
        run.log({"epoch": 1})
    file = tmp_path / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "torch": "1.0"}))
    for _ in range(2):
        with Run(tmp_path, {"a": 1}, resume=True):
            pass
    said = json.loads(file.read_text())
    assert said["torch"] == "1.0" and [later["torch"] for later in said["resumed"]] == [
        torch.__version__
    ]


def test_a_run_waits_for_the_one_it_starts_from(tmp_path):
    tune = next(e for e in list_runs(PLANS["small"]) if e.name == "c10-to-c10")
    data = {"c10": load_data("shapes", limit=400)}
    with pytest.raises(InputError, match="starts from the weights of c10"):
        reproduce([tune], data, tmp_path / "runs", tmp_path / "results")


def test_without_longer_runs_the_main_run_is_the_longest():
    runs = list_runs(replace(PLANS["small"], longer_epochs=()))
    assert [e.name for e in runs if e.labels_per_class is None][-2:] == [
        "c10-to-c10-all",
        "scratch-to-c10-all",
    ]


def test_tables_say_what_the_summaries_say():
    "Change one number in one summary, and exactly one number in the table changes with it."
    records = read_records("small")
    before = finetuning_table(records), pretraining_table(records), table_3({})
    records["c10-to-c10"].summary["measured"]["accuracy"] = 0.125
    assert "12.50" in finetuning_table(records)
    assert sum(a != b for a, b in zip(finetuning_table(records).split(), before[0].split())) == 1
    assert pretraining_table(records) == before[1]
    rows = [line for line in before[2].splitlines() if "**ours**" in line]
    assert len(rows) == 3 and all(
        row.split("|")[2:4] == [" – ", " – "] for row in rows
    )  # without a run there is no number


#: Weights that only a clone has, by the run that left them.
IN_A_CLONE = [
    path.parent.relative_to(ROOT / "results").as_posix()
    for path in sorted((ROOT / "results").glob("*/*/float16.safetensors"))
]


def test_a_clone_has_the_weights_that_the_readme_names():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`results/(\S+)/float16\.safetensors`", text)
    assert named and sorted(named) == IN_A_CLONE


@pytest.mark.parametrize("name", [*ORIGIN, *IN_A_CLONE])
def test_kept_weights_are_small_and_know_where_they_come_from(name):
    file = weights_file(name if name in ORIGIN else ROOT / "results" / name / "float16.safetensors")
    tensors, about = from_bytes(file.read_bytes())
    assert file.stat().st_size <= 10_000_000
    assert all(t.dtype == torch.float16 for t in tensors.values())
    assert about["recipe"] == RECORDS[ORIGIN.get(name, name)].config["recipe"]


CLASSIFIERS = [name for name in bundled_weights() if name.endswith("-classifier")]


def test_the_bundled_weights_fit_into_a_web_page():
    assert {*bundled_weights()} == {*ORIGIN}
    assert sum(weights_file(name).stat().st_size for name in bundled_weights()) <= 6_000_000


@pytest.fixture
def its_data(name, request):
    "The data set on which bundled weights were trained, as a name or a path."
    return "shapes" if "shapes" in name else str(request.getfixturevalue("cifar10_file"))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_bundled_classifier_has_the_accuracy_of_its_record(name, its_data, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--weights", name, "--data", its_data, "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert abs(accuracy - RECORDS[ORIGIN[name]].summary["measured"]["accuracy"]) <= 0.001


@pytest.mark.parametrize("name", sorted({*bundled_weights()} - {*CLASSIFIERS}))
def test_bundled_autoencoder_has_the_loss_of_its_record(name, its_data):
    loss = reconstruction_error(load_model(name), load_data(its_data)[1])["loss"]
    assert abs(loss - RECORDS[ORIGIN[name]].summary["measured"]["test_loss"]) <= 1e-4


def test_a_name_of_bundled_weights_does_where_a_path_is_asked_for(tmp_path):
    assert (
        main(
            [
                "finetune",
                *QUICK,
                "--epochs",
                "1",
                "--weights",
                "c10",
                "--labels-per-class",
                "10",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )


def test_the_plan_can_be_listed_and_an_unknown_run_is_refused(capsys):
    assert main(["reproduce", "--scale", "paper", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[6].split()[:3] == ["c10", "c10", "4000"]
    assert main(["reproduce", "c11"]) == 2
    assert "no run 'c11' in the plan: choose from trial" in capsys.readouterr().err
