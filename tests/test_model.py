"""The model: sizes, costs, equivalences and what it may see, beyond what the lessons check."""

from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maevit_course.core import InputError, set_seed
from maevit_course.data import load_data
from maevit_course.encoder import Encoder
from maevit_course.kernels import Dropout
from maevit_course.loss import reconstruction_loss
from maevit_course.masking import random_masking
from maevit_course.models import MAE, Classifier, ModelConfig, load_model
from maevit_course.patches import patchify, unpatchify
from maevit_course.pretraining import PRETRAIN_RECIPES
from maevit_course.transformer import TransformerLayer

SMALL_MODEL = PRETRAIN_RECIPES["small"].model


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_the_papers():
    assert count(Encoder()) == 3_634_560
    assert count(Classifier(Encoder(), 10)) == 3_636_490
    assert count(MAE()) == 4_856_256


def test_macs_are_0616_g_and_the_papers_026_g_leave_attention_out():
    classifier = Classifier(Encoder(), 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier(torch.zeros(1, 3, 36, 36))
    macs = counter.get_total_flops() / 2
    attention = 12 * (145 * 192 * 192 * 4 + 2 * 145 * 145 * 192)
    assert macs == pytest.approx(0.616e9, rel=0.001)
    assert macs - attention == pytest.approx(0.263e9, rel=0.002)


@pytest.mark.parametrize("norm_first", [True, False])
def test_stack_of_layers_equals_torch(norm_first):
    "Three layers, against nn.TransformerEncoder with the same weights and dropout off."
    set_seed(0)
    ours = nn.Sequential(
        *[
            TransformerLayer(48, 3, norm_first=norm_first, dropout=0, attention_dropout=0)
            for _ in range(3)
        ]
    )
    layer = nn.TransformerEncoderLayer(
        48, 3, 96, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    theirs = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    for a, b in zip(ours, theirs.layers):
        for x, y in (
            (a.attention.out, b.self_attn.out_proj),
            (a.up, b.linear1),
            (a.down, b.linear2),
            (a.norm1, b.norm1),
            (a.norm2, b.norm2),
        ):
            y.load_state_dict(x.state_dict())
        b.self_attn.in_proj_weight.data.copy_(a.attention.qkv.weight)
        b.self_attn.in_proj_bias.data.copy_(a.attention.qkv.bias)
    x = torch.randn(4, 10, 48)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {
            "image_size": 32,
            "patch_size": 4,
            "width": 48,
            "decoder_width": 24,
            "decoder_heads": 2,
            "norm_first": False,
        },
    ],
)
def test_a_masked_pixel_changes_nothing(sizes):
    mae = MAE(**sizes).eval()
    c = mae.config
    images, noise = torch.randn(2, 3, c.image_size, c.image_size), torch.rand(2, c.n_patches)
    with torch.no_grad():
        prediction, target, masked = mae(images, noise=noise)
        absurd = unpatchify(torch.where(masked[..., None], torch.tensor(1e9), target), c.patch_size)
        assert torch.equal(mae(absurd, noise=noise)[0], prediction)


def test_masking_round_trip():
    patches = torch.randn(5, 144, 27)
    keep, masked = random_masking(5, 144)
    index = keep[..., None].expand(-1, -1, 27)
    back = torch.zeros_like(patches).scatter(1, index, patches.gather(1, index))
    assert torch.equal(back, patches * ~masked[..., None])


def test_loss_at_the_start_on_uniform_noise():
    "1.1 · (E[x²] + 1/3), and E[x²] = 1/3 for uniform pixels; mean over several initialisations."
    losses = []
    for seed in range(12):
        set_seed(seed)
        images = torch.rand(16, 3, 36, 36) * 2 - 1
        with torch.no_grad():
            losses.append(reconstruction_loss(*MAE().eval()(images))["loss"])
    losses = torch.stack(losses)
    assert abs(losses.mean() - 1.1 * 2 / 3) < 4 * losses.std() / len(losses) ** 0.5


def test_loss_at_the_start_on_cifar(cifar10):
    "The paper's Figure 3 begins at 0.63; 0.6285 is expected after its crop."
    from maevit_course.augmentation import RandomResizedCropFlip
    from maevit_course.data import normalize

    losses = []
    for seed in range(16):
        set_seed(seed)
        images = normalize(RandomResizedCropFlip(36)(cifar10.images[seed * 128 : (seed + 1) * 128]))
        with torch.no_grad():
            losses.append(reconstruction_loss(*MAE().eval()(images))["loss"])
    losses = torch.stack(losses)
    assert abs(losses.mean() - 0.6285) < 4 * losses.std() / len(losses) ** 0.5
    assert 0.57 < losses.mean() < 0.69


