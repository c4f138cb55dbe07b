"""Tests that need a GPU, and what can be tested for a GPU without one.

Before a long run on a GPU, call this, which needs no notebook tools:
`python -m pytest tests/test_gpu.py tests/test_speed.py -k "gpu or cuda"`
"""

import itertools
import json
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from common import DATA, QUICK, losses
from maevit_course import kernels
from maevit_course.augmentation import (
    CIFAR10_POLICIES,
    AutoAugmentBatch,
    apply_operation,
    magnitude_of,
)
from maevit_course.benchmark import recipe_step
from maevit_course.cli import main
from maevit_course.core import set_seed
from maevit_course.data import ImageData, load_data
from maevit_course.finetuning import FINETUNE_RECIPES
from maevit_course.kernels import attention, autocast, compile_or_fall_back, configure_backend
from maevit_course.loss import reconstruction_loss
from maevit_course.models import MAE
from maevit_course.pretraining import PRETRAIN_RECIPES
from maevit_course.training import Batches

COMPILED = pytest.mark.filterwarnings("error:the step could not be compiled")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda")
EVERYTHING = {"ema": 0.999, "clip_grad": 1.0, "class_weights": True}
RECIPES = pytest.mark.parametrize(
    "recipe",
    [
        PRETRAIN_RECIPES["paper"],
        FINETUNE_RECIPES["paper"],
        replace(FINETUNE_RECIPES["paper"], **EVERYTHING),
    ],
    ids=["pretrain", "finetune", "all hooks"],
)


def noise(n, device):
    "Images that only have a shape."
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, device=device)
    return ImageData(images, torch.randint(10, (n,), device=device), tuple("0123456789"), "noise")


@RECIPES
def test_on_a_pretended_gpu_steps_mix_no_devices_and_read_no_numbers(recipe, monkeypatch):
    "Fake tensors have a shape and a device but no numbers; needing either raises an error."
    monkeypatch.setattr(
        "maevit_course.data.check_data", lambda *_: None
    )  # reads the labels, once, before the training
    monkeypatch.setattr(nn.Module, "to", lambda self, _: self)
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            step = recipe_step(replace(recipe, compile=False, precision="fp32"), GPU)
        data = noise(2 * recipe.batch_size, GPU)
        for images, labels in Batches(data, recipe, recipe.crop()).epoch(0):
            said = step(images, labels)
            assert images.is_cuda and all(
                value.is_cuda and not value.shape for value in said.values()
            )


def test_on_a_pretended_gpu_autoaugment_stays_there():
    operations = {
        (name, magnitude_of(name, level, 32))
        for policy in CIFAR10_POLICIES
        for name, _, level in policy
    }
    with FakeTensorMode():
        images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=GPU)
        assert all(apply_operation(images, *operation).is_cuda for operation in operations)


@on_a_gpu
def test_the_model_computes_what_it_does_on_the_cpu():
    set_seed(0)
    mae = MAE().eval()
    images, noise = torch.randn(8, 3, 36, 36), torch.rand(8, 144)
    with torch.no_grad():
        here, target, masked = mae(images, noise=noise)
        there = mae.to(GPU)(images.to(GPU), noise=noise.to(GPU))
    torch.testing.assert_close(there[0].cpu(), here, atol=1e-4, rtol=1e-3)
    assert torch.equal(there[1].cpu(), target) and torch.equal(there[2].cpu(), masked)


