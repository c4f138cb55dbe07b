"""Data sets as PyTorch users expect them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

from maevit_course.augmentation import RandomResizedCropFlip
from maevit_course.core import InputError, show_images
from maevit_course.data import ImageData, denormalize, load_data, normalize


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", limit=10)[0]


def test_an_index_gives_an_image_and_its_label(data):
    for index in (3, -1, np.int64(3), torch.tensor(3)):
        image, label = data[index]
        assert torch.equal(image, data.images[int(index)]) and label == data.labels[int(index)]
    assert isinstance(data[2:4], ImageData) and len(data[torch.tensor([1, 2, 2])]) == 3
    with pytest.raises(IndexError):
        data[10]


def test_iteration_ends(data):
    assert [int(label) for _, label in data] == data.labels.tolist()


def test_a_data_loader_makes_batches(data):
    batches = list(DataLoader(data, batch_size=4))
    assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_two_data_sets_can_be_compared(data):
    assert data == data and data != replace(data, images=data.images.clone())


def test_float_images_range_from_0_to_1_everywhere(data):
    "`ToTensor`, which most PyTorch programs begin with, means the same as the bytes themselves."
    image = Image.fromarray(data.images[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(normalize(ToTensor()(image)), normalize(data.images[0]))
    torch.testing.assert_close(denormalize(normalize(data.images)), data.images / 255)
    cropped = RandomResizedCropFlip(24)(data.images)
    assert cropped.min() >= 0 and 0.5 < cropped.max() <= 1.001


@pytest.mark.parametrize("wrong", [lambda x: x.float(), lambda x: x / 127.5 - 1, lambda x: x.int()])
def test_other_ranges_are_refused(wrong, data):
    for function in (normalize, show_images):
        with pytest.raises(InputError, match="0 to 1"):
            function(wrong(data.images))