def test_dropout_is_dropout():
    "Unbiased, of the right rate, its own draw each time, and its gradient is its mask."
    x = torch.ones(1_000_003, requires_grad=True)
    drop = Dropout(0.25)
    y = drop(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert y.detach().unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.0022)
    assert not torch.equal(drop(x), y)
    assert drop.eval()(x) is x and isinstance(drop, nn.Dropout)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"patch_size": 5}, "patch_size 5"),
        ({"heads": 5}, "heads 5"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_sizes_are_named(wrong, word):
    with pytest.raises(InputError, match=word):
        ModelConfig(**wrong)


def test_patches_of_every_size_come_back():
    for side, patch in ((36, 3), (32, 4), (8, 8), (6, 1)):
        images = torch.randn(2, 3, side, side)
        assert torch.equal(unpatchify(patchify(images, patch), patch), images)


@pytest.mark.parametrize("sides", [(32, 32), (36, 35)])
def test_patches_that_do_not_fill_an_image_are_refused(sides):
    with pytest.raises(InputError, match=f"{sides[0]}×{sides[1]}"):
        patchify(torch.zeros(1, 3, *sides), 3)
    for patches, size in ((torch.zeros(1, 145, 27), 3), (torch.zeros(1, 144, 27), 2)):
        with pytest.raises(InputError, match=f"{patches.shape[1]} patches of 27 numbers"):
            unpatchify(patches, size)


class PlainMAE:
    """A masked autoencoder written independently: shuffle, encode, unshuffle, decode.

    It follows the published description (He et al. 2021, Section 3, and Tan 2024, Section 2) with
    PyTorch's own layers, and takes its weights from one of ours.
    """

    def __init__(self, mae):
        self.config, self.weights = mae.config, mae.state_dict()
        c = mae.config
        self.encoder = self.stack("encoder", c.width, c.heads, c.depth)
        self.decoder = self.stack("decoder", c.decoder_width, c.decoder_heads, c.decoder_depth)

    def stack(self, part, width, heads, depth):
        hidden = int(width * self.config.mlp_ratio)
        options = {"dropout": 0.0, "batch_first": True, "norm_first": self.config.norm_first}
        layers = [nn.TransformerEncoderLayer(width, heads, hidden, **options) for _ in range(depth)]
        renamed = {
            "self_attn.in_proj_": "attention.qkv.",
            "self_attn.out_proj.": "attention.out.",
            "linear1.": "up.",
            "linear2.": "down.",
        }
        for i, layer in enumerate(layers):
            state = {}
            for name in layer.state_dict():
                ours = name
                for theirs, mine in renamed.items():
                    ours = ours.replace(theirs, mine)
                state[name] = self.weights[f"{part}.layers.{i}.{ours}"]
            layer.load_state_dict(state)
        norm = nn.LayerNorm(width)
        norm.weight.data = self.weights[f"{part}.norm.weight"]
        norm.bias.data = self.weights[f"{part}.norm.bias"]
        return nn.Sequential(*layers, norm)

    def __call__(self, images, noise, mask_ratio=0.75):
        B, N, p, w = len(images), self.config.n_patches, self.config.patch_size, self.weights
        patches = images.unfold(2, p, p).unfold(3, p, p)  # (B, 3, rows, columns, p, p)
        patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(B, N, -1)
        shuffle = noise.argsort(1)
        kept = shuffle[:, : N - int(N * mask_ratio)]
        rows = torch.arange(B)[:, None]
        tokens = patches[rows, kept] @ w["encoder.embed.weight"].T + w["encoder.positions"][kept]
        dummy = w["encoder.positions"][-1].expand(
            B, 1, -1
        )  # a patch of zeros, embedded without bias
        z = self.encoder(torch.cat([tokens, dummy], 1)) @ w["encoder.project.weight"].T
        if "decoder.adapt.weight" in w:
            z = z @ w["decoder.adapt.weight"].T
        masks = w["decoder.mask_embedding"].expand(B, N - kept.shape[1], -1)
        shuffled = torch.cat([z[:, :-1], masks], 1)
        tokens = torch.cat([shuffled[rows, shuffle.argsort(1)], z[:, -1:]], 1)
        output = self.decoder(tokens + w["decoder.positions"])[:, :-1] @ w["decoder.head.weight"].T
        hidden = torch.ones(B, N).scatter(1, kept, 0)
        error = (output - patches).square().mean(-1)
        masked = (error * hidden).sum() / hidden.sum()
        return output, masked + 0.1 * (error * (1 - hidden)).sum() / (1 - hidden).sum()


SIZES = {
    "paper": {},
    "small": asdict(SMALL_MODEL),
    "post-norm": {"norm_first": False, "depth": 2, "decoder_depth": 1},
}


@pytest.mark.parametrize("sizes", SIZES)
def test_the_model_is_the_masked_autoencoder_of_the_papers(sizes):
    "Every predicted pixel and the loss equal those of an independent implementation."
    set_seed(0)
    mae = MAE(**SIZES[sizes]).eval()
    c = mae.config
    images, noise = torch.randn(3, 3, c.image_size, c.image_size), torch.rand(3, c.n_patches)
    with torch.no_grad():
        prediction, target, masked = mae(images, noise=noise)
        output, loss = PlainMAE(mae)(images, noise)
    torch.testing.assert_close(prediction, output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reconstruction_loss(prediction, target, masked)["loss"], loss)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_gradient_reaches_every_parameter(sizes):
    set_seed(0)
    mae = MAE(**SIZES[sizes])
    c = mae.config
    images = torch.randn(4, 3, c.image_size, c.image_size)
    reconstruction_loss(*mae(images))["loss"].backward()
    assert [n for n, p in mae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert mae.encoder.positions.grad[-1].any() and mae.decoder.positions.grad[-1].any()  # dummy
    classifier = Classifier(mae.encoder, 10)
    classifier.zero_grad()
    classifier(images).square().sum().backward()
    for name, p in classifier.named_parameters():
        assert p.grad is not None and p.grad.any(), name


@pytest.mark.parametrize("sizes", [*SIZES, "odd"])
def test_a_classifier_knows_the_sizes_of_its_encoder(sizes):
    odd = {"image_size": 8, "patch_size": 2, "width": 30, "depth": 1, "mlp_ratio": 1.7}
    config = ModelConfig(**SIZES.get(sizes, odd))
    names = ("image_size", "patch_size", "width", "depth", "heads", "norm_first", "dropout")
    classifier = Classifier(config.encoder(), ("cat", "dog"))
    assert all(getattr(classifier.config, name) == getattr(config, name) for name in names)
    state = classifier.state_dict()
    Classifier(classifier.config.encoder(), 2).load_state_dict(state)


def test_models_return_from_a_file_as_they_were(tmp_path):
    set_seed(0)
    mae, classifier = MAE(SMALL_MODEL), Classifier(SMALL_MODEL.encoder(), ("cat", "dog", "cow"))
    for model in (mae, classifier):
        path = tmp_path / f"{model.kind}.safetensors"
        model.save_pretrained(path)
        again = type(model).from_pretrained(path)
        assert again.fingerprint() == model.fingerprint() and again.config == model.config
        assert not again.training
    assert again.classes == ("cat", "dog", "cow")
    with pytest.raises(InputError, match="holds classifier weights"):
        MAE.from_pretrained(path)


def test_a_prediction_is_the_most_probable_class_of_the_logits():
    set_seed(0)
    data = load_data("shapes", limit=8)[0]
    classifier = Classifier(SMALL_MODEL.encoder(), data.classes)
    logits = classifier.predict_logits(data.images)
    assert classifier.predict(data.images) == [data.classes[c] for c in logits.argmax(1)]
    torch.testing.assert_close(classifier.predict_proba(data.images), logits.softmax(1))
    exact, one = (
        classifier.predict_logits(images, precision="fp32")
        for images in (data.images, data.images[3])
    )
    torch.testing.assert_close(one, exact[3:4])


def test_positions_are_interpolated_to_another_image_size():
    "A smooth field of positions is the same smooth field on a finer grid; the dummy keeps its own."
    mae, larger = (MAE.from_pretrained("c10", size) for size in (None, 64))
    assert larger.config.image_size == 64 and larger.encoder.positions.shape == (257, 128)
    for part in ("encoder", "decoder"):
        old, new = (getattr(m, part).positions for m in (mae, larger))
        assert torch.equal(old[-1], new[-1])
        coarse = nn.functional.avg_pool2d(new[:-1].T.reshape(1, -1, 16, 16), 2)
        error = (coarse.flatten(2)[0].T - old[:-1]).square().mean() / old[:-1].var()
        assert error < 0.1
    same = load_model("c10", image_size=32)
    assert same.fingerprint() == mae.fingerprint()
    with pytest.raises(InputError, match="multiple of patch_size"):
        load_model("c10", image_size=33)
