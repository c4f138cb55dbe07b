"""Check and time ways to compute attention at the sizes of the paper's model.

    python3 tools/gpu/attention.py --device cuda

`ours` is the library's own kernel for short sequences, `pytorch` what PyTorch chooses, and
`efficient` another of its fused kernels. `--tune` tries launch options for both passes of our
kernel and prints the fastest.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from maevit_course import short_attention
from maevit_course.benchmark import calls_per_second
from maevit_course.kernels import configure_backend

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
#: Images, heads, tokens and width per head: encoder and decoder in pre-training, and fine-tuning.
SIZES = {
    "encoder": (1408, 3, 37, 64),
    "decoder": (1408, 3, 145, 64),
    "fine-tuning": (768, 3, 145, 64),
}


def plain(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    "Compute attention with the kernel that PyTorch chooses."
    return F.scaled_dot_product_attention(q, k, v, dropout_p=p)


def efficient(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    "Compute attention with PyTorch's memory-efficient kernel."
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)


WAYS: dict[str, Attention] = {
    "ours": short_attention.short_attention,
    "pytorch": plain,
    "efficient": efficient,
}


def tensors(size: tuple[int, ...], device: torch.device) -> list[Tensor]:
    "Return random queries, keys and values in the model's layout, as slices of one tensor."
    images, heads, tokens, width = size
    qkv = torch.randn(images, tokens, 3, heads, width, device=device, dtype=torch.bfloat16)
    return [t.requires_grad_() for t in qkv.permute(2, 0, 3, 1, 4).unbind()]


def check(way: Attention, q: Tensor, k: Tensor, v: Tensor) -> None:
    "Compare the outputs and gradients for some images with the plain form, without dropout."
    few = [t[:8].detach().requires_grad_() for t in (q, k, v)]
    exact = [t.detach().float().requires_grad_() for t in few]
    found = way(*few, 0.0)
    expected = (exact[0] @ exact[1].mT * q.shape[-1] ** -0.5).softmax(-1) @ exact[2]
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    gradient = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, few, gradient),
        torch.autograd.grad(expected, exact, gradient.float()),
    )
    for one, other in pairs:
        torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0.05)


def milliseconds(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    "Time some work that the device does."
    return round(1000 / calls_per_second(work, device, seconds, 10), 4)


def time_way(way: Attention, size: tuple[int, ...], p: float, device: torch.device) -> float:
    "Check a way, and time a forward and a backward pass."
    q, k, v = tensors(size, device)
    check(way, q, k, v)
    gradient = torch.randn_like(way(q, k, v, p))
    step = lambda: torch.autograd.grad(way(q, k, v, p), (q, k, v), gradient)
    return milliseconds(step, device, 0.3)


def choices(tokens: int) -> Iterator[dict[str, int]]:
    "Yield launch options to try."
    blocks = (64,) if tokens <= 64 else (32, 64, 128)
    for block, warps, stages in itertools.product(blocks, (2, 4, 8), (1, 2, 3)):
        if tokens > 64 or stages == 1:
            yield {"BLOCK": block, "num_warps": warps, "num_stages": stages}


def tune(size: tuple[int, ...], p: float, device: torch.device) -> None:
    "Print the time of each pass of our kernel for each choice of the launch options."
    q, k, v = (t.detach() for t in tensors(size, device))
    seed = torch.zeros(1, dtype=torch.int32, device=device)
    out, log_sums = short_attention.attend(q, k, v, seed, p)
    gradient = torch.randn_like(out)
    passes = {
        "forward": lambda: short_attention.attend(q, k, v, seed, p),
        "backward": lambda: short_attention.attend_backward(
            gradient, q, k, v, out, log_sums, seed, p
        ),
    }
    for name, work in passes.items():
        found = {}
        for options in choices(size[2]):
            with mock.patch.object(
                short_attention, "launch_options", return_value=(options, options)
            ):
                text = "/".join(map(str, options.values()))
                try:
                    found[text] = milliseconds(work, device, 0.05)
                except Exception as error:  # too many rows for the fast memory, for example
                    found[text] = float("inf")
                    print(text, str(error).splitlines()[:1])
        best = dict(sorted(found.items(), key=lambda item: item[1])[:6])
        print(json.dumps({"tune": size, "pass": name, "ms": best}), flush=True)


def main() -> None:
    "Read the command line and print lines of JSON."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="instead of the recipes' batch sizes")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.1, 0.0])
    parser.add_argument("--tune", action="store_true", help="try launch options of our kernel")
    args = parser.parse_args()
    device = torch.device(args.device)
    configure_backend(device)
    ways = {name: torch.compile(WAYS[name], dynamic=False) for name in args.ways}
    for name in args.sizes:
        size = (args.images or SIZES[name][0], *SIZES[name][1:])
        for p in args.dropout:
            found: dict[str, float | str] = {}
            for way, function in ways.items():
                try:
                    found[way] = time_way(function, size, p, device)
                except (RuntimeError, AssertionError) as error:  # no such kernel, or a wrong result
                    found[way] = (str(error).splitlines() or [repr(error)])[0]
            print(json.dumps({"size": name, "dropout": p, "ms": found}), flush=True)
        if args.tune:
            tune(size, args.dropout[0], device)


if __name__ == "__main__":
    main()
