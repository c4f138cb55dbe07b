"""Data sets as PyTorch users expect them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import ToTensor

from maevit_course.augmentation import RandomResizedCropFlip
from maevit_course.core import InputError
from maevit_course.data import ImageData, denormalize, load_data, normalize, preprocess
from maevit_course.plots import show_images


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


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda d: ImageData(d.images.float(), d.labels, d.classes), "not torch.float32"),
        (lambda d: ImageData(d.images, d.labels + 1, d.classes), "but range from 1 to 10"),
        (lambda d: ImageData(d.images, d.labels[:7], d.classes), r"labels of shape \(7,\)"),
        (lambda d: d.few_labels(len(d)), "images per class: the smallest class has"),
        (lambda d: d[:1].split(0.2), "has only one image"),
        (lambda d: d.split(1.0), "fraction is 1.0"),
        (lambda d: preprocess(7, 8), "not int: 7"),
        (lambda d: preprocess("no.png", 8), "'no.png' cannot be read as an image"),
        (lambda d: preprocess(torch.zeros(1, 2, 8, 8), 8), r"not \(1, 2, 8, 8\)"),
        (lambda d: ImageData.from_dataset([(d.images[0], 0), (d.images[1], "?")]), "item 1 of"),
    ],
)
def test_bad_data_from_python_are_named(work, said, data):
    with pytest.raises(InputError, match=said):
        work(data)


def test_a_torch_data_set_becomes_image_data(data):
    "Images as PIL or as `ToTensor` makes them, of any size; the classes come along."
    pairs = [(Image.fromarray(x.permute(1, 2, 0).numpy()), int(y)) for x, y in data]
    for items in (pairs, [(ToTensor()(image), label) for image, label in pairs]):
        again = ImageData.from_dataset(items, classes=data.classes, name="shapes")
        assert again.describe() == data.describe()
    wide = TensorDataset(torch.rand(3, 1, 20, 30), torch.tensor([0, 1, 1]))
    assert ImageData.from_dataset(wide, size=16).images.shape == (3, 3, 16, 16)
    for wrong in ([(pairs[0][0],)], [("nowhere.png", 0)], [(3, 0)]):
        with pytest.raises(InputError):
            ImageData.from_dataset(wrong)


def test_a_split_holds_out_the_same_fraction_of_each_class():
    data = load_data("shapes", limit=500)[0]
    rest, held = data.split(0.2)
    total, part = (torch.bincount(d.labels, minlength=10) for d in (data, held))
    assert torch.equal(part, (0.2 * total).round().long()) and len(rest) + len(held) == 500
    whole = torch.cat([rest.images, held.images]).flatten(1)
    assert len(whole.unique(dim=0)) == len(data.images.flatten(1).unique(dim=0))
    assert torch.equal(data.split(0.2)[1].images, held.images)
    assert not torch.equal(data.split(0.2, seed=1)[1].images, held.images)
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            data.split(wrong)


def test_any_form_of_an_image_is_prepared_alike(data, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in data.images[:3]]
    for image, file in zip(images, files):
        image.save(file)
    expected = preprocess(data.images[:3], 24)
    assert expected.shape == (3, 3, 24, 24) and expected.min() >= -1 and expected.max() <= 1
    for form in (images, files, [images[0], str(files[1]), data.images[2]]):
        torch.testing.assert_close(preprocess(form, 24), expected)
    torch.testing.assert_close(preprocess(images[0], 24), expected[:1])
    torch.testing.assert_close(preprocess(data.images[0], 24), expected[:1])
    grey = preprocess(Image.new("L", (50, 30), 255), 8)
    torch.testing.assert_close(grey, torch.ones(1, 3, 8, 8))
    for wrong in ([], 3, [None], torch.zeros(2, 5, 8, 8), tmp_path / "nowhere.png"):
        with pytest.raises(InputError):
            preprocess(wrong, 24)