@on_a_gpu
def test_attention_drops_as_much_as_it_is_told_to():
    "Equal scores and the unit matrix for values: what comes out are the weights themselves."
    configure_backend(GPU)
    q, v = (
        torch.zeros(64, 3, 64, 64, device=GPU, dtype=torch.bfloat16),
        torch.eye(64, device=GPU, dtype=torch.bfloat16).expand(64, 3, 64, 64),
    )
    for p in (0.1, 0.3):
        assert (attention(q, q, v, p) == 0).float().mean().item() == pytest.approx(p, abs=0.005)


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_the_attention_kernels_compile_for_a_gpu_that_is_not_there(capability):
    "As on an A100, an A10 and an H100, in bf16, with no more shared memory than these have."
    short = pytest.importorskip("maevit_course.short_attention")  # needs Triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    numbers = {"log_sums": "*fp32", "seed": "*i32"}
    for tokens, backward in itertools.product((37, 145), (False, True)):
        kernel = short.backward_kernel if backward else short.forward_kernel
        options = short.launch_options(tokens)[backward]
        values = short.arguments(torch.empty(2, 3, tokens, 64), 0.1, options)
        values |= {"gradient_scale": 0.125, "ONE_TILE": tokens <= 64}
        constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        names = kernel.arg_names
        tensors = names[: names.index("in_image")]
        signature = {
            name: numbers.get(name, "*bf16" if name in tensors else "i32")
            if name not in constants
            else "constexpr"
            for name in names
        }
        aligned = [*tensors, *(name for name in names if name.startswith(("in_", "out_")))]
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        launch = {name: options[name] for name in ("num_warps", "num_stages")}
        source = ASTSource(kernel, signature, constants, attributes)
        found = compile(source, GPUTarget("cuda", capability, 32), launch)
        most = {80: 166_912, 86: 101_376, 90: 232_448}[capability]
        assert "cubin" in found.asm and found.metadata.shared <= most


