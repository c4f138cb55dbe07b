"""What must hold for any input, tried on many."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maevit_course.augmentation import RandomResizedCropFlip, random_boxes, resize_matrix
from maevit_course.core import World, derive_seed, set_seed
from maevit_course.data import ImageData, denormalize, normalize
from maevit_course.loss import reconstruction_loss
from maevit_course.masking import random_masking
from maevit_course.patches import patchify, unpatchify
from maevit_course.schedules import WarmupCosine

few = settings(max_examples=40, deadline=None)
sizes, seeds = st.integers(1, 6), st.integers(0, 2**32)


@few
@given(sizes, sizes, sizes, seeds)
def test_patches_go_there_and_back(batch, side, patch, seed):
    images = torch.randn(
        batch, 3, side * patch, side * patch, generator=torch.Generator().manual_seed(seed)
    )
    patches = patchify(images, patch)
    assert patches.shape == (batch, side**2, 3 * patch**2) and torch.equal(
        unpatchify(patches, patch), images
    )


@few
@given(sizes, st.integers(2, 200), st.floats(0.01, 0.99), seeds)
def test_a_mask_parts_the_patches(batch, n, ratio, seed):
    hidden = int(n * ratio)
    if not 0 < hidden < n:
        return
    set_seed(seed)
    keep, masked = random_masking(batch, n, ratio)
    assert keep.shape == (batch, n - hidden) and masked.sum(1).eq(hidden).all()
    assert not masked.gather(1, keep).any() and all(
        len(set(row)) == n - hidden for row in keep.tolist()
    )


@few
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 1), seeds)
def test_crops_stay_inside_and_keep_the_mean(height, width, smallest, seed):
    set_seed(seed)
    boxes = random_boxes(20, height, width, (smallest, 1.0))
    top, left, h, w = boxes.unbind(1)
    assert (
        (boxes[:, 2:] > 0).all()
        and (top >= 0).all()
        and (left >= 0).all()
        and (top + h <= height).all()
        and (left + w <= width).all()
    )
    weights = resize_matrix(top, h, height, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20, 7))
    flat = torch.full((20, 3, height, width), 0.25)
    torch.testing.assert_close(
        RandomResizedCropFlip(5, (smallest, 1.0))(flat), torch.full((20, 3, 5, 5), 0.25)
    )


@few
@given(st.floats(1e-6, 1), st.integers(0, 50), st.integers(1, 500), st.floats(0, 1))
def test_the_learning_rate_stays_between_floor_and_peak(peak, warmup, more, floor):
    total = warmup + more
    schedule = WarmupCosine(peak, warmup, total, floor * peak)
    rates = [schedule(step) for step in range(total)]
    assert max(rates) <= peak * (1 + 1e-9) and min(rates[warmup:]) >= floor * peak * (1 - 1e-9)
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:] == sorted(
        rates[warmup:], reverse=True
    )


@few
@given(sizes, st.integers(2, 20), sizes, st.floats(0, 2), seeds)
def test_the_loss_is_the_two_means(batch, n, pixels, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, batch, n, pixels, generator=generator)
    masked = torch.arange(n).expand(batch, n) < max(1, n // 2)
    losses = reconstruction_loss(prediction, target, masked, alpha)
    error = (prediction - target).square()
    torch.testing.assert_close(losses["loss"], error[masked].mean() + alpha * error[~masked].mean())


@few
@given(st.integers(1, 5), st.integers(1, 7), seeds)
def test_any_number_of_processes_draws_the_same_rows(size, share, seed):
    def rows(rank, size, n):
        set_seed(seed)
        return World(rank, size).rows(lambda m: torch.rand(m, 2), n)

    alone = rows(0, 1, size * share)
    assert torch.equal(
        torch.stack([rows(rank, size, share) for rank in range(size)], 1).flatten(0, 1), alone
    )


@few
@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(1, 3), seeds)
def test_few_labels_takes_equally_many_of_each(labels, per_class, seed):
    labels = torch.tensor(labels + [0, 1, 2, 3] * per_class)
    data = ImageData(
        torch.arange(len(labels)).to(torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1),
        labels,
        tuple("abcd"),
    )
    some = data.few_labels(per_class, seed)
    assert (
        torch.bincount(some.labels).tolist() == [per_class] * 4
        and len(some.images.flatten(1)[:, 0].unique()) == 4 * per_class
    )


@few
@given(
    st.lists(st.one_of(st.integers(), st.text()), max_size=4),
    st.lists(st.one_of(st.integers(), st.text()), max_size=4),
)
def test_different_names_give_different_seeds(a, b):
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b) and 0 <= derive_seed(*a) < 2**63


def test_normalising_goes_there_and_back():
    images = torch.arange(256, dtype=torch.uint8)
    assert torch.equal((denormalize(normalize(images)) * 255).round().to(torch.uint8), images)
