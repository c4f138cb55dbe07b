"""Time ways to compute attention at the sizes of the paper's model, forward and backward.

    python3 tools/gpu/attention.py --device cuda

The profile of lesson 52 shows that the fused kernel takes two fifths of a training step, probably
because it was built for longer sequences. `flash`, `efficient` and `cudnn` are PyTorch's fused
kernels, of which the last rounds the dropout probability, so training does not use it;
`explicit` writes the scores to memory, and `padded` does so for a multiple of eight tokens.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from maevit_course.benchmark import calls_per_second

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]
#: Images, heads, tokens and width per head: encoder and decoder in pre-training, and fine-tuning.
SIZES = {
    "encoder": (1408, 3, 37, 64),
    "decoder": (1408, 3, 145, 64),
    "fine-tuning": (768, 3, 145, 64),
}


def fused(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    "Compute attention with one of PyTorch's fused kernels."
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)


def explicit(q: Tensor, k: Tensor, v: Tensor, p: float, tokens: int | None = None) -> Tensor:
    "Compute attention with two matrix products; `tokens` says how many keys are real."
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if tokens:
        added = torch.arange(k.shape[-2], device=k.device) >= tokens
        scores = scores.masked_fill(added, float("-inf"))
    return F.dropout(scores.softmax(-1, torch.float32), p).to(v.dtype) @ v


def padded(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    "Compute attention for a multiple of eight tokens, and drop the added ones."
    tokens = q.shape[-2]
    q, k, v = (F.pad(t, (0, 0, 0, -tokens % 8)) for t in (q, k, v))
    return explicit(q, k, v, p, tokens)[..., :tokens, :]


WAYS: dict[str, Attention] = {
    "flash": partial(fused, SDPBackend.FLASH_ATTENTION),
    "efficient": partial(fused, SDPBackend.EFFICIENT_ATTENTION),
    "cudnn": partial(fused, SDPBackend.CUDNN_ATTENTION),
    "explicit": explicit,
    "padded": padded,
}


def milliseconds(way: Attention, size: tuple[int, ...], p: float, device: torch.device) -> float:
    "Time a forward and a backward pass, after a check against the plain form without dropout."
    # the model's layout: heads next to width, in one tensor for q, k and v
    images, heads, tokens, width = size
    qkv = torch.randn(images, tokens, 3, heads, width, device=device, dtype=torch.bfloat16)
    q, k, v = (t.requires_grad_() for t in qkv.permute(2, 0, 3, 1, 4).unbind())
    few = [t[:8].float() for t in (q, k, v)]
    expected = (few[0] @ few[1].mT * width**-0.5).softmax(-1) @ few[2]
    found = way(q, k, v, 0.0)
    torch.testing.assert_close(found[:8].float(), expected, atol=0.03, rtol=0.03)
    gradient = torch.randn_like(found)

    def step() -> None:
        torch.autograd.grad(way(q, k, v, p), (q, k, v), gradient)

    return 1000 / calls_per_second(step, device, 0.3, 10)


def main() -> None:
    "Read the command line and print a line of JSON for each size and dropout rate."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="instead of the recipes' batch sizes")
    args = parser.parse_args()
    # the forms without a kernel of their own are fast only when they are compiled
    ways = {
        name: torch.compile(way, dynamic=False) if name in ("explicit", "padded") else way
        for name, way in WAYS.items()
    }
    for name, size in SIZES.items():
        for p in (0.1, 0.0):
            found: dict[str, float | str] = {}
            for way, function in ways.items():
                shape = (args.images or size[0], *size[1:])
                try:
                    found[way] = round(
                        milliseconds(function, shape, p, torch.device(args.device)), 4
                    )
                except (RuntimeError, AssertionError) as error:  # no such kernel, or a wrong result
                    found[way] = (str(error).splitlines() or [repr(error)])[0]
            print(json.dumps({"size": name, "dropout": p, "ms": found}), flush=True)


if __name__ == "__main__":
    main()
