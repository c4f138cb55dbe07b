"""Each fast form computes what its plain form does; on a GPU too, where there is one."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from maevit_course import kernels, transformer
from maevit_course.benchmark import paper_step
from maevit_course.core import set_seed
from maevit_course.finetuning import classification_loss
from maevit_course.kernels import Dropout, attention, autocast, compile_or_fall_back
from maevit_course.loss import reconstruction_loss
from maevit_course.models import MAE, Classifier, ModelConfig

TINY = {"image_size": 12, "width": 48, "depth": 2, "decoder_width": 48, "decoder_depth": 1}


def loss_and_gradient(mae, images, noise, precision="fp32", loss_fn=None):
    mae.zero_grad()
    with autocast(images.device, precision):
        loss = (loss_fn or (lambda m, x, _: reconstruction_loss(*m(x, noise=noise))))(
            mae, images, None
        )["loss"]
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in mae.parameters()])


def test_attention_and_its_gradient_equal_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 3, 7, 16, requires_grad=True).unbind(0)
    for ours, theirs in zip(
        torch.autograd.grad(attention(q, k, v).square().sum(), (q, k, v)),
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v).square().sum(), (q, k, v)),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_dropout_is_a_mask_with_its_gradient():
    x = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    set_seed(0)
    mask = kernels.dropout_mask(x.detach(), 0.3) / 0.7
    set_seed(0)
    out = Dropout(0.3)(x)
    torch.testing.assert_close(out, x * mask)
    (grad,) = torch.autograd.grad((out * 3).sum(), x)
    torch.testing.assert_close(grad, 3 * mask)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_masks_are_independent_draws_of_the_right_rate(p):
    masks = torch.stack([kernels.dropout_mask(torch.empty(200_000), p) for _ in range(5)])
    n = masks.numel()
    assert abs(masks.mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-5
    assert abs(round(p * 65536) / 65536 - p) < 1e-5  # what is aimed at
    centred = (masks - (1 - p)) / (p * (1 - p)) ** 0.5
    assert (centred[0] * centred[1]).mean().abs() < 5 / 200_000**0.5
    for shift in range(1, 9):
        assert (centred[:, shift:] * centred[:, :-shift]).mean().abs() < 5 / n**0.5


def test_without_dropout_the_fast_form_equals_the_plain_form(monkeypatch):
    "Loss and gradients of the whole model: fast CPU form against PyTorch's own functions."
    mae = MAE(**TINY, dropout=0.0, attention_dropout=0.0)
    images, noise = torch.randn(4, 3, 12, 12), torch.rand(4, 16)
    fast = loss_and_gradient(mae, images, noise)
    monkeypatch.setattr(
        transformer,
        "attention",
        lambda q, k, v, p=0.0: F.scaled_dot_product_attention(q, k, v, dropout_p=p),
    )
    plain = loss_and_gradient(mae, images, noise)
    torch.testing.assert_close(fast[0], plain[0])
    torch.testing.assert_close(fast[1], plain[1], atol=1e-6, rtol=1e-4)


def test_bf16_step_is_close_to_float32(device):
    set_seed(0)
    mae = MAE(dropout=0.0, attention_dropout=0.0).to(device)
    images, noise = torch.randn(8, 3, 36, 36, device=device), torch.rand(8, 144, device=device)
    loss, gradient = loss_and_gradient(mae, images, noise)
    loss16, gradient16 = loss_and_gradient(mae, images, noise, "bf16")
    assert abs(loss16 - loss) < 0.01 * loss
    assert F.cosine_similarity(gradient, gradient16, dim=0) > 0.995


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("error:the step could not be compiled")
def test_compiled_step_equals_the_plain_one(device):
    mae = MAE(**TINY, dropout=0.0, attention_dropout=0.0).to(device)
    images, noise = torch.randn(4, 3, 12, 12, device=device), torch.rand(4, 16, device=device)
    plain_fn = lambda m, x, _: reconstruction_loss(*m(x, noise=noise))
    plain = loss_and_gradient(mae, images, noise, loss_fn=plain_fn)
    fused = loss_and_gradient(mae, images, noise, loss_fn=compile_or_fall_back(plain_fn))
    torch.testing.assert_close(fused[0], plain[0])
    torch.testing.assert_close(fused[1], plain[1], atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("error:the step could not be compiled")
def test_paper_step_learns(device):
    set_seed(0)
    step, images = paper_step(device), torch.rand(4, 3, 36, 36, device=device)
    losses = [step(images).item() for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_off_the_cpu_a_step_is_one_graph_for_the_compiler():
    "The meta device takes the GPU's branches and computes nothing."
    images, labels = (
        torch.randn(8, 3, 36, 36, device="meta"),
        torch.zeros(8, dtype=torch.int64, device="meta"),
    )
    with torch.device("meta"):
        mae, classifier = MAE().train(), Classifier(ModelConfig().encoder(), 10).train()
    for found in (
        torch._dynamo.explain(lambda model, x: reconstruction_loss(*model(x)))(mae, images),
        torch._dynamo.explain(classification_loss)(classifier, images, labels),
    ):
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
        torch._dynamo.reset()


@pytest.mark.parametrize(
    ("flags", "vendor", "precision"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "GenuineIntel", "bf16"),
        ({"avx512_bf16": True}, "GenuineIntel", "fp32"),
        ({"avx512_bf16": True}, "AuthenticAMD", "bf16"),
        ({}, "AuthenticAMD", "fp32"),
    ],
)
def test_auto_is_the_precision_that_was_measured_to_be_faster(
    flags, vendor, precision, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    monkeypatch.setattr(kernels, "cpu_vendor", lambda: vendor)
    assert kernels.resolve_precision("auto", torch.device("cpu")) == precision
    assert kernels.resolve_precision("fp32", torch.device("cpu")) == "fp32"
