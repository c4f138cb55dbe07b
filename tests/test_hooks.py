"""Hooks of the training loop: what each computes, and that a resumed run does not notice."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from common import DATA
from maevit_course.cli import main
from maevit_course.core import InputError, set_seed
from maevit_course.data import ImageData, load_data
from maevit_course.finetuning import FINETUNE_RECIPES, classification_loss, finetune
from maevit_course.hooks import Mix
from maevit_course.models import load_model
from maevit_course.pretraining import PRETRAIN_RECIPES, pretrain
from maevit_course.progress import RunStopped
from maevit_course.runs import RunRecord
from maevit_course.training import Learner, RunOptions

PRETRAIN = replace(PRETRAIN_RECIPES["small-0.1"].with_epochs(2), precision="fp32")
FINETUNE = replace(FINETUNE_RECIPES["small-0.1"].with_epochs(2), precision="fp32", batch_size=32)
HOOKS = {
    "none": (PRETRAIN, {}),
    "clip_grad": (PRETRAIN, {"clip_grad": 0.5}),
    "ema": (PRETRAIN, {"ema": 0.9}),
    "mixup": (FINETUNE, {"mixup": 0.4}),
    "cutmix": (FINETUNE, {"cutmix": 1.0}),
    "muon": (PRETRAIN, {"optimizer": "muon"}),
    "patches": (FINETUNE, {"patch_dropout": 0.5, "patch_dropout_until": 0.5}),
    "smoothing": (FINETUNE, {"label_smoothing": 0.1}),
    "pool": (FINETUNE, {"model": replace(FINETUNE.model, pool="mean")}),
    "all": (
        FINETUNE,
        {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9, "clip_grad": 0.5}
        | {"optimizer": "muon", "patch_dropout": 0.3, "label_smoothing": 0.1},
    ),
}


@pytest.fixture(scope="module")
def data():
    return load_data(DATA[1])


def train(recipe, data, out, options=RunOptions()):
    if recipe.__class__ is PRETRAIN.__class__:
        return pretrain(data[0], recipe, out, options)
    return finetune(*data, recipe, out, options=options)


@pytest.mark.parametrize("name", HOOKS)
def test_a_run_with_hooks_resumes_to_the_same_bits(name, data, tmp_path):
    recipe, settings = HOOKS[name]
    recipe = replace(recipe, **settings)
    whole = train(recipe, data, tmp_path / "whole")
    with pytest.raises(RunStopped):
        train(recipe, data, tmp_path / "parts", RunOptions(minutes=1e-9))
    assert RunRecord.load(tmp_path / "whole").epochs == 2
    parts = train(recipe, data, tmp_path / "parts", RunOptions(resume=True, tensorboard=True))
    assert parts.fingerprint() == whole.fingerprint()
    assert list((tmp_path / "parts/tensorboard").glob("events*"))
    if settings:
        plain = train(HOOKS[name][0], data, tmp_path / "plain")
        assert plain.fingerprint() != whole.fingerprint(), "the setting has no effect"


def learner_and_batch(**settings):
    "A learner, and normalised images with labels for one step."
    recipe = replace(PRETRAIN, warmup_epochs=0, **settings)
    images = load_data("shapes", limit=8)[0]
    learner = Learner(recipe.task(images), recipe, torch.device("cpu"), 4)
    return learner, torch.rand(8, 3, 32, 32) * 2 - 1, images.labels


def test_a_clipped_gradient_has_the_largest_norm_that_is_allowed():
    norms = {}
    for largest in (None, 1e-3):
        learner, images, labels = learner_and_batch(clip_grad=largest)
        for optimizer in learner.optimizers:
            optimizer.zero_grad = lambda **_: None
        set_seed(0)
        learner.train_step(images, labels)
        grads = [p.grad for p in learner.model.parameters()]
        norms[largest] = torch.cat([g.flatten() for g in grads]).norm().item()
    assert norms[None] > 0.01 and norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_the_average_follows_its_definition():
    learner, images, labels = learner_and_batch(ema=0.75)
    learner.train_step(images, labels)
    average = copy.deepcopy(learner.model.state_dict())  # it starts at the first step's weights
    for _ in range(3):
        learner.train_step(images, labels)
        for name, tensor in learner.model.state_dict().items():
            average[name] = 0.75 * average[name] + 0.25 * tensor
    for name, tensor in learner.result.state_dict().items():
        torch.testing.assert_close(tensor, average[name])
    assert learner.result is not learner.model


def test_labels_are_mixed_like_their_images():
    "Images of a single value each show how they were mixed."
    labels = torch.arange(6)
    images = labels.float()[:, None, None, None].expand(-1, 3, 8, 8)
    for settings in ({"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}):
        set_seed(0)
        mixed, soft = Mix(6, **settings).on_batch(images, labels)
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ labels.float())


def test_frozen_layers_keep_their_weights_and_classes_count_the_same(data, tmp_path):
    start = load_model("c10")
    recipe = replace(FINETUNE.with_epochs(1), freeze=2, class_weights=True)
    tuned = finetune(*data, recipe, tmp_path / "run", "c10")
    same = {
        name
        for name, tensor in tuned.encoder.state_dict().items()
        if torch.equal(tensor, start.encoder.state_dict()[name])
    }
    low = ("embed", "positions", "layers.0.", "layers.1.")
    assert same == {name for name in tuned.encoder.state_dict() if name.startswith(low)}
    whole = replace(recipe, freeze=-1)
    tuned = finetune(*data, whole, tmp_path / "whole", "c10")
    assert all(
        torch.equal(tensor, start.encoder.state_dict()[name])
        for name, tensor in tuned.encoder.state_dict().items()
    )
    unequal = ImageData(data[0].images[:40], torch.tensor([0] * 30 + [1] * 10), ("a", "b"))
    task, logits = recipe.task(unequal, start), torch.randn(40, 2)
    loss = task.loss_fn(lambda images: logits, torch.empty(40), unequal.labels)["loss"]
    each = F.cross_entropy(logits, unequal.labels, reduction="none")
    torch.testing.assert_close(loss, (each[:30].mean() + each[30:].mean()) / 2)


def test_pre_training_continues_from_weights(data, tmp_path):
    start = load_model("c10")
    options = RunOptions()
    recipe = replace(PRETRAIN.with_epochs(1), base_lr=1e-12, weight_decay=0.0)
    mae = pretrain(data[0], recipe, tmp_path / "run", options, weights="c10")
    for name, tensor in mae.state_dict().items():
        torch.testing.assert_close(tensor, start.state_dict()[name], atol=1e-6, rtol=0)
    assert RunRecord.load(tmp_path / "run").config["weights"] == start.fingerprint()
    with pytest.raises(InputError, match="weights"):
        pretrain(data[0], recipe, tmp_path / "run", RunOptions(resume=True))


def test_images_need_not_be_mirrored():
    images = load_data("shapes", limit=8)[0].images
    recipe = replace(PRETRAIN, flip=False, crop_scale=(1.0, 1.0))
    ramp = torch.arange(32, dtype=torch.uint8).expand(64, 3, 32, 32)
    assert (recipe.crop()(ramp).diff(dim=3) > 0).all()
    assert not (replace(recipe, flip=True).crop()(ramp).diff(dim=3) > 0).all()
    assert recipe.crop()(images).shape == (8, 3, 32, 32)


def test_alpha_may_be_an_integer():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    assert Mix(4, mixup=1, cutmix=1).on_batch(images, labels)[1].shape == (4, 4)


def test_hooks_work_on_the_command_line(tmp_path):
    words = ["finetune", *DATA, "--recipe", "small", "--epochs", "1", "--out", str(tmp_path / "x")]
    assert main([*words, "--mixup", "0.2", "--ema", "0.9", "--clip-grad", "1", "--no-flip"]) == 0
    recipe = RunRecord.load(tmp_path / "x").config["recipe"]
    wanted = {"mixup": 0.2, "ema": 0.9, "clip_grad": 1.0, "flip": False}
    assert wanted.items() <= recipe.items()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_weight_images(smoothing):
    "Not the entries of smoothed or mixed labels, which would pull predictions to the rare class."
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 0, 1])
    weights = torch.tensor([0.5, 1.0, 4.0])
    soft = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels.roll(1), 3)
    for truth, factors in ((labels, weights[labels]), (soft, soft @ weights)):
        found = classification_loss(lambda x: x, logits, truth, weights, smoothing)["loss"]
        each = [
            F.cross_entropy(logits[i : i + 1], truth[i : i + 1], label_smoothing=smoothing)
            for i in range(6)
        ]
        torch.testing.assert_close(found, (torch.stack(each) * factors).mean())
