"""Table 3 in miniature: models of one size, equal times, sweeps, and runs from start to end."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from maevit_course.core import InputError
from maevit_course.data import load_data, preprocess
from maevit_course.paper.ablations import read_trials, run_trials
from maevit_course.paper.miniature import (
    COMPARISONS,
    CONTROL,
    MINIATURES,
    MODELS,
    OURS,
    RATES,
    MiniatureRecipe,
    list_miniatures,
    miniature_table,
    plan_run,
    sweep,
)
from maevit_course.runs import RunRecord
from maevit_course.training import RunOptions

COSTS = dict(zip([*MINIATURES, OURS, "pre-training"], (600.0, 150.0, 160.0, 120.0, 155.0, 80.0)))
OPTIONS = RunOptions(device="cpu", progress=False)


@pytest.fixture(scope="module")
def toys():
    return load_data("shapes", limit=256)


def line_of(run, accuracy, seconds=60):
    return {
        "factor": run.factor,
        "value": run.value,
        "seed": run.seed,
        "settings": run.settings,
        "model": run.model,
        "final": run.final,
        "accuracy": accuracy,
        "seconds": {"finetune": seconds, "probe": 1000},
    }


def test_every_run_takes_the_time_of_its_comparison_to_within_half_an_epoch():
    for comparison, about in COMPARISONS.items():
        for model in MODELS:
            for final in (False, True):
                run = plan_run(comparison, model, 8e-3, COSTS, 0, final)
                images = 50_000 if final else 45_000
                labelled = images if about.labels_per_class is None else 5000
                epoch = labelled // 128 * COSTS.get(model, COSTS[OURS]) / 1000
                slack, total = epoch / 2, run.finetune.epochs * epoch
                if model == OURS:
                    first = images // 128 * COSTS["pre-training"] / 1000
                    slack, total = slack + first / 2, total + run.pretrain.epochs * first
                wanted = about.seconds if final else about.sweep_seconds
                assert abs(total - wanted) <= slack + 1e-6 or run.finetune.epochs == 1
                assert run.scratch == (model != OURS)


def test_all_models_are_trained_in_the_same_way():
    "Only the length, the layer-wise decay, which needs pre-training, and the rate may differ."
    ours = plan_run("all labels", OURS, 4e-3, COSTS).finetune
    for model in (*MINIATURES, CONTROL):
        theirs = plan_run("all labels", model, 4e-3, COSTS).finetune
        same = vars(ours) | {"layer_decay": 1.0, "epochs": theirs.epochs}
        if model != CONTROL:
            assert isinstance(theirs, MiniatureRecipe)
            same["rival"] = model
        same["warmup_epochs"] = ours.warmup_epochs * theirs.epochs / ours.epochs
        found = dict(vars(theirs))
        assert found.pop("warmup_epochs") == pytest.approx(same.pop("warmup_epochs"))
        assert found == same


@pytest.mark.parametrize("peak", [1e-3, 8e-3, 3.2e-2])
def test_a_sweep_ends_with_a_worse_rate_on_both_sides(peak):
    known = {}
    for _ in range(10):
        rates, best = sweep(known.get)
        if best is not None:
            break
        known |= {rate: 1 - abs(rate - peak) for rate in rates}
    i = rates.index(best)
    assert best == peak and 0 < i < len(rates) - 1 and set(RATES) <= set(rates)
    assert rates == sorted(rates)


def test_final_runs_follow_from_finished_sweeps():
    first = list_miniatures([], (), COSTS)
    assert len(first) == 2 * 6 * 3 and not any(run.final for run in first)
    best = {"ResNet32": 8e-3}
    chosen = list_miniatures([], ("10 % of the labels", "ResNet32"), COSTS)
    assert {(run.factor, run.model) for run in chosen} == {("10 % of the labels", "ResNet32")}
    lines = [
        line_of(run, 1 - abs(run.settings["finetune.base_lr"] - best["ResNet32"])) for run in chosen
    ]
    final = [run for run in list_miniatures(lines, (), COSTS) if run.final]
    assert [(run.model, run.seed) for run in final] == [("ResNet32", seed) for seed in (0, 1, 2)]
    assert all(run.settings["finetune.base_lr"] == 8e-3 for run in final)
    with pytest.raises(InputError, match="no 'ResNet31' in the plan: choose from 10 %"):
        list_miniatures([], ("ResNet31",), COSTS)
    with pytest.raises(InputError, match="trial '25 %' belongs to a different plan"):
        list_miniatures([{"factor": "mask ratio", "value": "25 %"}], (), COSTS)


def test_a_miniature_is_one_of_the_small_models():
    with pytest.raises(InputError, match="rival is 'ResNet56' but must be one of ResNet32"):
        MiniatureRecipe(rival="ResNet56")


@pytest.mark.parametrize("model", ["ResNet32", "CCT-3/3×2", OURS, CONTROL])
def test_a_final_run_trains_on_all_images_and_tests_on_the_test_images(model, toys, tmp_path):
    train, test = toys
    run = plan_run("10 % of the labels", model, 8e-3, COSTS, 0, final=True)
    short = {"pretrain.epochs": 1, "finetune.epochs": 2, "finetune.batch_size": 16}
    run = replace(run, settings=run.settings | short, labels_per_class=16)
    file = tmp_path / "trials.jsonl"
    run_trials([run], train, tmp_path, file, OPTIONS, test=test)
    (line,) = read_trials(file)
    assert line["model"] == model and line["final"] and line["seed"] == 0
    (folder,) = (f for f in tmp_path.glob("finetune-*") if f.is_dir())
    record = RunRecord.load(folder)
    assert record.config["data"]["images"] == 16 * len(train.classes)
    assert record.history[-1]["loss"] < record.history[0]["loss"] < 3
    assert (set(line["seconds"]) == {"finetune"}) == (model != OURS)
    run_trials([run], train, tmp_path, file, OPTIONS, test=test)
    assert read_trials(file) == [line], "a finished run is skipped"


def test_the_table_compares_seed_by_seed():
    runs = [
        plan_run("10 % of the labels", m, 8e-3, COSTS, s, True) for m in MODELS for s in (0, 1, 2)
    ]
    found = {"ResNet32": (0.5, 0.6, 0.7), OURS: (0.55, 0.64, 0.76)}
    lines = [line_of(r, found[r.model][r.seed], 90) for r in runs if r.model in found]
    rows = miniature_table(lines, "10 % of the labels").splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {OURS}", "| ResNet32"]
    assert "60.0 (50.0 to 70.0) | +5.0 ± 2.5" in rows[1] and "| 1.5 |" in rows[1]
    assert "65.0 (55.0 to 76.0) | –" in rows[0]
    assert miniature_table(lines, "all labels") == "No final run has been recorded yet."


def test_the_loss_of_a_rival_is_the_cross_entropy(toys):
    train = toys[0]
    task = MiniatureRecipe(
        rival="ViT-Lite-4/4", model=plan_run("all labels", OURS, 1, COSTS).finetune.model
    ).task(train)
    images, labels = preprocess(train.images[:8], 32), train.labels[:8]
    task.model.eval()
    loss = task.loss_fn(task.model, images, labels)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(task.model(images), labels))
    counted = [p for group in task.groups for p in group["params"]]
    assert len(counted) == len(list(task.model.parameters()))
