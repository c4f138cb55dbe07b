"""Plans for a record in a limited time obey the rules of lesson 41, and their recipes train."""

from dataclasses import replace

import pytest
import torch

from maevit_course.core import InputError
from maevit_course.data import load_data
from maevit_course.finetuning import FINETUNE_RECIPES, finetune
from maevit_course.models import Classifier, load_model
from maevit_course.paper.experiments import PLANS, Track, list_runs, reproduce, starting_weights
from maevit_course.pretraining import PRETRAIN_RECIPES, pretrain
from maevit_course.runs import RunRecord
from maevit_course.training import RunOptions
from maevit_course.weights import read_weights

TRACKS = {name: plan for name, plan in PLANS.items() if isinstance(plan, Track)}


@pytest.mark.parametrize("name", TRACKS)
def test_a_track_keeps_the_rules(name):
    "At most 3.66 million parameters, one test of the final weights, and a control for each seed."
    runs = {run.name: run for run in list_runs(TRACKS[name])}
    for run in runs.values():
        model = Classifier(run.recipe.model.encoder(), 10, run.recipe.model)
        assert sum(p.numel() for p in model.parameters()) <= 3_660_000
        assert run.data == TRACKS[name].data
        few = run.name.startswith("few")
        assert run.labels_per_class == (100 if few else None)
        assert few or run.pretrains or run.recipe.test_every >= run.recipe.epochs
    for seed in TRACKS[name].seeds:
        tuned, scratch = runs[f"finetune-{seed}"], runs[f"scratch-{seed}"]
        assert tuned.start is runs[f"pretrain-{seed}"] and scratch.start is None
        assert {tuned.recipe.seed, tuned.start.recipe.seed, scratch.recipe.seed} == {seed}
        assert scratch.recipe.layer_decay == 1 and scratch.recipe.model == tuned.recipe.model
        assert tuned.recipe.model.width == tuned.start.recipe.model.width
        if TRACKS[name].few:
            few, control = runs[f"few-{seed}"], runs[f"few-scratch-{seed}"]
            assert few.start is runs[f"pretrain-{seed}"] and control.start is None
            fair = replace(few.recipe.from_scratch(), base_lr=control.recipe.base_lr)
            assert control.recipe == fair and control.recipe.layer_decay == 1


def test_the_recipes_beyond_the_paper_train(tmp_path):
    "A few steps at the paper's size: all parameters move, and the log stays finite."
    train, _ = load_data("shapes", limit=8)
    options = RunOptions(device="cpu", progress=False)
    small = {"batch_size": 4, "precision": "fp32", "warmup_epochs": 0}
    first = replace(PRETRAIN_RECIPES["beyond"], epochs=1, **small)
    before = first.task(train).model.state_dict()
    mae = pretrain(train, first, tmp_path / "mae", options)
    assert not any(torch.equal(before[name], value) for name, value in mae.state_dict().items())
    second = replace(FINETUNE_RECIPES["beyond"], epochs=2, **small)
    tuned = finetune(train, train[:4], second, tmp_path / "run", tmp_path / "mae", options)
    assert torch.isfinite(tuned.predict_logits(train.images)).all()
    assert len(RunRecord.load(tmp_path / "run").history) == 2


def test_an_evening_carries_only_rounded_weights(tmp_path):
    "Fine-tuning starts from a file with 16 bits per weight and needs nothing else."
    train, test = load_data("shapes", limit=64)
    tiny = replace(PRETRAIN_RECIPES["small"].model, depth=1, width=16, decoder_width=16)
    recipes = (
        replace(table["small"].with_epochs(1), model=tiny, batch_size=32, precision="fp32")
        for table in (PRETRAIN_RECIPES, FINETUNE_RECIPES)
    )
    first, second = recipes
    track = Track(first, second, second.from_scratch(), seeds=(0,), rounded=True)
    options, data = RunOptions(device="cpu", progress=False), {"c10": (train, test[:64])}
    folders = tmp_path / "runs", tmp_path / "results"
    reproduce(list_runs(track, ("pretrain-0",)), data, *folders, options)
    tuning = list_runs(track, ("finetune-0",))
    with pytest.raises(InputError, match="finetune-0 starts from the weights of pretrain-0"):
        reproduce(tuning, data, tmp_path / "other", folders[1], options)
    rounded = starting_weights(tuning[0], folders[0])
    for file in set(rounded.parent.iterdir()) - {rounded}:
        file.unlink()
    reproduce(tuning, data, *folders, options)
    tensors, _ = read_weights(rounded)
    assert all(torch.equal(t, t.half().float()) for t in tensors.values())
    used = RunRecord.load(folders[1] / "finetune-0").config["weights"]
    assert used == load_model(rounded, "mae").fingerprint()
