"""The embedded data: what they hold, where they come from, and that they can be repeated."""

import sys

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from skood.datasets import load_digits_ood


@pytest.fixture(scope="module")
def data():
    """Return the data set with its defaults."""
    return load_digits_ood()


@pytest.fixture(scope="module")
def collection():
    """Return all digits as a dict from the bytes of an image to its label."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    return {image.tobytes(): label for image, label in zip(images, digits.target, strict=True)}


def gray_squares(photograph):
    """Cut squares of 16 by 16 pixels one by one and average neighbours to 8 by 8."""
    gray = photograph[..., 0] * 0.299 + photograph[..., 1] * 0.587 + photograph[..., 2] * 0.114
    squares = []
    for top in range(0, gray.shape[0] - 15, 16):
        for left in range(0, gray.shape[1] - 15, 16):
            square = gray[top : top + 16, left : left + 16] / 255
            rows = square[::2] + square[1::2]
            squares.append((rows[:, ::2] + rows[:, 1::2]) / 4)
    return np.array(squares)


def arrays(data):
    """Return all images of a data set by name."""
    return {"train": data.X_train, "test": data.X_test, **data.ood}


def same(first, second):
    """Tell which of two data sets' image arrays are equal."""
    pairs = zip(arrays(first).items(), arrays(second).values(), strict=True)
    return {name for (name, a), b in pairs if np.array_equal(a, b)}


def test_fields(data):
    assert list(data.ood) == ["near", "textures", "noise"]
    sizes = {name: len(X) for name, X in arrays(data).items()}
    assert sizes == {"train": 649, "test": 434, "near": 714, "textures": 500, "noise": 500}
    assert data.y_train.shape == (649,) and data.y_test.shape == (434,)
    assert data.y_train.dtype.kind == data.y_test.dtype.kind == "i"
    assert data.target_names.tolist() == [0, 1, 2, 3, 4, 5]
    for name in data.ood:
        assert f"- {name}: " in data.DESCR


def test_images_are_float32_between_0_and_1(data):
    for X in arrays(data).values():
        assert X.shape[1:] == (1, 8, 8)
        assert X.dtype == np.float32
        assert X.flags.c_contiguous and X.flags.writeable
        assert 0 <= X.min() < 0.1 and 0.9 < X.max() <= 1


def test_digits_keep_their_labels(data, collection):
    labels = {
        name: [collection[image.tobytes()] for image in X]
        for name, X in arrays(data).items()
        if name in ("train", "test", "near")
    }
    assert labels["train"] == data.y_train.tolist()
    assert labels["test"] == data.y_test.tolist()
    assert set(labels["near"]) == {6, 7, 8, 9}


def test_every_digit_is_used_once(data):
    used = np.concatenate([data.X_train, data.X_test, data.ood["near"]]).reshape(1797, 64)
    everything = (load_digits().data / 16).astype(np.float32)
    assert sorted(used.tolist()) == sorted(everything.tolist())


@pytest.mark.parametrize("test_size", [0.2, 0.4])
def test_split_is_stratified(test_size):
    data = load_digits_ood(test_size=test_size)
    train, test = np.bincount(data.y_train), np.bincount(data.y_test)
    np.testing.assert_allclose(test, test_size * (train + test), atol=1)


def test_number_of_test_rows():
    assert len(load_digits_ood(test_size=100).X_test) == 100


@pytest.mark.parametrize("test_size", [0, 1.5, 3, "half"])
def test_bad_test_size(test_size):
    with pytest.raises(ValueError, match="test_size"):
        load_digits_ood(test_size=test_size)


def test_textures_are_the_squares_of_highest_contrast(data):
    textures = data.ood["textures"][:, 0]
    for photograph, cuts in zip(load_sample_images().images, np.split(textures, 2), strict=True):
        squares = gray_squares(photograph)
        distances = np.abs(squares[:, np.newaxis] - cuts).max(axis=(2, 3))
        source = distances.argmin(axis=0)
        assert distances.min(axis=0).max() < 1e-6
        assert len(set(source.tolist())) == len(cuts) == 250
        contrast = squares.std(axis=(1, 2))
        assert contrast[source].min() >= np.delete(contrast, source).max()


def test_textures_are_varied(data):
    textures = data.ood["textures"].reshape(500, 64)
    assert textures.std(axis=1).min() > 0.04
    off_diagonal = np.corrcoef(textures)[np.triu_indices(500, 1)]
    assert off_diagonal.max() < 0.9999
    assert np.abs(off_diagonal).mean() < 0.5


def test_noise_is_uniform(data):
    noise = data.ood["noise"].reshape(500, 64)
    assert kstest(noise.ravel(), "uniform").pvalue > 0.001
    correlation = np.corrcoef(noise.T)[np.triu_indices(64, 1)]
    assert np.abs(correlation).max() < 0.25


def test_ood_sets_lie_from_near_to_far(data):
    neighbors = NearestNeighbors(n_neighbors=5).fit(data.X_train.reshape(-1, 64))

    def score(X):
        return -neighbors.kneighbors(X.reshape(-1, 64))[0][:, -1]

    inside = score(data.X_test)
    auroc = {
        name: roc_auc_score(np.repeat([1, 0], [434, len(X)]), np.r_[inside, score(X)])
        for name, X in data.ood.items()
    }
    assert 0.9 < auroc["near"] < 0.99 < auroc["textures"] <= auroc["noise"]


def test_random_state(data):
    everything = set(arrays(data))
    fixed = {"near", "textures"}
    assert same(load_digits_ood(), data) == everything
    assert same(load_digits_ood(random_state=np.random.RandomState(0)), data) == everything
    assert same(load_digits_ood(random_state=1), data) == fixed
    assert same(load_digits_ood(random_state=None), load_digits_ood(random_state=None)) == fixed


def test_global_random_state_is_left_alone():
    np.random.seed(3)
    expected = np.random.uniform()
    np.random.seed(3)
    load_digits_ood()
    assert np.random.uniform() == expected


def test_vectors(data):
    vectors = load_digits_ood(as_images=False)
    for X, images in zip(arrays(vectors).values(), arrays(data).values(), strict=True):
        np.testing.assert_array_equal(X, images.reshape(len(images), 64))
    np.testing.assert_array_equal(vectors.y_train, data.y_train)


@pytest.mark.parametrize(("as_images", "shape"), [(True, (1, 8, 8)), (False, (64,))])
def test_return_X_y(data, as_images, shape):
    X_train, y_train, X_test, y_test = load_digits_ood(as_images=as_images, return_X_y=True)
    expected = np.concatenate([data.X_test, *data.ood.values()])
    np.testing.assert_array_equal(X_train, data.X_train.reshape(-1, *shape))
    np.testing.assert_array_equal(X_test, expected.reshape(-1, *shape))
    np.testing.assert_array_equal(y_train, data.y_train)
    assert y_test.tolist() == data.y_test.tolist() + [-1] * 1714
    assert y_test.dtype == data.y_test.dtype


def test_hint_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_digits_ood()
