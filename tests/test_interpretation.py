"""Attention maps, features and probes of models of every size, on every device."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from maevit_course import MAE, Classifier, ImageData, InputError
from maevit_course.core import set_seed
from maevit_course.interpretation import (
    attention_distance,
    attention_maps,
    cka,
    error_by_mask,
    patch_features,
    probe_layers,
    rollout,
)
from maevit_course.pretraining import SMALL_MODEL

DECODER = {"decoder_width": 12, "decoder_depth": 2, "decoder_heads": 2}
SIZES = {
    "paper": {},
    "small": asdict(SMALL_MODEL),
    "post-norm": {"norm_first": False, "image_size": 12, "width": 24, "depth": 2, **DECODER},
}


def images_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("sizes", SIZES)
def test_attention_maps_are_those_of_torch(sizes, part, device):
    "With the same weights, PyTorch's attention returns the same maps for a quarter of the patches."
    set_seed(0)
    mae = MAE(**SIZES[sizes]).to(device)
    n = mae.config.n_patches
    keep = torch.stack([torch.randperm(n)[: n // 4] for _ in range(2)]).to(device)
    stack, inputs = getattr(mae, part), []
    hooks = [
        layer.attention.register_forward_hook(lambda module, x, out: inputs.append(x[0]))
        for layer in stack.layers
    ]
    maps = attention_maps(mae, images_of(2), keep, part)
    for hook in hooks:
        hook.remove()
    tokens = n // 4 + 1 if part == "encoder" else n + 1
    heads = stack.layers[0].attention.heads
    assert maps.shape == (len(stack.layers), 2, heads, tokens, tokens)
    for layer, x, found in zip(stack.layers, inputs, maps):
        torch_layer = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True, device=device)
        torch_layer.in_proj_weight.data = layer.attention.qkv.weight.data
        torch_layer.in_proj_bias.data = layer.attention.qkv.bias.data
        _, expected = torch_layer(x, x, x, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks for module in mae.modules())


@pytest.mark.parametrize("sizes", SIZES)
def test_every_tool_takes_every_model(sizes, device):
    set_seed(0)
    mae = MAE(**SIZES[sizes]).to(device)
    classifier = Classifier(mae.encoder, 2)
    images, depth = images_of(24), mae.config.depth
    labels = torch.arange(24) % 2
    data = ImageData(images, labels, ("even", "odd"))
    for model in (mae, classifier):
        maps = attention_maps(model, images[:2])
        assert attention_distance(maps).shape == maps.shape[:3]
        sums = rollout(maps).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)
        first, last = patch_features(model, images, 0), patch_features(model, images)
        assert first.shape == last.shape == (24, mae.config.n_patches, mae.config.width)
        assert cka(first.flatten(1), first.flatten(1)) == pytest.approx(1)
        for pool in ("mean", "dummy") if depth < 12 else ("mean",):
            accuracies = probe_layers(model, data[:16], data[16:], pool)
            assert {len(found) for found in accuracies.values()} == {depth + 2}
            assert all(0 <= value <= 1 for found in accuracies.values() for value in found)


def test_the_error_of_a_mask_is_the_error_of_its_patches(device):
    "Masking the last patches in reading order leaves the first ones visible."
    set_seed(0)
    mae = MAE(**asdict(SMALL_MODEL)).to(device).eval()
    n, images = mae.config.n_patches, images_of(3)
    order = torch.arange(n).float()
    found = error_by_mask(mae, images, [0.25, 0.5], order)
    for i, hidden in enumerate((n // 4, n // 2)):
        keep = torch.arange(n - hidden, device=device).expand(3, -1)
        with torch.no_grad():
            x = images.to(device) / 127.5 - 1
            noise = order.to(device).expand(3, -1)
            prediction, target, _ = mae(x, hidden / n, noise)
            same = mae.decoder(mae.encoder(target, keep), keep)
        torch.testing.assert_close(prediction, same, atol=1e-5, rtol=1e-4)
        error = (prediction - target).square().mean(-1)
        assert found["masked"][i] == pytest.approx(error[:, n - hidden :].mean().item(), rel=1e-4)
        assert found["visible"][i] == pytest.approx(error[:, : n - hidden].mean().item(), rel=1e-4)


def test_wrong_input_is_refused():
    mae = MAE(**asdict(SMALL_MODEL))
    classifier = Classifier(mae.encoder, 2)
    data = ImageData(images_of(4), torch.tensor([0, 1, 0, 1]), ("even", "odd"))
    for call, word in (
        (lambda: attention_maps(classifier, data.images, part="decoder"), "decoder"),
        (lambda: patch_features(mae, data.images, -1), "-1"),
        (lambda: patch_features(mae, data.images, 99), "99"),
        (lambda: probe_layers(mae, data, data, "all"), "'all'"),
        (lambda: error_by_mask(mae, data.images, [0.5], torch.rand(5)), "5"),
        (lambda: error_by_mask(mae, data.images, [1.0]), "1.0"),
        (lambda: attention_distance(torch.ones(4, 4)), "3 patches"),
        (lambda: cka(torch.ones(3, 2), torch.ones(2, 2)), "3, 2"),
        (lambda: cka(torch.ones(3, 2), torch.rand(3, 2)), "equal"),
    ):
        with pytest.raises(InputError, match=word):
            call()