def test_a_compiled_step_uses_our_attention_where_it_suits(monkeypatch):
    ours = types.ModuleType("ours")
    ours.suits_short_attention = lambda q, k, v: q.shape[2] < 9
    ours.short_attention = lambda q, k, v, p: v * p
    monkeypatch.setattr(kernels, "SHORT_ATTENTION", ours)
    compiled = torch.compile(attention, backend="eager", dynamic=False)
    q, k, v = torch.randn(3, 2, 1, 8, 4).unbind()
    torch.testing.assert_close(compiled(q, k, v, 0.5), v * 0.5)
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    q, k, v = torch.randn(3, 2, 1, 9, 4).unbind()
    torch.testing.assert_close(compiled(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_the_library_does_not_import_the_compiler():
    code = "import sys, maevit_course.kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dropout_in_a_compiled_step_drops_and_scales_and_obeys_the_seed():
    compiled = torch.compile(kernels.hashed_dropout, backend="aot_eager", dynamic=False)
    x, results = torch.full((1000, 300), 2.0, requires_grad=True), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(compiled(x, 0.3))
    first, again, other = results
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.unique().tolist() == pytest.approx([0.0, 2 / 0.7])
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=5e-3)
    (gradient,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(gradient, first.detach() / 2)


@on_a_gpu
@pytest.mark.parametrize(("tokens", "p"), [(37, 0.1), (37, 0.6), (145, 0.1)])
def test_our_attention_drops_the_same_weights_in_both_passes(tokens, p):
    "With columns of the unit matrix as values, the output shows which weights were dropped."
    short = pytest.importorskip("maevit_course.short_attention")  # needs Triton
    set_seed(0)
    parts = torch.randn(4, 16, 3, tokens, 64, device=GPU, dtype=torch.bfloat16).unbind()
    inputs, gradient = [t.requires_grad_() for t in parts[:3]], parts[3]
    assert short.suits_short_attention(*inputs)
    seed = torch.tensor([123], dtype=torch.int32, device=GPU)
    found = short.attend(*inputs, seed, p)[0]
    unit = torch.eye(tokens, -(-tokens // 64) * 64, device=GPU, dtype=torch.bfloat16)
    columns = [unit[:, i : i + 64].repeat(16, 3, 1, 1) for i in range(0, tokens, 64)]
    shown = torch.cat([short.attend(*inputs[:2], values, seed, p)[0] for values in columns], -1)
    kept = shown[..., :tokens] != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.005)
    exact = [t.detach().float().requires_grad_() for t in inputs]
    weights = (exact[0] @ exact[1].mT / 8).softmax(-1) * kept / (1 - p)
    expected = weights @ exact[2]
    pairs = zip(
        [found, *torch.autograd.grad(found, inputs, gradient)],
        [expected, *torch.autograd.grad(expected, exact, gradient.float())],
    )
    for one, other in pairs:
        assert F.cosine_similarity(one.float().flatten(), other.flatten(), dim=0) > 0.999


@on_a_gpu
def test_the_compiler_launches_our_attention():
    pytest.importorskip("maevit_course.short_attention")  # needs Triton
    configure_backend(GPU)
    inputs = torch.randn(3, 2, 3, 37, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    _, code = run_and_get_code(torch.compile(attention, dynamic=False), *inputs.unbind(), 0.1)
    assert "forward_kernel" in "".join(code)


def loss_and_gradient(mae, loss_fn, images):
    mae.zero_grad()
    set_seed(0, "step")
    with autocast(GPU, "bf16"):
        loss = loss_fn(mae, images, None)["loss"]
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in mae.parameters()])


@on_a_gpu
@COMPILED
def test_the_compiled_step_in_bf16_computes_what_the_plain_one_does_and_obeys_the_seed():
    images, places = torch.randn(64, 3, 36, 36, device=GPU), torch.rand(64, 144, device=GPU)
    plain = lambda model, x, _: reconstruction_loss(*model(x, noise=places))
    mae = MAE(dropout=0.0, attention_dropout=0.0).to(GPU)
    (loss, gradient), (fused_loss, fused_gradient) = (
        loss_and_gradient(mae, f, images) for f in (plain, compile_or_fall_back(plain))
    )
    assert (
        abs(fused_loss - loss) < 0.01 * loss
        and F.cosine_similarity(gradient, fused_gradient, dim=0) > 0.995
    )
    mae = MAE().to(GPU)
    fused = compile_or_fall_back(lambda model, x, _: reconstruction_loss(*model(x)))
    first, again = (loss_and_gradient(mae, fused, images)[0] for _ in range(2))
    assert first == again
    set_seed(1)
    with autocast(GPU, "bf16"):
        assert fused(mae, images, None)["loss"] != first


@on_a_gpu
def test_autoaugment_draws_and_does_the_same():
    images = load_data("shapes", limit=500)[0].images
    results = []
    for batch in (images, images.to(GPU)):
        set_seed(0)
        results.append(AutoAugmentBatch()(batch).cpu())
    assert (
        results[0] != results[1]
    ).float().mean() < 0.01  # a rotation may round a coordinate the other way


@on_a_gpu
@COMPILED
@RECIPES
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_steps_within_a_block_never_wait_for_the_gpu(recipe, precision, request):
    recipe = replace(recipe, precision=precision)
    data = noise(Batches.block * recipe.batch_size, GPU)
    step, block = (
        recipe_step(recipe, GPU),
        AutoAugmentBatch() if hasattr(recipe, "auto_augment") else None,
    )
    request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
    batches = Batches(data, recipe, recipe.crop(), block)
    for n, (images, labels) in enumerate(batches.epoch(0)):
        step(images, labels)
        if n == 2:  # all is compiled by now
            torch.cuda.set_sync_debug_mode("error")
    assert n == Batches.block - 1


@on_a_gpu
@COMPILED
def test_a_resumed_run_goes_on_as_an_undisturbed_one(tmp_path):
    """The losses agree closely.

    Different crops, masks or dropout after the stop would change them by some tenths of a per cent;
    a different order of summation changes them far less.
    """
    words = [
        "pretrain",
        *QUICK,
        "--epochs",
        "6",
        "--dropout",
        "0.1",
        "--attention-dropout",
        "0.1",
        "--device",
        "cuda",
    ]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--out", str(tmp_path / "parts"), "--minutes", "0.0001"]) == 130
    assert main([*words, "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=2e-4)


@on_a_gpu
@COMPILED
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_from_pre_training_to_evaluation_in_16_bits(precision, tmp_path, capsys):
    mae, out = tmp_path / "mae", tmp_path / "classifier"
    words = [*DATA, "--recipe", "small", "--epochs", "3", "--device", "cuda"]
    words += ["--precision", precision]
    assert main(["pretrain", *words, "--out", str(mae)]) == 0
    assert main(["finetune", *words, "--weights", str(mae), "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["recipe"]["precision"] == precision
    logged = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    for device in ("cuda", "cpu"):
        capsys.readouterr()
        assert main(["evaluate", *DATA, "--weights", str(out), "--device", device, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(logged, abs=0.02)
