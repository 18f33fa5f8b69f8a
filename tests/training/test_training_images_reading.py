"""Images from folders, numpy files and by name; and what is wrong with them is said."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image

from coterie.errors import MissingExtraError, OptionError
from coterie.training.images import digits, read_images, split_digits


def picture(mode="RGB", size=(6, 5), seed=0):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def folder(path, mode="RGB", sizes=((6, 5),), count=2, classes=("cat", "dog"), suffix="png"):
    for at, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for number in range(count):
            size = sizes[number % len(sizes)]
            picture(mode, size, seed=at * 10 + number).save(path / name / f"{number}.{suffix}")
    return path


# ---- folders


def test_a_folder_of_class_folders(tmp_path):
    data = read_images(folder(tmp_path / "data"))
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert tuple(data.images.shape) == (4, 3, 5, 6)
    assert data.images.dtype == torch.uint8
    expected = torch.from_numpy(np.array(picture(seed=10))).permute(2, 0, 1)
    assert torch.equal(data.images[2], expected)


def test_grey_pictures_stay_grey_and_one_in_colour_makes_all_so(tmp_path):
    path = folder(tmp_path / "data", mode="L")
    assert read_images(path).channels == 1
    picture("RGB").save(path / "dog" / "9.png")
    (path / "dog" / "notes.txt").write_text("not a picture")
    (path / ".hidden").mkdir()
    assert read_images(path).channels == 3


def test_transparency_and_palettes_are_colours(tmp_path):
    path = folder(tmp_path / "data")
    picture().convert("RGBA").save(path / "cat" / "a.png")
    picture().convert("P").save(path / "cat" / "b.gif")
    assert tuple(read_images(path).images.shape) == (6, 3, 5, 6)


def test_mixed_sizes_need_a_size(tmp_path):
    path = folder(tmp_path / "data", sizes=((6, 5), (9, 9)))
    with pytest.raises(OptionError, match="2 sizes, from 6 x 5 to 9 x 9"):
        read_images(path)
    assert tuple(read_images(path, size=8).images.shape) == (4, 3, 8, 8)
    with pytest.raises(OptionError, match="at least 1"):
        read_images(path, size=0)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    path = folder(tmp_path / "data", suffix="jpg")
    whole = (path / "dog" / "0.jpg").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\x00binary\xff"):
        (path / "dog" / "0.jpg").write_bytes(broken)
        with pytest.raises(OptionError, match=r"0\.jpg cannot be read as a picture"):
            read_images(path)


def test_folders_that_hold_no_pictures(tmp_path):
    path = folder(tmp_path / "data" / "train").parent
    with pytest.raises(OptionError, match=r"It holds folders \(cat, dog\): is .*train what you mean"):
        read_images(path)
    (path / "train" / "empty").mkdir()
    with pytest.raises(OptionError, match="empty has no pictures"):
        read_images(path / "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(OptionError, match="no class folders"):
        read_images(tmp_path / "none")


@pytest.mark.parametrize("name", ["not/there", "digit", "digits:valid", "x.npy,y.npy"])
def test_what_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"There are no images .*digits:train"):
        read_images(name)


# ---- numpy


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("data", "target")])
def test_an_archive_of_arrays(tmp_path, images, labels):
    array = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{images: array, labels: np.array([0, 1, 2, 1])})
    data = read_images(tmp_path / "a.npz")
    assert torch.equal(data.images, torch.from_numpy(array.transpose(0, 3, 1, 2).copy()))
    assert data.classes == ("0", "1", "2")


def test_names_of_classes_and_columns_of_labels(tmp_path):
    words = {"x": np.zeros((2, 4, 4), np.float64), "y": np.array([[1.0], [0.0]]), "classes": np.array(["cat", "dog"])}
    np.savez(tmp_path / "a.npz", **words)
    data = read_images(tmp_path / "a.npz")
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [1, 0]
    assert data.images.dtype == torch.float32


def test_an_archive_of_picture_files(tmp_path):
    files = []
    for seed in range(3):
        buffer = io.BytesIO()
        picture(seed=seed).save(buffer, "PNG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    words = {"offsets": offsets, "labels": np.array([0, 1, 0], np.uint8), "classes": np.array(["cat", "dog"])}
    blob = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "a.npz", blob=blob, **words)
    data = read_images(tmp_path / "a.npz")
    assert torch.equal(data.images[1], torch.from_numpy(np.array(picture(seed=1))).permute(2, 0, 1))
    np.savez(tmp_path / "b.npz", blob=blob[:-9], **words)
    with pytest.raises(OptionError, match="cut off"):
        read_images(tmp_path / "b.npz")
    spoiled = blob.copy()
    spoiled[offsets[1] : offsets[1] + 20] = 0
    np.savez(tmp_path / "c.npz", blob=spoiled, **words)
    with pytest.raises(OptionError, match="picture 1 cannot be read"):
        read_images(tmp_path / "c.npz")


def test_a_pair_of_arrays_or_a_folder_with_both(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((3, 1, 4, 4), np.float32))
    np.save(tmp_path / "y.npy", np.array([0, 1, 1]))
    one, other = read_images(f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"), read_images(tmp_path)
    assert torch.equal(one.images, other.images)
    assert one.labels.tolist() == other.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((2, 4, 4))}, "no array 'labels' or 'y'"),
        ({"y": np.zeros(2, int)}, "no array 'images' or 'x'"),
        ({"x": np.zeros((2, 5, 4, 7)), "y": np.zeros(2, int)}, r"found \(2, 5, 4, 7\)"),
        ({"x": np.zeros((2, 4, 4), int), "y": np.zeros(2, int)}, "found int64"),
        ({"x": np.full((2, 4, 4), 2.0), "y": np.zeros(2, int)}, "found 2 to 2"),
        ({"x": np.full((2, 4, 4), np.nan), "y": np.zeros(2, int)}, r"in \[0, 1\]"),
        ({"x": np.zeros((2, 4, 4)), "y": np.array([0, -1])}, "a label is -1"),
        ({"x": np.zeros((2, 4, 4)), "y": np.array([0, 7]), "classes": np.array(["a", "b"])}, "0 to 7"),
        ({"x": np.zeros((2, 4, 4)), "y": np.array([0, 0.5])}, "whole numbers"),
        ({"x": np.zeros((2, 4, 4)), "y": np.array(["a", "b"])}, "whole numbers"),
        ({"x": np.zeros((2, 4, 4)), "y": np.zeros(3, int)}, "2 images need as many"),
        ({"x": np.zeros((0, 4, 4)), "y": np.zeros(0, int)}, "no images"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1, int)}, "cannot be read"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(OptionError, match=text):
        read_images(tmp_path / "a.npz")


def test_files_that_are_no_archives(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4)), y=np.zeros(2, int))
    whole = (tmp_path / "a.npz").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "b.npz").write_bytes(broken)
        with pytest.raises(OptionError, match="cannot be read as a numpy archive"):
            read_images(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(OptionError, match="no kind of image data"):
        read_images(tmp_path / "c.npy")
    with pytest.raises(OptionError, match="cannot be read as a numpy array"):
        read_images(f"{tmp_path / 'b.npz'},{tmp_path / 'c.npy'}")
    (tmp_path / "c.npy").rename(tmp_path / "d.npz")
    with pytest.raises(OptionError, match="is one array"):
        read_images(tmp_path / "d.npz")
    with pytest.raises(OptionError, match="not resized"):
        read_images(tmp_path / "a.npz", size=8)


# ---- digits


def test_digits_by_name():
    data = digits()
    assert tuple(data.images.shape) == (1797, 1, 8, 8)
    assert len(data.classes) == 10
    learn, measure = split_digits()
    assert (len(learn), len(measure)) == (1297, 500)
    assert torch.equal(read_images("digits:test").images, measure.images)
    assert len(read_images("digits")) == 1797


def test_two_domains_are_the_same_digits_every_second_inverted():
    plain, both = split_digits(), split_digits(two_domains=True)
    for one, other in zip(plain, both, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images[::2], other.images[::2])
        assert torch.equal(1 - one.images[1::2], other.images[1::2])
    assert torch.equal(read_images("two-domain-digits:train").images, both[0].images)
    seen = {tuple(image.flatten().tolist()) for image in plain[0].images}
    assert not any(tuple(image.flatten().tolist()) in seen for image in plain[1].images)


@pytest.mark.parametrize("package", ["PIL", "sklearn"])
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, package):
    path = folder(tmp_path / "data")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a))
    with pytest.raises(MissingExtraError, match=r"coterie\[vision\]"):
        read_images(path if package == "PIL" else "digits")
