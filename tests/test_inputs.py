"""What X must not be: errors say what came and what to do, in three lines and without rows."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn
from torch.nn.functional import dropout
from torch.utils.data import DataLoader, Dataset, TensorDataset

from skood import FeatureExtractor, GMMDetector, NACDetector, NNGuideDetector
from skood.calibration import ConformalDetector
from skood.open_set import OpenSetClassifier
from tests.networks import MLP, SmallCNN, seeded
from tests.registry import DEFAULTS, each

FRAME = pd.DataFrame(np.zeros((24, 2)), columns=["a", "b"])
ROWS = torch.zeros(24, 4)


def quantised():
    """Return a quantised tensor; torch warns of these."""
    return torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8)


UNFIT = {
    "sparse": (ROWS.to_sparse, r"X is a sparse tensor.*\nPass X.to_dense"),
    "sparse rows": (ROWS.to_sparse_csr, r"X is a sparse tensor.*\nPass X.to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([ROWS[0]] * 24), "X is a nested tensor"),
    "meta": (lambda: torch.empty(24, 4, device="meta"), "on the meta device"),
    "quantised": (quantised, r"Pass X.dequantize"),
    "float8": (lambda: ROWS.to(torch.float8_e4m3fn), r"Pass X.float\(\)"),
    "sparse in a dict": (lambda: {"x": ROWS.to_sparse()}, r"X\['x'\] is a sparse tensor"),
    "words in a dict": (lambda: {"x": ["some text"] * 24}, r"X\['x'\] holds no numbers"),
    "complex": (lambda: np.full((24, 50), 1j), "Complex data not supported"),
    "text": (lambda: FRAME.assign(t="word"), r"columns without numbers: t\.\n"),
    "dates": (lambda: FRAME.assign(t=pd.Timestamp("2020-01-01")), "columns without numbers: t"),
    "categories": (lambda: FRAME.assign(t=pd.Categorical(["x"] * 24)), "without numbers: t"),
    "dicts": (lambda: [{"a": list(range(500))}] * 24, "list of 24 dicts"),
    "texts": (lambda: ["a text " * 50] * 24, r"X holds texts.*\nTokenize them"),
    "a text": (lambda: "text " * 500, r"X holds texts.*\nTokenize them"),
    "two inputs": (lambda: (torch.zeros(24, 4), torch.zeros(24, 4)), "X is a tuple of 2 arrays"),
    "an iterator": (lambda: iter([ROWS]), r"X is a list_iterator.*\npartial_fit"),
    "a lazy frame": (lambda: pl.from_pandas(FRAME).lazy(), r"Pass X.collect\(\)"),
    "a Series of arrays": (lambda: pd.Series(list(ROWS.numpy())), r"X is a Series .*\n.*np.stack"),
    "a column of arrays": (lambda: FRAME.assign(e=list(ROWS.numpy())), r"np.stack\(X\['e'\]\)"),
    "pairs": (lambda: [(ROWS, ROWS[0]), (ROWS, ROWS[0])], "X is a list whose rows are arrays"),
    "objects": (lambda: np.array([{"a": list(range(99))}] * 24), "real number, not 'dict'"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:Sparse CSR", "ignore:The PyTorch API")
@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_read_says_so(kind):
    """A list of dicts gave a message of 58 982 characters, with all rows."""
    make, message = UNFIT[kind]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        GMMDetector().fit(make())
    assert len(str(caught.value)) < 300 and str(caught.value).count("\n") < 3


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
def test_axes_in_another_order(as_tensor):
    """The remedy is named where it is known to work."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    X = rng.normal(size=(24, 3, 8, 9)).astype(np.float32)
    last = np.moveaxis(X, 1, -1)
    if as_tensor:
        X, last = torch.from_numpy(X), torch.from_numpy(last)
    remedy = r"\nIts channels are last.*X.(transpose|permute)\(0, 3, 1, 2\)"
    with pytest.raises(ValueError, match=remedy):
        GMMDetector(net).fit(last)
    with pytest.raises(ValueError, match=r"single image.*X\[None\]"):
        GMMDetector(net).fit(X[0])
    detector = GMMDetector(net, reg_covar=0.1).fit(X)
    with pytest.raises(ValueError, match=r"expecting \(3, 8, 9\), as in fit." + remedy):
        detector.score_samples(last)
    with pytest.raises(ValueError, match=r"\(8, 9\), but .* \(3, 8, 9\).*\nA single row is X\[No"):
        detector.score_samples(X[0])
    np.testing.assert_allclose(detector.score_samples(X[0][None]), detector.score_samples(X)[:1])


def test_pil_images():
    Image = pytest.importorskip("PIL.Image")
    images = [Image.new("RGB", (8, 8)) for _ in range(24)]
    net = seeded(SmallCNN)

    class Items(Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, i):
            return images[i], 0

    for X in (images, images[0]):
        with pytest.raises(TypeError, match=r"(?s)X holds PIL images.*transform\(image\)"):
            GMMDetector(net).fit(X)
    with pytest.raises(TypeError, match=r"(?s)items of Items make no batch.*ToTensor\(\)"):
        GMMDetector(net).fit(Items())


