"""Precision, devices and compilation: what is chosen where, and that fp16 trains and resumes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim import SGD, AdamW

from maevit_course import training
from maevit_course.benchmark import benchmark
from maevit_course.core import InputError, World, pick_device, set_seed
from maevit_course.data import load_data
from maevit_course.finetuning import FinetuneRecipe
from maevit_course.hooks import ClipGradients
from maevit_course.kernels import (
    autocast,
    compile_options,
    compiles,
    gradient_scaler,
    resolve_precision,
)
from maevit_course.models import MAE, ModelConfig
from maevit_course.pretraining import PretrainRecipe, pretrain
from maevit_course.progress import DivergedError, RunStopped
from maevit_course.runs import RunRecord
from maevit_course.training import Learner, RunOptions
from maevit_course.weights import from_bytes

CPU, GPU, APPLE = (torch.device(name) for name in ("cpu", "cuda", "mps"))
CUBLAS = {"max_autotune": False, "max_autotune_gemm": False}
SIZES = {"image_size": 12, "width": 24, "depth": 1, "decoder_width": 24, "decoder_depth": 1}
MODEL = ModelConfig(**SIZES)
PRETRAIN = PretrainRecipe(
    epochs=3, warmup_epochs=0, batch_size=16, base_lr=2e-2, model=MODEL, precision="fp16"
)
FINETUNE = FinetuneRecipe(
    epochs=3, warmup_epochs=0, batch_size=16, base_lr=1e-1, model=MODEL, precision="fp16"
)
#: Scales that suit the gradients of this model, and that make them overflow for some steps.
FITS, TOO_LARGE = 2.0**10, 2.0**24


@pytest.fixture(scope="module")
def shapes():
    return load_data("shapes", limit=64)[0]


def learner_of(shapes, recipe=PRETRAIN, scale=FITS):
    learner = Learner(recipe.task(shapes), recipe, CPU, steps_per_epoch=4)
    if learner.scaler.is_enabled():
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return learner


def batch():
    set_seed(0, "batch")
    return torch.rand(16, 3, 12, 12) * 2 - 1, torch.arange(16) % 10


def weights(learner):
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


# What is chosen where


@pytest.mark.parametrize(
    ("capability", "precision", "options"),
    [
        ((6, 1), "fp32", CUBLAS),
        ((7, 0), "fp16", CUBLAS),
        ((7, 5), "fp16", CUBLAS),
        ((8, 0), "bf16", {}),
        ((8, 6), "bf16", {}),
        ((9, 0), "bf16", {}),
        ((12, 0), "bf16", {}),
    ],
)
def test_a_gpu_is_used_according_to_its_capability(capability, precision, options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)  # emulated, perhaps
    assert resolve_precision("auto", GPU) == precision
    assert compile_options(GPU) == options
    assert PRETRAIN.resolve(GPU, 64).precision == "fp16"  # as the recipe asks
    assert replace(PRETRAIN, precision="auto").resolve(GPU, 64).precision == precision


def test_an_apple_gpu_computes_in_float32_and_uncompiled():
    assert resolve_precision("auto", APPLE) == "fp32"
    assert [resolve_precision(name, APPLE) for name in ("bf16", "fp16")] == ["bf16", "fp16"]
    with pytest.warns(UserWarning, match="on an Apple GPU the step is not compiled"):
        assert compile_options(APPLE) is None


def test_a_cpu_is_not_compiled_for_and_says_nothing(recwarn):
    assert compile_options(CPU) is None and not recwarn.list


@pytest.mark.parametrize(
    ("cuda", "mps", "found"),
    [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_device_is_a_gpu_if_there_is_one(cuda, mps, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert pick_device("auto", World()).type == found
    assert pick_device("cpu", World()) == CPU


def test_processes_do_not_share_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="2 processes cannot share an Apple GPU: using the CPU"):
        assert pick_device("auto", World(0, 2)) == CPU
    with pytest.raises(InputError, match="2 processes cannot share the device 'mps'"):
        pick_device("mps", World(0, 2))


def test_an_absent_apple_gpu_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"'mps' cannot be used here \(PyTorch finds no Apple GPU"):
        pick_device("mps", World())


@pytest.mark.parametrize("options", [None, {}, CUBLAS])
@pytest.mark.parametrize("wanted", [True, False])
def test_training_and_benchmark_decide_alike_about_compiling(
    options, wanted, shapes, tmp_path, monkeypatch
):
    compiled = []

    def compile_or_fall_back(loss_fn, options):
        compiled.append(options)
        return loss_fn

    monkeypatch.setattr(training, "compile_options", lambda device: options)
    monkeypatch.setattr(training, "compile_or_fall_back", compile_or_fall_back)
    recipe = replace(PRETRAIN, epochs=1, precision="fp32", compile=wanted)
    pretrain(shapes, recipe, tmp_path / "run", RunOptions(device="cpu"))
    trained = compiled[:]
    benchmark(shapes, recipe, "cpu", seconds=1e-3)
    assert compiled[len(trained) :] == trained
    assert trained == ([options] if wanted and options is not None else [])


# What fp16 computes


@pytest.mark.parametrize("recipe", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_fp16_learns_as_float32_does(recipe, shapes):
    "The same losses to a few tenths of a per cent, and every one of them is float32."
    losses = {}
    for precision in ("fp32", "fp16"):
        learner = learner_of(shapes, replace(recipe, precision=precision))
        values = []
        for step in range(10):
            set_seed(step)
            values.append(learner.train_step(*batch()))
        assert all(value.dtype == torch.float32 for step in values for value in step.values())
        losses[precision] = torch.stack([step["loss"] for step in values])
    assert losses["fp16"][-1] < 0.9 * losses["fp16"][0]
    assert not torch.equal(losses["fp16"], losses["fp32"])
    torch.testing.assert_close(losses["fp16"], losses["fp32"], rtol=5e-3, atol=0)


def test_the_target_of_a_reconstruction_is_float32():
    with autocast(CPU, "fp16"):
        prediction, target, _ = MAE(MODEL)(batch()[0])
    assert prediction.dtype == torch.float16 and target.dtype == torch.float32


def test_only_fp16_scales_its_loss(shapes):
    for precision in ("fp32", "bf16"):
        assert not gradient_scaler(CPU, precision).is_enabled()
        state = learner_of(shapes, replace(PRETRAIN, precision=precision)).state_dict()
        assert not [name for name in state if name.startswith("scaler")]
    assert gradient_scaler(CPU, "fp16").is_enabled()


@pytest.mark.parametrize("settings", [{}, {"clip_grad": 0.5}, {"ema": 0.9}])
def test_a_step_that_overflows_is_skipped_and_training_goes_on(settings, shapes):
    learner = learner_of(shapes, replace(PRETRAIN, **settings), 2.0**40)
    before = weights(learner)
    losses = learner.train_step(*batch())
    assert losses["loss"].isfinite() and torch.equal(weights(learner), before)
    assert learner.scaler.get_scale() == 2.0**39
    assert learner.optimizers[0].state_dict()["state"][0]["step"] == 0
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": FITS})
    learner.train_step(*batch())
    after = weights(learner)
    assert after.isfinite().all() and not torch.equal(after, before)
    assert learner.optimizers[0].state_dict()["state"][0]["step"] == 1
    assert learner.scaler.get_scale() == FITS
    if "ema" in settings:  # counts the skipped step, whose weights are the first ones
        average = torch.cat([p.flatten() for p in learner.result.parameters()])
        torch.testing.assert_close(average, 0.9 * before + 0.1 * after)


def test_gradients_are_clipped_after_they_are_unscaled(shapes):
    norms = []
    for scale in (2.0**6, 2.0**12):
        learner = learner_of(shapes, replace(PRETRAIN, clip_grad=1e-3), scale)
        for optimizer in learner.optimizers:
            optimizer.zero_grad = lambda **_: None
        learner.train_step(*batch())
        gradients = torch.cat([p.grad.flatten() for p in learner.model.parameters()])
        norms.append(gradients.norm().item())
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


class TwoOptimizers(PretrainRecipe):
    "One optimizer that is told of an overflow, and one that the scaler must not call."

    def optimizers(self, groups, hidden=()):
        first, *others = [dict(group) for group in groups]
        return [AdamW([first], lr=0.1, fused=True), SGD(others, lr=0.1)]


def test_one_scaler_serves_two_optimizers_and_an_overflow_stays_with_its_own(shapes):
    recipe = TwoOptimizers(**vars(replace(PRETRAIN, clip_grad=0.5)))
    learner = learner_of(shapes, recipe)
    adamw, sgd = (o.param_groups[0]["params"] for o in learner.optimizers)
    before = [[p.detach().clone() for p in group] for group in (adamw, sgd)]
    handle = sgd[0].register_hook(lambda gradient: gradient * float("nan"))
    learner.train_step(*batch())
    assert weights(learner).isfinite().all()
    assert all(torch.equal(p, old) for p, old in zip(sgd, before[1]))
    assert not any(torch.equal(p, old) for p, old in zip(adamw, before[0]))
    assert learner.scaler.get_scale() == FITS / 2
    handle.remove()
    learner.train_step(*batch())
    assert not torch.equal(sgd[0], before[1][0]) and learner.scaler.get_scale() == FITS / 2


def test_a_gradient_without_a_norm_is_not_clipped(shapes):
    learner = learner_of(shapes, replace(PRETRAIN, precision="fp32"))
    first, *others = learner.model.parameters()
    for bad in (float("inf"), float("nan")):
        first.grad = torch.full_like(first, bad)
        for p in others:
            p.grad = torch.ones_like(p)
        ClipGradients(0.1).after_backward(learner)
        assert all((p.grad == 1).all() for p in others)


# Runs


def scale_in(out):
    tensors, _ = from_bytes((out / "checkpoint.safetensors").read_bytes())
    return tensors["scaler.scale"].item()


def test_a_run_stopped_among_skipped_steps_resumes_to_the_same_bits(shapes, tmp_path, monkeypatch):
    scaler = partial(torch.amp.GradScaler, init_scale=TOO_LARGE)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    recipe = replace(PRETRAIN, epochs=4, clip_grad=1.0, ema=0.9)
    whole = pretrain(shapes, recipe, tmp_path / "whole", RunOptions(device="cpu"))
    for step in (1, 2, 3):
        options = RunOptions(device="cpu", resume=True, minutes=1e-9)
        with pytest.raises(RunStopped):
            pretrain(shapes, recipe, tmp_path / "parts", options)
        assert scale_in(tmp_path / "parts") == TOO_LARGE / 2**step
    options = RunOptions(device="cpu", resume=True)
    parts = pretrain(shapes, recipe, tmp_path / "parts", options)
    assert parts.fingerprint() == whole.fingerprint()
    logs = [RunRecord.load(tmp_path / name).history for name in ("whole", "parts")]
    for name in ("loss", "loss_scale"):
        assert [line[name] for line in logs[0]] == [line[name] for line in logs[1]]
    assert logs[0][0]["loss_scale"] == TOO_LARGE / 2**4  # 4 steps, all of them skipped
    assert scale_in(tmp_path / "parts") == scale_in(tmp_path / "whole") == logs[0][-1]["loss_scale"]
    assert logs[0][-1]["loss"] < logs[0][0]["loss"]


def test_an_infinite_loss_is_a_divergence_in_fp16_too(shapes, tmp_path):
    recipe = replace(PRETRAIN, base_lr=1e30)
    with pytest.raises(DivergedError, match="the loss is not finite"):
        pretrain(shapes, recipe, tmp_path / "run", RunOptions(device="cpu"))


def test_a_scale_of_0_is_a_divergence(shapes, tmp_path, monkeypatch):
    "No step had a finite gradient for so long that the scale has been halved down to 0."
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**40, backoff_factor=1e-30)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    monkeypatch.setattr("torch.Tensor.backward", overflowing(torch.Tensor.backward))
    with pytest.raises(DivergedError, match="the gradient is not finite"):
        pretrain(shapes, PRETRAIN, tmp_path / "run", RunOptions(device="cpu"))


def overflowing(backward):
    "The backward pass of a loss that is finite and whose gradients are not."
    return lambda loss: backward(loss * float("inf"))


def test_a_trial_of_the_compiler_leaves_no_trace_in_the_model():
    model = torch.nn.BatchNorm1d(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(8, 4)
    assert compiles(lambda m, x, _: {"loss": m(x).square().sum()}, model, x, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.weight.grad is None
