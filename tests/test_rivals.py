"""The other models of Table 3: sizes, independent references, one step of training, bad input."""

import itertools
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from maevit_course.cli import main
from maevit_course.core import InputError, set_seed
from maevit_course.data import load_data, preprocess
from maevit_course.finetuning import FinetuneRecipe, finetune
from maevit_course.models import MAE, ModelConfig, load_model
from maevit_course.paper.experiments import PLANS, has_record, reproduce, rival_runs, run_name
from maevit_course.paper.rivals import (
    RIVALS,
    BasicBlock,
    CompactLayer,
    PreActivationBlock,
    RivalRecipe,
    SequencePool,
    cct,
    convolutional_tokenizer,
    load_rival,
    resnet,
    shortcut,
)
from maevit_course.paper.tables import PUBLISHED, table_3
from maevit_course.progress import RunStopped, StopRequest
from maevit_course.runs import RunRecord
from maevit_course.training import RunOptions

SIZE = ModelConfig(image_size=32, patch_size=4)

PARAMETERS = {
    "ResNet56": 853_018,
    "ResNet110": 1_727_962,
    "ResNet1k-v2": 10_327_706,
    "ViT-12/16": 85_631_242,
    "ViT-Lite-7/16": 3_885_834,
    "ViT-Lite-7/8": 3_741_450,
    "ViT-Lite-7/4": 3_716_874,
    "CVT-7/8": 3_741_195,
    "CVT-7/4": 3_716_619,
    "CCT-2/3×2": 283_723,
    "CCT-7/3×2": 3_853_259,
    "CCT-7/3×1": 3_760_139,
}


def test_the_dictionary_holds_every_other_model_of_table_3():
    rows = {row.model for row in PUBLISHED if row.source == "Tan 2024, Table 3"}
    assert set(RIVALS) == {name for name in rows if "Mae" not in name} | {"CCT-7/3×1"}
    assert list(RIVALS) == list(PARAMETERS)


@pytest.mark.parametrize("name", RIVALS)
def test_parameters_have_the_printed_digits(name):
    with torch.device("meta"):  # nothing is stored, so that the large models are quick to build
        model = RIVALS[name](10)
    n = sum(p.numel() for p in model.parameters())
    printed = {row.model: row.parameters for row in PUBLISHED}
    assert n == PARAMETERS[name]
    assert f"{n / 1e6:.2f}" == f"{printed.get(name, 3.76):.2f}"


@pytest.mark.parametrize("name", RIVALS)
def test_a_step_lowers_the_loss(name):
    "One step down the gradient, small enough for the slope to predict a fall of 0.01."
    set_seed(0)
    model, images, labels = RIVALS[name](100), torch.randn(2, 3, 32, 32), torch.tensor([3, 99])

    def loss():
        set_seed(1)  # the same dropout and the same skipped halves
        logits = model(images)
        assert logits.shape == (2, 100)
        return F.cross_entropy(logits, labels)

    before = loss()
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        slope = sum(p.grad.square().sum() for p in model.parameters())
        for p in model.parameters():
            p -= 0.01 / slope * p.grad
        assert loss() < before


class PaddingShortcut(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)


def as_torchvision(block):
    halves = PaddingShortcut(block.outputs) if block.stride == 2 else None
    inputs = block.conv1.in_channels
    theirs = TorchvisionBlock(inputs, block.outputs, block.stride, downsample=halves)
    theirs.load_state_dict({k.replace("norm", "bn"): v for k, v in block.state_dict().items()})
    return theirs


@pytest.mark.parametrize("training", [True, False])
def test_resnet_equals_torchvisions_blocks(training):
    "A whole network of 20 layers, in training with the batch's own statistics, and in evaluation."
    set_seed(0)
    ours = resnet(10, depth=20)
    blocks = [as_torchvision(m) if isinstance(m, BasicBlock) else m for m in ours]
    assert sum(isinstance(m, TorchvisionBlock) for m in blocks) == 9
    theirs, x = nn.Sequential(*blocks), torch.randn(4, 3, 32, 32)
    ours.train(training), theirs.train(training)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 64, 1), (64, 128, 2), (64, 64, 1)])