def test_rows_of_several_lengths():
    """Of texts that are tokenized and not padded, in the first batch or a later one."""
    rows = [{"input_ids": torch.ones(5 if i < 20 else i, dtype=torch.long)} for i in range(24)]
    for batch_size in (24, 2):
        with pytest.raises(ValueError, match=r"items of list make no batch.*\n.*collate_fn"):
            GMMDetector().fit(DataLoader(rows, batch_size))


@pytest.mark.parametrize("name", ["image", "x"])
def test_one_input_with_and_without_its_name(name, images):
    """What a processor gives, batches of it, and its array; any name that forward swallows."""

    class Swallows(SmallCNN):
        def forward(self, x=None, **kwargs):
            return super().forward(x)

    X, y = images
    rows = [{name: x, "labels": label} for x, label in zip(torch.from_numpy(X), y, strict=True)]
    expected = GMMDetector(seeded(SmallCNN)).fit(X, y).score_samples(X)
    loader, net = DataLoader(rows, 8), seeded(Swallows)
    for given in (X, {"x": X}, loader):
        detector = GMMDetector(net).fit(given, y)
        for again in (X, {"x": X}, loader, torch.from_numpy(X)):
            np.testing.assert_allclose(detector.score_samples(again), expected)
    with pytest.raises(
        ValueError,
        match=r"(?s)Swallows fails on two rows of X, pixels of.*\nX goes to forward by name",
    ):
        GMMDetector(net).fit({"pixels": X}, y)


def test_labels_of_pixels_for_a_method_on_rows(images):
    X, _ = images
    for detector in (GMMDetector(seeded(SmallCNN)), NNGuideDetector(seeded(SmallCNN))):
        with pytest.raises(ValueError, match="gives one score a row.\nPass one label"):
            detector.fit(X, np.zeros((24, 8, 8), dtype=int))


def test_a_recurrent_layer_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    with pytest.raises(TypeError, match="'lstm' of Net gives a tuple.*whose forward returns one"):
        GMMDetector(Net(), layer="lstm").fit(np.zeros((24, 5, 4), dtype=np.float32))


def test_parameters_that_are_no_numbers(iris):
    X, y = iris
    for detector in (NNGuideDetector(k=True), GMMDetector(batch_size=True)):
        with pytest.raises(ValueError, match="Got True instead"):
            detector.fit(X, y)
    with pytest.raises(ValueError, match="device='meta' holds no numbers"):
        GMMDetector(device="meta").fit(X, y)
    with pytest.raises(ValueError, match="n_bins=1000000000 is more than 100000"):
        NACDetector(n_bins=10**9).fit(X, y)


@pytest.mark.parametrize("n_labels", [5, 50])
@pytest.mark.parametrize("streamed", [False, True])
def test_calibration_labels_that_do_not_go_with_their_rows(n_labels, streamed, iris):
    X, y = iris
    X_cal = TensorDataset(torch.from_numpy(X[::5])) if streamed else X[::5]
    with pytest.raises(ValueError, match=f"X_cal has 30 rows and y_cal {n_labels} labels"):
        ConformalDetector(GMMDetector()).fit(X, y, X_cal, y[:n_labels])


def test_open_set_classifiers_that_cannot_work(iris):
    X, y = iris
    for model in (Ridge(), None):
        with pytest.raises(TypeError, match="Expected a torch module"):
            OpenSetClassifier(model, GMMDetector()).fit(X, y)
    model = OpenSetClassifier(LogisticRegression(), GMMDetector(), unknown_label=1)
    with pytest.raises(ValueError, match="unknown_label=1 is a class of y"):
        model.fit(X, y)


def test_batch_norm_of_the_batch(iris):
    """It takes two rows to normalise; the extractor probed one."""
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    net = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    assert FeatureExtractor(net).fit(iris[0]).transform(iris[0]).shape == (150, 8)


def test_a_network_that_draws_at_random(iris):
    class Net(nn.Module):
        def __init__(self, training):
            super().__init__()
            self.body, self.head, self.always = nn.Linear(4, 64), nn.Linear(64, 3), training

        def forward(self, x):
            return self.head(dropout(self.body(x), 0.5, self.always or self.training))

    with pytest.warns(UserWarning, match="draws random numbers in eval mode"):
        GMMDetector(Net(True)).fit(*iris)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GMMDetector(Net(False)).fit(iris[0])


@each(DEFAULTS)
def test_rows_beyond_the_dtype_of_the_network(detector, rng):
    """float64 rows are float32's to a network of float32, in which 1e200 is infinite."""
    X, y = rng.normal(size=(30, 5)), np.arange(30) % 3
    detector = clone(detector).set_params(model=seeded(MLP, in_features=5, classes=3))
    detector.partial_fit(X, y)
    expected = detector.score_samples(X)
    for method in (detector.partial_fit, detector.score_samples):
        with pytest.raises(ValueError, match="numbers beyond torch.float32"):
            method(X * 1e200)
    np.testing.assert_array_equal(detector.score_samples(X), expected)
