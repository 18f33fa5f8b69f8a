"""Labelled images: what they refuse, how they are split, cropped and flipped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.training.images import ImageData, check_fit, check_splits, crop_and_flip, shuffled


def make(labels, classes=3, bytes_=True):
    labels = torch.tensor(labels)
    images = torch.randint(0, 256, (len(labels), 3, 6, 6), dtype=torch.uint8)
    return ImageData(images if bytes_ else images / 255, labels, tuple("abcdefgh"[:classes]), "mine")


def test_a_batch_is_float_in_the_unit_interval_whatever_is_kept():
    data = make([0, 1, 2, 0])
    images, labels = data.batch(torch.tensor([2, 0]))
    assert images.dtype == torch.float32
    assert torch.equal(images, data.images[[2, 0]].float() / 255)
    assert labels.tolist() == [2, 0]
    floats = ImageData(data.images.float() / 255, data.labels, data.classes)
    again, _ = floats.batch(torch.tensor([2, 0]))
    assert torch.equal(again, images)
    assert (data.channels, data.size, len(data)) == (3, (6, 6), 4)
    assert data.counts().tolist() == [2, 1, 1]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(2, 9), min_size=1, max_size=5), share=st.floats(0.01, 0.99), seed=st.integers(0, 999)
)
def test_a_split_has_every_class_on_both_sides_and_every_image_once(counts, share, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    data = ImageData(images, labels, tuple(map(str, range(len(counts)))))
    rest, held = data.split(share, seed)
    for part in (rest, held):
        assert int(part.counts().min()) >= 1
    together = sorted(rest.images[:, 0, 0, 0].tolist() + held.images[:, 0, 0, 0].tolist())
    assert together == list(range(len(labels)))
    again = data.split(share, seed)
    assert torch.equal(again[1].images, held.images)


def test_a_class_of_one_image_cannot_be_split():
    data = make([0, 0, 1, 2, 2])
    with pytest.raises(OptionError, match="class 'b' has one image"):
        check_splits(data)
    with pytest.raises(OptionError, match="class 'b' has one image"):
        data.split(0.2)
    for share in (0, 1, -1, 2):
        with pytest.raises(OptionError, match="between 0 and 1"):
            make([0, 0, 1, 1]).split(share)


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (torch.zeros(0, 1, 4, 4), [], "no images"),
        (torch.zeros(2, 4, 4), [0, 1], "no images"),
        (torch.zeros(2, 1, 4, 4), [0], "as many whole labels"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.float64), [0, 1], "uint8 or float32"),
        (torch.full((2, 1, 4, 4), 255.0), [0, 1], "found 255 to 255. Give bytes"),
        (torch.full((2, 1, 4, 4), -1e-3), [0, 1], "in \\[0, 1\\]"),
        (torch.full((2, 1, 4, 4), torch.nan), [0, 1], "in \\[0, 1\\]"),
        (torch.zeros(2, 1, 4, 4), [0, 2], "labels are 0 to 2, and there are 2 classes"),
        (torch.zeros(2, 1, 4, 4), [-1, 1], "labels are -1 to 1"),
    ],
)
def test_what_is_no_image_data(images, labels, text):
    with pytest.raises(OptionError, match=text):
        ImageData(images, torch.tensor(labels, dtype=torch.int64), ("a", "b"))


def test_images_that_a_model_was_not_made_for():
    data = make([0, 1, 2])
    check_fit(data, classes=3, channels=3, size=6)
    check_fit(data, classes=10, channels=3, size=(6, 6))
    with pytest.raises(OptionError, match="images of 1 x 6 x 6"):
        check_fit(data, classes=3, channels=1, size=6)
    with pytest.raises(OptionError, match="3 x 32 x 32"):
        check_fit(data, classes=3, channels=3, size=32)
    with pytest.raises(OptionError, match="tells 2 classes apart"):
        check_fit(data, classes=2, channels=3, size=6)


# ---- crop and flip


def by_hand(image, top, left, flip, pad):
    """One picture [C, H, W], moved and mirrored the plain way."""
    height, width = image.shape[1:]
    wide = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad)
    wide[:, pad : pad + height, pad : pad + width] = image
    cut = wide[:, top : top + height, left : left + width]
    return cut.flip(2) if flip else cut


@settings(max_examples=30, deadline=None)
@given(pad=st.integers(0, 3), key=st.integers(-(2**62), 2**62))
def test_every_picture_is_one_of_those_that_can_be(pad, key):
    images = torch.rand(4, 2, 5, 4) + 0.1
    moved = crop_and_flip(images, key, pad=pad)
    assert moved.shape == images.shape
    for image, found in zip(images, moved, strict=True):
        places = range(2 * pad + 1)
        assert any(
            torch.equal(found, by_hand(image, top, left, flip, pad))
            for top in places
            for left in places
            for flip in (False, True)
        )
    assert torch.equal(moved, crop_and_flip(images, key, pad=pad))


def test_all_places_and_both_sides_come_up():
    images = torch.zeros(400, 1, 9, 9)
    images[:, 0, 4, 3] = 1
    moved = crop_and_flip(images, 7, pad=1)
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4, 4, 5, 6)}
    assert not torch.equal(moved, crop_and_flip(images, 8, pad=1))


def test_an_order_follows_from_seed_and_words():
    assert sorted(shuffled(20, 1, "a", 2).tolist()) == list(range(20))
    assert torch.equal(shuffled(20, 1, "a", 2), shuffled(20, 1, "a", 2))
    others = [shuffled(20, *words) for words in ((2, "a", 2), (1, "b", 2), (1, "a", 3))]
    assert not any(torch.equal(shuffled(20, 1, "a", 2), other) for other in others)