def test_pre_activation_block_equals_its_formula(inputs, outputs, stride):
    set_seed(0)
    block, x = PreActivationBlock(inputs, outputs, stride).eval(), torch.randn(2, inputs, 8, 8)
    for norm in (block.norm1, block.norm2, block.norm3):
        for values in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(values)

    def activate(norm, y):
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        y = (y - norm.running_mean[:, None, None]) * scale[:, None, None]
        return (y + norm.bias[:, None, None]).clamp(min=0)

    first = activate(block.norm1, x)
    y = F.conv2d(first, block.conv1.weight, stride=stride)
    y = F.conv2d(activate(block.norm2, y), block.conv2.weight, padding=1)
    y = F.conv2d(activate(block.norm3, y), block.conv3.weight)
    kept = F.conv2d(first, block.shortcut.weight, stride=stride) if block.shortcut else x
    assert (block.shortcut is None) == (inputs == outputs)
    torch.testing.assert_close(block(x), kept + y, atol=1e-4, rtol=1e-4)


def test_compact_layer_equals_torchs_but_for_the_second_norm():
    "PyTorch returns y + MLP(norm2(y)); with its MLP switched off, y. Ours adds to norm2(y)."
    set_seed(0)
    layer, x = CompactLayer(48, 3, 2.0, drop_path=0.5).eval(), torch.randn(4, 10, 48)
    for norm in (layer.norm1, layer.norm2):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    theirs = nn.TransformerEncoderLayer(
        48, 3, 96, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": layer.attention.qkv.weight,
            "self_attn.in_proj_bias": torch.zeros(3 * 48),
            **{
                f"{name}.{kind}": getattr(part, kind)
                for name, part in {
                    "self_attn.out_proj": layer.attention.out,
                    "linear1": layer.up,
                    "linear2": layer.down,
                    "norm1": layer.norm1,
                    "norm2": layer.norm2,
                }.items()
                for kind in ("weight", "bias")
            },
        }
    )
    prenorm = theirs(x)
    nn.init.zeros_(theirs.linear2.weight), nn.init.zeros_(theirs.linear2.bias)
    y = theirs(x)
    torch.testing.assert_close(layer(x), prenorm - y + layer.norm2(y), atol=1e-5, rtol=1e-5)


def test_a_transformer_may_have_one_layer():
    "Stochastic depth grows from layer to layer; a single layer has none."
    model = cct(10, n_convolutions=2, depth=1)
    assert [layer.drop_path.p for layer in model.layers] == [0.0]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_stochastic_depth_skips_both_halves_of_single_images():
    "With a probability of a half, some images of a batch keep norm2(x), and others do not."
    set_seed(0)
    layer, x = CompactLayer(48, 3, 2.0, drop_path=0.5), torch.randn(64, 10, 48)
    layer.attention.drop.p = 0.0
    skipped = (layer(x) - layer.norm2(x)).abs().amax(dim=(1, 2)) < 1e-6
    assert 6 <= skipped.sum() <= 28  # 16 are expected, with a standard deviation of 3.5
    assert not torch.isclose(layer.eval()(x), layer.norm2(x)).all(dim=2).any()


@pytest.mark.parametrize(("n", "tokens"), [(1, 256), (2, 64)])
def test_convolutional_tokenizer_gives_tokens_in_reading_order(n, tokens):
    "A bright spot in one corner changes the tokens of this corner and no others."
    set_seed(0)
    tokenizer, images = convolutional_tokenizer(24, n), torch.rand(1, 3, 32, 32)
    spot = images.clone()
    spot[:, :, 0, 31] = 9.0
    before, after = tokenizer(images), tokenizer(spot)
    side = round(tokens**0.5)
    assert before.shape == (1, tokens, 24)
    changed = (before != after).any(dim=2)[0].reshape(side, side)
    assert changed[0, -1] and not changed[2:].any() and not changed[:, :-2].any()


