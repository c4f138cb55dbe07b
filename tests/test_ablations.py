"""The ablations: the plan, its variants, resumption, two processes, and the statistics."""

import json
import math
import multiprocessing
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from common import SECONDS
from maevit_course.cli import main
from maevit_course.core import InputError, differences, set_seed
from maevit_course.data import load_data
from maevit_course.models import MAE, Classifier, load_model, save_model
from maevit_course.paper import ablations
from maevit_course.paper.ablations import (
    BASE_FINETUNE,
    BASE_PRETRAIN,
    FACTORS,
    T_QUANTILES,
    GeluLayer,
    Trial,
    VariantConfig,
    claim,
    convert_target,
    curve,
    effect_table,
    effects,
    equal_cost,
    folders,
    forest_plot,
    has_line,
    list_trials,
    paired_effect,
    read_costs,
    read_trials,
    run_trial,
    run_trials,
    show_curves,
    sine_positions,
    train_phase,
)
from maevit_course.pretraining import PRETRAIN_RECIPES
from maevit_course.runs import plain
from maevit_course.training import Learner, RunOptions
from maevit_course.transformer import TransformerLayer

SIZES = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
SIZES |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
SIZES |= {"dropout": 0.0, "attention_dropout": 0.0}
TINY = {f"model.{name}": value for name, value in SIZES.items()}
TINY |= {"pretrain.epochs": 2, "pretrain.batch_size": 32, "finetune.epochs": 2}
OPTIONS = RunOptions(device="cpu", progress=False)


def tiny(seed=0, labels=8, **settings):
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    return Trial("tiny", json.dumps(settings), seed, TINY | settings, labels_per_class=labels)


@pytest.fixture(scope="module")
def toys():
    return load_data("shapes", limit=160)[0]


def without_seconds(line):
    return {name: value for name, value in line.items() if name != "seconds"}


# The plan


def test_the_plan_has_nine_factors_with_three_seeds_and_two_curves():
    trials = list_trials()
    seeds = {}
    for trial in trials:
        seeds.setdefault((trial.factor, trial.value), []).append(trial.seed)
    assert all(found == [0, 1, 2] for found in seeds.values())
    assert set(FACTORS) <= {factor for factor, _ in seeds} and len(FACTORS) >= 9
    labels = {(t.labels_per_class, t.scratch) for t in trials}
    assert labels == {(n, scratch) for n in (10, 100, 1000, None) for scratch in (False, True)}
    epochs = {t.pretrain.epochs for t in trials if t.factor in ("base", "epochs")}
    assert epochs == {5, 10, 30, 100}


def test_a_trial_changes_what_it_says_and_only_length_and_seed_besides():
    for trial in list_trials(tuple(FACTORS)):
        changed = [
            *differences(asdict(BASE_PRETRAIN), asdict(trial.pretrain)),
            *differences(asdict(BASE_FINETUNE), asdict(trial.finetune)),
        ]
        names = {text.split(" (")[0] for text in changed} - {"seed", "epochs", "warmup_epochs"}
        said = {name.replace("pretrain.", "") for name in trial.settings} - {"epochs"}
        assert len(said) == 1 and names == said - {"data.cifar100"}, trial.name
        assert trial.with_cifar100 == ("data.cifar100" in said)


def test_the_base_is_the_small_recipe():
    ours, small = asdict(BASE_PRETRAIN), asdict(PRETRAIN_RECIPES["small-0.1"].with_epochs(5))
    changed = {text.split(" (")[0] for text in differences(small, ours)}
    assert changed == {"precision", "model.activation", "model.positions", "model.target"}


def test_trials_of_another_cost_take_the_time_of_the_base():
    costs = read_costs()["milliseconds"]
    for trial in list_trials(tuple(FACTORS)):
        ratio = costs.get(f"{trial.factor} {trial.value}", costs["base"]) / costs["base"]
        if trial.with_cifar100:  # 95,000 images instead of 45,000
            ratio *= 19 / 9
        total = trial.pretrain.epochs * trial.share * ratio
        assert abs(total - 5) < (0.06 if abs(ratio - 1) >= 0.05 else 0.3)
        assert 0.5 < trial.share <= 1
    assert equal_cost(2.0) == (3, 0.833) and equal_cost(0.5) == (10, 1.0)
    with pytest.raises(InputError, match="ratio is 0 but must be positive"):
        equal_cost(0)


def test_trials_that_differ_in_fine_tuning_share_their_pretraining():
    base, mean, deep = Trial("a", "b", 0), Trial("a", "c", 0), Trial("a", "d", 0)
    mean = replace(mean, settings={"model.pool": "mean"})
    deep = replace(deep, settings={"model.decoder_depth": 2})
    assert folders(base)[0] == folders(mean)[0] != folders(deep)[0]
    assert len({folders(t)[1] for t in (base, mean, deep, replace(base, seed=1))}) == 4


