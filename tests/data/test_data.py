"""Batches are a pure function of (seed, step), and show what the dataset holds."""

import logging

import numpy as np
import pytest
import requests

from cascade_keras import data
from cascade_keras.data import specs
from cascade_keras.data.specs import DATASETS, scaled_boundaries
from cascade_keras.errors import InputError

SIZE, SIDE = 50, 12


@pytest.fixture(scope="module")
def coded():
    """Images whose every pixel says which image, row and column it is; labels say the image."""
    images = np.zeros((SIZE, SIDE, SIDE, 3), np.uint8)
    images[..., 0] = np.arange(SIZE)[:, None, None] + 1
    images[..., 1] = np.arange(SIDE)[:, None] + 1
    images[..., 2] = np.arange(SIDE)[None, :] + 1
    return images, np.arange(SIZE, dtype=np.int32)


def take(coded, start, stop, **options):
    options = {"seed": 0, **options}
    steps = data.batches(*coded, 8, start=start, stop=stop, **options)
    return [(np.round(x.numpy() * 255).astype(int), y.numpy()) for (x, *_), y in steps]


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_depends_on_the_seed_and_the_step_only(coded, augment):
    options = {"crop": 8, "augment": augment}
    whole = take(coded, 0, 20, **options)
    for (x, y), (resumed_x, resumed_y) in zip(whole[13:], take(coded, 13, 20, **options)):
        np.testing.assert_array_equal(x, resumed_x)
        np.testing.assert_array_equal(y, resumed_y)
    other = take(coded, 0, 1, seed=1, **options)[0]
    assert not np.array_equal(whole[0][1], other[1])


def test_every_epoch_is_another_permutation_of_all_images(coded):
    order = np.concatenate([y for _, y in take(coded, 0, 25)])  # 200 images, 4 epochs
    epochs = order.reshape(4, SIZE)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_training_crops_are_windows_of_their_image_drawn_for_each(coded):
    corners, flips = set(), set()
    for x, y in take(coded, 0, 30, crop=8, augment=True):
        np.testing.assert_array_equal(x[..., 0], np.broadcast_to(y[:, None, None] + 1, x.shape[:3]))
        for image in x:
            rows, columns = image[:, 0, 1], image[0, :, 2]
            assert (np.diff(rows) == 1).all()
            direction = set(np.diff(columns))
            assert direction in ({1}, {-1})
            flips |= direction
            corners.add((rows[0], columns.min()))
    assert flips == {1, -1}
    assert len(corners) == 25  # every one of the 5 x 5 places, over 240 images


def test_full_size_crops_are_padded_with_black(coded):
    places = set()
    for x, _ in take(coded, 0, 30, crop=SIDE, augment=True):
        for image in x:
            rows = np.flatnonzero(image[..., 0].any(axis=1))
            assert len(rows) >= SIDE - data.CIFAR_PADDING
            places.add(image[rows[0], :, 1].max() - 1 - rows[0])
    assert places == set(range(-data.CIFAR_PADDING, data.CIFAR_PADDING + 1))


def test_without_augmentation_the_centre_is_cut(coded):
    x, y = take(coded, 0, 1, crop=8)[0]
    np.testing.assert_array_equal(x, coded[0][y][:, 2:10, 2:10])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": SIZE + 1}, "batch_size"), ({"batch_size": 8, "crop": 13}, "crop")],
)
def test_impossible_batches_are_refused(coded, options, message):
    with pytest.raises(InputError, match=message):
        data.batches(*coded, seed=0, **options)


def test_digits_are_split_once_and_evenly():
    digits = data.load("digits")
    assert digits.train[0].shape == (1437, 8, 8, 1)
    assert digits.test[0].shape == (360, 8, 8, 1)
    counts = np.bincount(digits.test[1])
    assert counts.min() >= 35 and counts.max() <= 37
    assert digits.fingerprint == data.load("digits").fingerprint
    images, _ = data.test_images(digits, 8)
    assert images.min() == 0.0 and images.max() == 1.0
    mean = data.mean_image(digits, 8)
    np.testing.assert_allclose(mean, digits.train[0].mean(axis=0) / 255, atol=1e-6)


IMAGES = np.zeros((4, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, np.array([0, 1, 2, 10]), "labels must be 0..9, got 0..10"),
        (IMAGES, np.array([0, 1, 2, -1]), "labels must be 0..9, got -1..2"),
        (IMAGES, np.array([0, 1, 2]), "4 images but 3 labels"),
        (IMAGES[:0], np.array([]), "the dataset is empty"),
        (IMAGES, np.zeros(4), "whole numbers"),
        (IMAGES[:, :7], np.zeros(4), "images must be uint8"),
        (IMAGES.astype("float32"), np.zeros(4), "images must be uint8"),
    ],
)
def test_data_that_break_the_datasets_promise_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        data.check(images, labels, DATASETS["digits"], "digits (train)")