def test_sequence_pool_is_a_weighted_mean():
    set_seed(0)
    pool, x = SequencePool(6), torch.randn(3, 5, 6)
    for tokens, pooled in zip(x, pool(x)):
        weights = torch.tensor([pool.score(token).exp().item() for token in tokens])
        mean = sum(w / weights.sum() * token for w, token in zip(weights, tokens))
        torch.testing.assert_close(pooled, mean)


def test_shortcut_keeps_pixels_and_adds_zeros():
    x = torch.randn(2, 3, 8, 8)
    y = shortcut(x, 5, 2)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2]) and not y[:, 3:].any()
    assert torch.equal(shortcut(x, 3, 1), x)


@pytest.mark.parametrize(
    "name", ["ResNet56", "ResNet1k-v2", "ViT-Lite-7/4", "CVT-7/8", "CCT-7/3×1"]
)
@pytest.mark.parametrize("n_classes", [0, -1, 2.5])
def test_a_wrong_number_of_classes_is_refused(name, n_classes):
    with pytest.raises(InputError, match=f"n_classes is {n_classes} but must be a positive"):
        RIVALS[name](n_classes=n_classes)


@pytest.mark.parametrize("name", ["ViT-Lite-7/4", "CVT-7/8", "CCT-2/3×2"])
@pytest.mark.parametrize("shape", [(3, 36, 36), (1, 32, 32), (3, 32, 48)])
def test_images_of_another_shape_are_refused(name, shape):
    with pytest.raises(InputError, match=r"takes images of the shape \(3, 32, 32\), not"):
        RIVALS[name](10)(torch.zeros(2, *shape))


def test_a_rival_predicts_whole_images_and_refuses_what_it_cannot_do():
    train, _ = load_data("shapes", limit=8)
    recipe = RivalRecipe(rival="CVT-7/8", model=SIZE)
    rival = recipe.build(10).train()
    logits = rival.predict_logits(train.images, precision="fp32")
    assert not rival.training
    with torch.no_grad():
        expected = rival.network(preprocess(train.images, 32))
    torch.testing.assert_close(logits, expected)
    with pytest.raises(InputError, match="rival is 'VGG' but must be one of ResNet56"):
        RivalRecipe(rival="VGG")
    with pytest.raises(InputError, match=r"patch_dropout is 0\.5 but must be 0\.0 for a rival"):
        RivalRecipe(rival="ResNet56", patch_dropout=0.5)
    with pytest.raises(InputError, match="CVT-7/8 cannot start from the weights"):
        recipe.task(train, MAE(SIZE))


def test_a_plan_trains_a_rival_keeps_its_record_and_lists_it_in_table_3(tmp_path):
    train, test = load_data("shapes", limit=64)
    recipe = FinetuneRecipe(epochs=2, warmup_epochs=1, batch_size=16, precision="fp32")
    plan = replace(
        PLANS["paper"], finetune=recipe, labels={"c10": 4}, rivals=("CCT-2/3×2", "ResNet56")
    )
    runs = rival_runs(plan)
    assert [run.name for run in runs] == ["cct-2-3x2-to-c10", "resnet56-to-c10"]
    options = RunOptions(device="cpu", progress=False)
    reproduce(runs, {"c10": (train, test)}, tmp_path / "runs", tmp_path / "results", options)
    records = {run.name: RunRecord.load(tmp_path / "results" / run.name) for run in runs}
    for run in runs:
        assert has_record(run, tmp_path / "results", {"c10": (train, test)})
        record = records[run.name]
        assert record.config["data"]["images"] == 4 * len(train.classes)
        assert record.config["recipe"]["layer_decay"] == 1
        assert record.measured() == pytest.approx(record.history[-1]["test_accuracy"], abs=1e-5)
        with pytest.raises(InputError, match="holds rival weights"):
            load_model(tmp_path / "runs" / run.name)
    table = table_3(records)
    for name in plan.rivals:
        (row,) = (line for line in table.splitlines() if f"{name} from scratch" in line)
        accuracy = records[run_name(name, "c10")].measured()
        assert f"| {100 * accuracy:.2f} | – |" in row