def test_the_command_lists_the_plan_and_refuses_other_words(capsys):
    command = ["reproduce", "--scale", "ablations"]
    assert main([*command, "α", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:4] == ["α", "0,", "seed", "0"]
    assert main([*command, "β"]) == 2
    assert "no factor 'β' in the plan: choose from base, α" in capsys.readouterr().err
    assert main([*command, "--epochs", "3"]) == 2
    assert "epochs is 3, but the scale 'ablations' has its own" in capsys.readouterr().err


# The variants


def build(**settings):
    set_seed(0)
    return MAE(VariantConfig(**SIZES, **settings)).eval()


@pytest.mark.parametrize(
    "settings", [{"activation": "gelu"}, {"positions": "sine"}, {"norm_first": False}]
)
def test_a_variant_has_the_base_s_parameters_and_other_outputs(settings):
    base, variant, images = build(), build(**settings), torch.randn(2, 3, 32, 32)
    changed = {
        name
        for (name, p), (_, q) in zip(base.named_parameters(), variant.named_parameters())
        if p.shape != q.shape or not torch.equal(p, q)
    }
    fixed = {"encoder.positions", "decoder.positions"} if "positions" in settings else set()
    assert changed == fixed
    noise = torch.rand(2, 16)
    a, b = base(images, 0.75, noise)[0], variant(images, 0.75, noise)[0]
    assert a.shape == b.shape and (a - b).abs().max() > 1e-3


def test_the_gelu_layer_equals_pytorchs():
    set_seed(0)
    layer, x = TransformerLayer(24, 2, 2.0, 0.0, 0.0), torch.randn(3, 5, 24)
    layer.__class__ = GeluLayer
    theirs = nn.TransformerEncoderLayer(
        24, 2, 48, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    parts = {"self_attn.in_proj_": layer.attention.qkv, "self_attn.out_proj.": layer.attention.out}
    parts |= {"linear1.": layer.up, "linear2.": layer.down}
    parts |= {"norm1.": layer.norm1, "norm2.": layer.norm2}
    theirs.load_state_dict(
        {
            f"{name}{kind}": getattr(p, kind)
            for name, p in parts.items()
            for kind in ("weight", "bias")
        }
    )
    torch.testing.assert_close(layer(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_sine_positions_equal_the_formula_of_he_et_al():
    "Their code makes a grid of (column, row) and encodes each with outer products in float64."

    def encode(places, width):
        omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2.0))
        angles = np.outer(places, omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    for side, width in ((8, 128), (12, 192), (3, 4)):
        columns, rows = np.meshgrid(np.arange(side), np.arange(side))
        both = [encode(grid.reshape(-1), width // 2) for grid in (columns, rows)]
        expected = torch.from_numpy(np.concatenate(both, axis=1)).float()
        torch.testing.assert_close(sine_positions(side, width), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="width is 6 but must be a multiple of 4"):
        sine_positions(2, 6)


def test_targets():
    set_seed(0)
    target = torch.rand(2, 5, 12) * 2 - 1
    assert torch.equal(convert_target(target, "normalised"), target)
    raw = convert_target(target, "raw")
    torch.testing.assert_close(2 * raw - 1, target)
    patch = convert_target(target, "patch").double()
    assert patch.mean(-1).abs().max() < 1e-5
    assert ((patch.square().sum(-1) / 11) - 1).abs().max() < 1e-4
    flat = convert_target(torch.ones(1, 1, 12), "patch")
    assert not flat.any()


def test_an_unknown_choice_is_refused():
    for name in ("activation", "positions", "target"):
        with pytest.raises(InputError, match=f"{name} is 'swish' but must be one of"):
            VariantConfig(**{name: "swish"})


@pytest.mark.parametrize("settings", [{"activation": "gelu"}, {"target": "raw"}])
def test_a_variants_weights_do_not_load_as_another_model(settings, tmp_path):
    mae = build(**settings)
    for model in (mae, Classifier(mae.encoder, 3, mae.config)):
        save_model(model, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match="ModelConfig has no setting"):
            load_model(tmp_path / "w.safetensors")


def test_both_phases_use_the_variant(toys, tmp_path):
    "GELU and fixed positions in the classifier too; training moves only the dummy's position."
    trial = tiny(model__activation="gelu", model__positions="sine", model__target="raw")
    mae, _ = train_phase(trial.pretrain, toys, tmp_path / "a", OPTIONS)
    classifier, _ = train_phase(trial.finetune, toys, tmp_path / "b", OPTIONS, mae)
    for part in (mae.encoder, mae.decoder, classifier.encoder):
        assert all(type(layer) is GeluLayer for layer in part.layers)
        assert torch.equal(part.positions[:-1], sine_positions(4, part.positions.shape[1]))
    assert not torch.equal(mae.encoder.positions[-1], build().encoder.positions[-1])
    assert not torch.equal(classifier.encoder.positions[-1], mae.encoder.positions[-1])
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    target = mae(images)[1]
    assert target.min() >= 0 and target.max() <= 1


# Running


def stop_after(monkeypatch, steps):
    "Interrupt the training after a number of steps, as Ctrl-C does, all checkpoints being saved."
    train_step, done = Learner.train_step, []

    def step(self, images, labels):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return train_step(self, images, labels)

    monkeypatch.setattr(Learner, "train_step", step)


@pytest.mark.parametrize("steps", [3, 9])  # in pre-training (8 steps) and in fine-tuning
def test_a_stopped_trial_ends_with_the_same_line(steps, toys, tmp_path, monkeypatch):
    train, held_out = toys.split(0.2, seed=0)
    trial, options = tiny(), replace(OPTIONS, checkpoint_minutes=0)
    whole = run_trial(trial, train, held_out, tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            run_trial(trial, train, held_out, tmp_path / "parts", options)
    parts = run_trial(trial, train, held_out, tmp_path / "parts", options)
    assert without_seconds(parts) == without_seconds(whole)
    assert set(whole["seconds"]) == {"pretrain", "probe", "finetune"}
    names = "accuracy loss masked visible probe_dummy probe_mean".split()
    assert [name for name in whole if name != "seconds"] == names
    assert whole["loss"] == pytest.approx(whole["masked"] + 0.1 * whole["visible"], abs=1e-4)


def test_trials_with_one_pretraining_measure_it_once(toys, tmp_path, monkeypatch):
    train, held_out = toys.split(0.2, seed=0)
    lines = []
    for pool in ("dummy", "mean"):
        trial = tiny(model__pool=pool)
        lines.append(run_trial(trial, train, held_out, tmp_path, OPTIONS))
        monkeypatch.setattr(ablations, "measure_pretraining", None)
    assert lines[0]["probe_mean"] == lines[1]["probe_mean"]
    assert len(list(tmp_path.glob("pretrain-*"))) == 1
    assert len(list(tmp_path.glob("finetune-*"))) == 2


def test_a_trial_with_cifar_100_trains_on_the_same_share_of_both(toys, tmp_path, monkeypatch):
    "Only pre-training sees the other images; without them, the trial is refused before it starts."
    train, held_out = toys.split(0.2, seed=0)
    other = load_data("shapes", limit=80)[1]
    trial = replace(tiny(data__cifar100=True), share=0.5)
    seen, train_phase = [], ablations.train_phase

    def watch(recipe, data, *rest):
        seen.append(data)
        return train_phase(recipe, data, *rest)

    monkeypatch.setattr(ablations, "train_phase", watch)
    run_trial(trial, train, held_out, tmp_path / "run", OPTIONS, other)
    both, few = seen
    expected = torch.cat([train.images[: len(train) // 2], other.images[: len(other) // 2]])
    assert torch.equal(both.images, expected) and both.classes == ()
    assert few.classes == train.classes and len(few) == 8 * len(train.classes)
    with pytest.raises(InputError, match="needs CIFAR-100: pass its training images"):
        run_trials([trial], toys, tmp_path / "out", tmp_path / "trials.jsonl", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_trial_from_scratch_has_no_pretraining(toys, tmp_path):
    train, held_out = toys.split(0.2, seed=0)
    line = run_trial(replace(tiny(), scratch=True), train, held_out, tmp_path, OPTIONS)
    assert set(line) == {"accuracy", "seconds"} and set(line["seconds"]) == {"finetune"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_trial_that_another_process_holds_comes_last(toys, tmp_path, monkeypatch):
    trials, order = [tiny(0), tiny(1), tiny(2)], []
    first = FileLock(tmp_path / f"{folders(trials[0])[0]}.claim")

    def fake(trial, *_):
        order.append(trial.seed)
        if trial.seed == 2:
            first.release()
        return {"accuracy": 0.5}

    monkeypatch.setattr(ablations, "run_trial", fake)
    with first:
        run_trials(trials, toys, tmp_path, tmp_path / "trials.jsonl", OPTIONS)
    assert order == [1, 2, 0]
    assert [line["seed"] for line in read_trials(tmp_path / "trials.jsonl")] == order
    run_trials(trials, toys, tmp_path, tmp_path / "trials.jsonl", OPTIONS)
    assert order == [1, 2, 0], "finished trials are skipped"


def work(trials, data, out, barrier):
    "Share the trials with another process; a trial that is done twice raises FileExistsError."
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent

    def fake(trial, *_):
        (out / str(trial.seed)).touch(exist_ok=False)
        return {"accuracy": trial.seed / 100}

    ablations.run_trial = fake
    barrier.wait(SECONDS)
    run_trials(trials, data, out, out / "trials.jsonl", OPTIONS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_two_processes_do_each_trial_once(toys, tmp_path):
    context = multiprocessing.get_context("fork")
    words = ([tiny(seed) for seed in range(40)], toys, tmp_path, context.Barrier(2))
    both = [context.Process(target=work, args=words) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(SECONDS)
    assert [process.exitcode for process in both] == [0, 0]
    lines = read_trials(tmp_path / "trials.jsonl")
    assert sorted(line["seed"] for line in lines) == list(range(40))
    assert all(line["accuracy"] == line["seed"] / 100 for line in lines)


def test_a_line_of_another_trial_is_refused(tmp_path):
    file, trial = tmp_path / "trials.jsonl", tiny()
    line = {**plain(asdict(trial)), "data": "abc"}
    assert not has_line(trial, file, "abc")
    file.write_text(json.dumps(line) + "\n")
    assert has_line(trial, file, "abc") and not has_line(tiny(1), file, "abc")
    with pytest.raises(InputError, match=r"data \(abc → abd\)"):
        has_line(trial, file, "abd")
    with pytest.raises(InputError, match=r"share \(1.0 → 0.5\)"):
        has_line(replace(trial, share=0.5), file, "abc")
    file.write_text(json.dumps(line) + "\n" + json.dumps(line)[:20])
    with pytest.raises(InputError, match="has a broken line"):
        read_trials(file)


def test_a_claim_is_given_once(tmp_path):
    with claim(tmp_path / "a", 0) as first, claim(tmp_path / "a", 0) as second:
        assert first and not second
    with claim(tmp_path / "a", 0) as again:
        assert again


# Statistics


def test_quantiles_enclose_95_percent_of_students_distribution():
    "The density is integrated numerically."
    for df, quantile in enumerate(T_QUANTILES, 1):
        factor = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
        t = torch.linspace(-quantile, quantile, 100_001, dtype=torch.float64)
        inside = torch.trapezoid(factor * (1 + t**2 / df) ** (-(df + 1) / 2), t).item()
        assert abs(inside - 0.95) < 1e-4, df


def test_a_paired_effect_by_hand():
    effect = paired_effect({0: 2.0, 1: 4.0, 2: 6.0, 9: 100.0}, {2: 3.0, 1: 2.0, 0: 1.0})
    assert effect.mean == pytest.approx(2) and effect.n == 3
    assert effect.half == pytest.approx(4.303 / math.sqrt(3)) and effect.includes_zero
    two = paired_effect({0: 5.0, 1: 5.2}, {0: 1.0, 1: 1.0})
    assert two.half == pytest.approx(12.706 * math.sqrt(0.02) / math.sqrt(2))
    assert not two.includes_zero
    with pytest.raises(InputError, match="2 to 10 common seeds, not 1"):
        paired_effect({0: 1.0, 1: 2.0}, {1: 2.0, 2: 3.0})


def records():
    "Lines in which α = 0 loses 2 points with little spread, and α = 1 gains 1 with a lot."
    base = {0: 0.50, 1: 0.52, 2: 0.54}
    change = {"base": (0, 0, 0), "0": (-0.02, -0.021, -0.019), "1": (0.03, -0.01, 0.01)}
    for value, steps in change.items():
        factor, name = ("base", "small") if value == "base" else ("α", value)
        for seed, step in enumerate(steps):
            accuracy = {"accuracy": base[seed] + step}
            yield {"factor": factor, "value": name, "seed": seed} | accuracy
    for seed in base:
        yield {"factor": "labels", "value": "all", "seed": seed, "accuracy": 0.7}
        yield {"factor": "from scratch", "value": "100", "seed": seed, "accuracy": 0.3}
        yield {"factor": "epochs", "value": "20", "seed": seed, "accuracy": 0.6}


def test_tables_and_plots_say_when_an_interval_includes_zero():
    found = effects(records(), "accuracy")
    assert set(found) == {("α", "0"), ("α", "1")}
    rows = effect_table(records(), {"accuracy": "accuracy"}, ["α", "norm"]).splitlines()
    assert rows[2] == "| α: 0 instead of 0.1 | 3 | **−2.00\u00a0±\u00a00.25** |"
    assert rows[3] == "| α: 1 instead of 0.1 | 3 | +1.00\u00a0±\u00a04.97, includes\u00a00 |"
    assert rows[4] == "| norm: post-norm instead of pre-norm | 0 | – |"
    axis = forest_plot(records(), {"accuracy": "accuracy"}).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["α 0", "α 1"]


def test_curves_contain_the_base():
    assert list(curve(records(), "labels", "accuracy")) == [100, 4500]
    assert curve(records(), "from scratch", "accuracy") == {100: [0.3] * 3}
    assert list(curve(records(), "epochs", "accuracy")) == [5, 20]
    assert len(show_curves(records()).axes) == 2
