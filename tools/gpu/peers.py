"""Compare our pre-training step with other implementations, at the paper's size.

    python3 tools/gpu/peers.py --device cuda --batch-size 1408

`torch` is an MAE of `nn.TransformerEncoder` layers with the paper's dropout. `hugging face` is
`transformers.ViTMAEForPreTraining` of the same sizes; it has no dropout and is left out where
transformers is not installed. Every step is forward pass, backward pass and fused AdamW, on the
same normalised images. The rounds of all steps are interleaved, so that a change of the machine's
speed affects all of them, and the median round counts.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from maevit_course.benchmark import paper_step, recipe_step
from maevit_course.loss import reconstruction_loss
from maevit_course.models import ModelConfig
from maevit_course.patches import patchify
from maevit_course.pretraining import PRETRAIN_RECIPES

CONFIG = ModelConfig()


class TorchMAE(nn.Module):
    "The paper's masked autoencoder, made of PyTorch's own transformer layers."

    def __init__(self):
        super().__init__()
        D, pixels = CONFIG.width, 3 * CONFIG.patch_size**2
        layer = nn.TransformerEncoderLayer(
            D, CONFIG.heads, int(CONFIG.mlp_ratio * D), batch_first=True, norm_first=True
        )
        self.embed = nn.Linear(pixels, D, bias=False)
        self.encoder = nn.TransformerEncoder(layer, CONFIG.depth, nn.LayerNorm(D), False)
        self.project = nn.Linear(D, D, bias=False)
        self.decoder = nn.TransformerEncoder(layer, CONFIG.decoder_depth, nn.LayerNorm(D), False)
        self.head = nn.Linear(D, pixels, bias=False)
        shape = (CONFIG.n_patches + 1, D)
        self.positions = nn.Parameter(0.02 * torch.randn(shape))
        self.decoder_positions = nn.Parameter(0.02 * torch.randn(shape))
        self.mask = nn.Parameter(0.02 * torch.randn(D))

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, S, S) → loss
        target = patchify(images, CONFIG.patch_size)  # (B, N, P)
        B, N, _ = target.shape
        order = torch.rand(B, N, device=images.device).argsort(1)
        dummy = order.new_full((B, 1), N)
        kept = torch.cat([order[:, : N // 4], dummy], 1)[..., None]  # (B, K+1, 1)
        tokens = self.embed(nn.functional.pad(target, (0, 0, 0, 1))) + self.positions
        visible = tokens.gather(1, kept.expand(-1, -1, tokens.shape[2]))
        encoded = self.project(self.encoder(visible))  # (B, K+1, D)
        full = self.mask.to(encoded.dtype).expand(B, N + 1, -1)
        full = full.scatter(1, kept.expand(-1, -1, full.shape[2]), encoded)
        prediction = self.head(self.decoder(full + self.decoder_positions))[:, :N]
        masked = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, : N // 4], False)
        return reconstruction_loss(prediction.float(), target, masked)["loss"]


def hugging_face() -> nn.Module:
    "Return Hugging Face's masked autoencoder of the same sizes."
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, decoder_width = CONFIG.width, CONFIG.decoder_width
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=CONFIG.depth,
            num_attention_heads=CONFIG.heads,
            intermediate_size=int(CONFIG.mlp_ratio * width),
            image_size=CONFIG.image_size,
            patch_size=CONFIG.patch_size,
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=CONFIG.decoder_depth,
            decoder_num_attention_heads=CONFIG.decoder_heads,
            decoder_intermediate_size=int(CONFIG.mlp_ratio * decoder_width),
        )
    )


Step = Callable[[Tensor], Tensor]


def peer_step(
    model: nn.Module,  # returns the loss, or an object with it
    device: str,
    bf16: bool,
    compiled: bool,
) -> Step:
    "Return a training step: images (B, 3, S, S) → loss."
    model = model.to(device).train()
    forward = torch.compile(model) if compiled else model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4, (0.9, 0.95), weight_decay=0.05, fused=True)

    def step(images: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            result = forward(images)
        loss = result if isinstance(result, Tensor) else result.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def all_steps(device: str) -> dict[str, Step]:
    "Return our step and its peers; compiled ones only on a GPU."
    steps = {"ours": paper_step(device)}
    models = {"torch": TorchMAE}
    if importlib.util.find_spec("transformers"):
        models["hugging face"] = hugging_face
    for name, build in models.items():
        steps[f"{name}, fp32"] = peer_step(build(), device, False, False)
        steps[f"{name}, bf16"] = peer_step(build(), device, True, False)
        if torch.device(device).type == "cuda":
            steps[f"{name}, bf16, compiled"] = peer_step(build(), device, True, True)
    return steps


def plain_steps(device: str) -> dict[str, Step]:
    "Return the fastest steps without dropout: ours and that of Hugging Face."
    recipe = PRETRAIN_RECIPES["paper"]
    plain = replace(recipe, model=replace(recipe.model, dropout=0.0, attention_dropout=0.0))
    labels = torch.empty(0)  # which pre-training does not read
    steps = {"ours, no dropout": partial(loss_of, recipe_step(plain, device), labels)}
    if importlib.util.find_spec("transformers"):
        cuda = torch.device(device).type == "cuda"
        steps["hugging face, bf16, compiled"] = peer_step(hugging_face(), device, True, cuda)
    return steps


def loss_of(step: Callable[[Tensor, Tensor], dict], labels: Tensor, images: Tensor) -> Tensor:
    "Return the loss of a step of ours."
    return step(images, labels)["loss"]


def seconds(step: Step, images: Tensor, steps: int) -> float:
    "Time some steps, with the transfer of the last loss, which waits for the device."
    began = time.perf_counter()
    for _ in range(steps):
        loss = step(images)
    loss.item()
    return time.perf_counter() - began


def main() -> None:
    "Read the command line and print the images per second of each step as JSON."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=1408)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    args = parser.parse_args()
    size = (args.batch_size, 3, CONFIG.image_size, CONFIG.image_size)
    images = torch.rand(size, device=args.device) * 2 - 1
    steps = all_steps(args.device)
    for step in steps.values():
        seconds(step, images, 2)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, images, args.steps))
    rates = {
        name: round(args.steps * args.batch_size / statistics.median(values), 1)
        for name, values in times.items()
    }
    print(json.dumps({"device": args.device, "batch": args.batch_size, "images_per_s": rates}))


if __name__ == "__main__":
    main()