def test_the_paper_plan_ends_with_all_rivals_on_both_data_sets():
    plan = PLANS["paper"]
    assert set(plan.rivals) == set(RIVALS) and len(plan.rivals) == len(RIVALS)
    assert plan.rivals[:3] == ("ResNet56", "ViT-Lite-7/4", "CCT-7/3×2")
    runs = plan.runs()[-2 * len(RIVALS) :]
    assert [(run.data, run.recipe.rival) for run in runs] == [
        (data, name) for name in plan.rivals for data in ("c10", "c100")
    ]
    assert not any(isinstance(run.recipe, RivalRecipe) for run in plan.runs()[: -len(runs)])
    scratch = next(run for run in PLANS["paper"].runs() if run.name == "scratch-to-c10")
    for run in runs:
        own = {"rival": run.recipe.rival, "model": run.recipe.model}
        assert vars(run.recipe) == vars(scratch.recipe) | own
        assert run.recipe.model.image_size == 32 and run.start is None


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_stopped_run_of_a_convolutional_rival_resumes_to_the_same_bits(tmp_path):
    "Its weights have the channels last, so the optimizer's state must keep that layout too."
    train, test = load_data("shapes", limit=64)
    recipe = RivalRecipe(
        rival="CCT-2/3×2", epochs=2, warmup_epochs=1, batch_size=16, precision="fp32", model=SIZE
    )
    options = RunOptions(device="cpu", progress=False, checkpoint_minutes=0, resume=True)
    whole = finetune(train, test[:16], recipe, tmp_path / "whole", options=options)
    answers = itertools.chain([False, False, True], itertools.repeat(True))
    with pytest.raises(RunStopped), mock.patch.object(StopRequest, "__bool__", side_effect=answers):
        finetune(train, test[:16], recipe, tmp_path / "parts", options=options)
    resumed = finetune(train, test[:16], recipe, tmp_path / "parts", options=options)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_averaged_weights_come_with_the_statistics_of_batchnorm(tmp_path):
    train, test = load_data("shapes", limit=32)
    recipe = RivalRecipe(
        rival="ResNet56", epochs=1, warmup_epochs=0, batch_size=16, precision="fp32", model=SIZE
    )
    averaged = replace(recipe, ema=0.5)
    options = RunOptions(device="cpu", progress=False)
    models = [
        finetune(train, test[:16], r, tmp_path / str(r.ema), options=options)
        for r in (recipe, averaged)
    ]
    plain, smooth = map(weights_of, models)
    statistics = [name for name in plain if "running" in name]
    assert len(statistics) == 2 * 55
    assert all(torch.equal(plain[name], smooth[name]) for name in statistics)
    assert any(not torch.equal(plain[name], smooth[name]) for name in plain)


def test_only_the_folder_of_a_finished_rival_can_be_loaded(tmp_path, capsys):
    train, test = load_data("shapes", limit=64)
    options = RunOptions(device="cpu", progress=False)
    base = {"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "precision": "fp32"}
    ours = FinetuneRecipe(**base, model=ModelConfig(depth=1, width=48))
    finetune(train, test[:16], ours, tmp_path / "ours", options=options)
    with pytest.raises(InputError, match="a run of our own model: use load_model"):
        load_rival(tmp_path / "ours")
    recipe = RivalRecipe(**base, rival="CCT-2/3×2", model=SIZE)
    finetune(train, test[:16], recipe, tmp_path / "rival", options=options)
    assert main(["inspect", str(tmp_path / "rival")]) == 0
    assert "a run of CCT-2/3×2" in capsys.readouterr().out
    assert main(["rerun", str(tmp_path / "rival"), "--out", str(tmp_path / "x")]) == 2
    assert "repeat it with `maevit reproduce`" in capsys.readouterr().err
    (tmp_path / "rival/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="no usable weights"):
        load_rival(tmp_path / "rival")
