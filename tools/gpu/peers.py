"""The pre-training step without dropout, ours and that of Hugging Face, at the paper's size.

`transformers.ViTMAEForPreTraining` has no dropout, so ours has none here. Both steps are compiled
on a GPU and consist of forward pass, backward pass and fused AdamW, in bf16.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from maevit_course.benchmark import recipe_step
from maevit_course.models import ModelConfig
from maevit_course.pretraining import PRETRAIN_RECIPES

CONFIG = ModelConfig()
Step = Callable[[Tensor], Tensor]  # normalised images (B, 3, S, S) → loss


def our_step(device: str) -> Step:
    "Return our training step without dropout."
    recipe = PRETRAIN_RECIPES["paper"]
    plain = replace(recipe.model, dropout=0.0, attention_dropout=0.0)
    step = recipe_step(replace(recipe, model=plain), device)
    labels = torch.empty(0)  # which pre-training does not read
    return lambda images: step(images, labels)["loss"]


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


def hugging_face_step(device: str) -> Step:
    "Return a training step of Hugging Face's model."
    model = hugging_face().to(device).train()
    kind = torch.device(device).type
    forward = torch.compile(model) if kind == "cuda" else model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4, (0.9, 0.95), weight_decay=0.05, fused=True)

    def step(images: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16):
            loss = forward(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def all_steps(device: str) -> dict[str, Step]:
    "Return the steps by name; that of Hugging Face only where transformers is installed."
    steps = {"ours, no dropout": our_step(device)}
    if importlib.util.find_spec("transformers"):
        steps["hugging face, bf16, compiled"] = hugging_face_step(device)
    return steps


def seconds(step: Step, images: Tensor, steps: int) -> float:
    "Time some steps, with the transfer of the last loss, which waits for the device."
    began = time.perf_counter()
    for _ in range(steps):
        loss = step(images)
    loss.item()
    return time.perf_counter() - began
