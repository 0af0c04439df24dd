"""Images from OpenOOD's lists and from folders."""

import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from skood import KNNDetector
from skood.datasets import load_image_list


def pixels(seed, side=6):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    """Return a folder of 4 images of cats and 2 of dogs."""
    for name, numbers in {"cats": range(4), "dogs": range(4, 6)}.items():
        (tmp_path / name).mkdir()
        for number in numbers:
            Image.fromarray(pixels(number)).save(tmp_path / name / f"{number} x.png")
    return tmp_path


def write(root, text):
    (root / "list.txt").write_text(text)
    return root / "list.txt"


def test_a_list_is_read_in_its_order(root):
    lines = ["dogs/5 x.png 7", "", "cats/0 x.png -1"]
    images = load_image_list(root, write(root, "\r\n".join(lines)))
    assert len(images) == 2 and images.labels.tolist() == [7, -1] and images.classes is None
    for (image, label), seed, expected in zip(images, (5, 0), (7, -1), strict=False):
        assert label == expected and image.dtype == torch.float32
        np.testing.assert_array_equal(image, pixels(seed).transpose(2, 0, 1) / np.float32(255))


def test_labels_may_be_dicts_as_in_openood(root):
    (root / "a.png").write_bytes((root / "cats" / "1 x.png").read_bytes())
    images = load_image_list(root, write(root, "a.png {'label': 3, 'words': 'a cat'}\n"))
    assert images[0][1] == 3


def test_a_folder_has_a_class_a_folder(root):
    images = load_image_list(root)
    assert images.classes == ["cats", "dogs"] and images.labels.tolist() == [0] * 4 + [1] * 2
    assert [path[-7:] for path in images.paths] == [f"{n} x.png" for n in range(6)]
    alone = load_image_list(root / "dogs")
    assert alone.labels is None and isinstance(alone[0], torch.Tensor)
    assert len(pickle.loads(pickle.dumps(images))) == 6


def test_detectors_take_them_and_images_are_read_when_asked_for(root):
    images = load_image_list(root, transform=lambda image: torch.tensor(image.getextrema()).float())
    X = torch.tensor([[[v.min(), v.max()] for v in pixels(n).transpose(2, 0, 1)] for n in range(6)])
    found = KNNDetector(k=1).fit(images).score_samples(images)
    expected = KNNDetector(k=1).fit(X.float(), images.labels).score_samples(X.float())
    np.testing.assert_array_equal(found, expected)
    gray = root / "dogs" / "5 x.png"
    Image.fromarray(pixels(5)[..., 0]).save(gray)
    assert load_image_list(root)[5][0].shape == (3, 6, 6)
    gray.unlink()
    images = load_image_list(root, write(root, "cats/0 x.png 1\n\ndogs/5 x.png 2\n"))
    assert images[0][1] == 1
    with pytest.raises(OSError, match=r"list.txt, line 3: cannot read .*5 x.png: No such file"):
        images[1]
    gray.write_bytes(b"no image")
    with pytest.raises(OSError, match=r"list.txt, line 3: cannot read .*cannot identify"):
        images[1]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_and_not_cut(dtype, root):
    Image.fromarray(pixels(0)[..., 0].astype(dtype) * 100).save(root / "dogs" / "4 x.tiff")
    images = load_image_list(root / "dogs")
    assert len(images) == 3
    with pytest.raises(OSError, match=r"cannot read .*4 x.tiff: it has more than 8 bits \(mode"):
        images[1]


def test_an_image_that_is_too_large_is_named(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"cannot read .*0 x.png: Image size \(36 pixels\) exceeds"):
        load_image_list(root)[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cats/0.png", "list.txt, line 2: 'cats/0.png' is not 'path label' with an integer"),
        ("cats/0.png cat", "line 2: 'cats/0.png cat' is not 'path label'"),
        ("cats/0.png 1.5", "line 2: .* is not 'path label'"),
        ("cats/0.png {'class': 1}", "line 2: .* is not 'path label'"),
        ("cats/0.png {" * 3000, "line 2: .* is not 'path label'"),
        ("/cats/0.png 1", "line 2: '/cats/0.png' must be a path relative to root"),
    ],
)
def test_a_line_that_is_wrong_is_named(line, message, root):
    with pytest.raises(ValueError, match=message):
        load_image_list(root, write(root, f"cats/0.png 1\n{line}\n"))


def test_what_is_no_list_or_folder(root, monkeypatch):
    with pytest.raises(ValueError, match="list.txt is empty"):
        load_image_list(root, write(root, "\n"))
    (root / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="list.txt is no text"):
        load_image_list(root, root / "list.txt")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        load_image_list(root / "nowhere")
    (root / "ants").mkdir()
    with pytest.raises(ValueError, match="has folders without images: ants"):
        load_image_list(root)
    with pytest.raises(ValueError, match="ants holds no images"):
        load_image_list(root / "ants")
    Image.fromarray(pixels(0)).save(root / "0.png")
    with pytest.raises(ValueError, match="images beside folders of images"):
        load_image_list(root)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_image_list(root / "cats")