def test_the_published_schedules_scale():
    assert scaled_boundaries(DATASETS["mnist"], 8000) == (4000, 6000)
    assert scaled_boundaries(DATASETS["mnist"], 2000) == (1000, 1500)
    assert scaled_boundaries(DATASETS["cifar10"], 94000) == (48000, 72000)
    assert [scaled_boundaries(DATASETS["digits"], n) for n in (1, 2, 3)] == [(1, 1), (1, 2), (2, 2)]


def test_the_published_grids_of_carlini_and_wagner():
    mnist, cifar = DATASETS["mnist"].grid, DATASETS["cifar10"].grid
    assert mnist.constants == (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    np.testing.assert_allclose(mnist.taus, 255 * np.linspace(0.02, 0.6, 30))
    assert cifar.constants == (0.1, 0.3, 1, 3, 10, 30, 100)
    expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40]
    np.testing.assert_allclose(cifar.taus, 0.255 * np.array([*expected, 48, 56, 64, 72, 80]))
    assert DATASETS["digits"].grid is mnist and DATASETS["cifar100"].grid is cifar


def load_stripes(spec, data_dir):
    """Images whose one column says their class; labels in the type that a user may have."""
    labels = np.arange(40, dtype=np.uint8) % 4
    images = np.zeros((40, *spec.image_shape), np.uint8)
    images[np.arange(40), :, labels] = 255
    return (images[:30], labels[:30]), (images[30:], labels[30:])


def test_one_row_makes_a_dataset(monkeypatch):
    monkeypatch.setattr(specs, "DATASETS", {})
    row = data.register(data.DatasetSpec("stripes", load_stripes, (8, 10, 3), 4, crops=(6, 8)))
    stripes = data.load("stripes")
    assert stripes.preset is row and row.crop == 6
    assert stripes.train[0].shape == (30, 8, 10, 3) and stripes.test[1].dtype == np.int32
    assert row.network_shape((None, None, 3)) == (6, 6, 3)
    with pytest.raises(ValueError, match="already"):
        data.register(row)
    with pytest.raises(InputError, match="dataset: 'digits' is none of stripes"):
        data.load("digits")


@pytest.mark.parametrize(("shape", "crops"), [((8, 8), ()), ((8, 9, 1), (9,))])
def test_a_row_whose_sizes_cannot_be_is_refused(shape, crops):
    with pytest.raises(ValueError, match="image_shape"):
        data.DatasetSpec("other", load_stripes, shape, 4, crops=crops)


def test_a_dataset_that_is_not_there_is_said_once(tmp_path, monkeypatch, caplog):
    def unreachable(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", unreachable)
    level = logging.getLogger("absl").level
    with pytest.raises(InputError, match="not ready"):
        data.load("mnist", str(tmp_path / "none"))
    assert not caplog.records and logging.getLogger("absl").level == level


WIDE = np.zeros((6, 10, 30, 3), np.uint8)
WIDE[..., 1] = np.arange(10)[:, None] + 1
WIDE[..., 2] = np.arange(30) + 1
# Of images of 10x30: the crop, how they are augmented, and in which places and directions it lies.
WINDOWS = [
    (None, "none", {(0, 0, 1)}),  # was cut to 10x10
    ((8, 20), "none", {(1, 5, 1)}),
    ((8, 20), "flip", {(1, 5, 1), (1, 5, -1)}),
    ((9, 29), "crop", {(row, column, 1) for row in (0, 1) for column in (0, 1)}),
    ((9, 30), "crop", {(row, column, 1) for row in (0, 1) for column in range(-4, 5)}),
]


@pytest.mark.parametrize(("crop", "augment", "expected"), WINDOWS)
def test_images_that_are_not_square_are_cut_as_said(crop, augment, expected):
    rows, columns = crop or (10, 30)
    found = set()
    for (x, *_), _ in data.batches(
        WIDE, np.zeros(6, int), 6, seed=0, stop=30, crop=crop, augment=augment
    ):
        assert x.shape == (6, rows, columns, 3)
        for image in np.round(x.numpy() * 255).astype(int):
            column = image[rows // 2, :, 2]
            inside = np.flatnonzero(column)
            direction = int(np.sign(column[inside[-1]] - column[inside[0]]))
            left = column[inside].min() - 1 if direction < 0 else column[inside[0]] - 1 - inside[0]
            found.add((image[0, inside[0], 1] - 1, left, direction))
    assert {tuple(map(int, place)) for place in found} == expected


def test_crops_of_pairs():
    assert data.crop_of((9, 9)) == 9 and data.crop_of((9, 8)) == (9, 8)
    assert data.sides_of(9) == (9, 9) and data.sides_of([9, 8]) == (9, 8)
    np.testing.assert_array_equal(data.centre_crop(WIDE, (8, 20)), WIDE[:, 1:9, 5:25])
    images = data.NetworkImages(WIDE, (8, 20))
    assert images.shape == (6, 8, 20, 3) and len(images[2:5]) == 3
    seen = images[2:5][np.array([0, 2])]
    np.testing.assert_array_equal(seen, WIDE[[2, 4], 1:9, 5:25].astype("float32") / 255)
