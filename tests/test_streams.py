"""X as a Dataset or DataLoader."""

import logging
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from skood import ASHDetector, FeatureExtractor, GMMDetector, LayersDetector, NACDetector
from skood.ensemble import EnsembleDetector
from tests.networks import Segmenter, SmallCNN, sample_inputs, seeded
from tests.registry import DEFAULTS, IN_NETWORKS, KINDS, each, name_of

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed", "ignore:k=")


class Items(IterableDataset):
    """Rows without a length."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def __iter__(self):
        return iter(zip(*self.arrays, strict=True))


class Named(Dataset):
    """Rows as dicts, with labels that are words."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return {"x": self.X[i], "labels": "abcd"[self.y[i]]}


def as_stream(kind, X, y):
    """Return rows and labels as a Dataset or DataLoader."""
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    return {
        "Dataset": data,
        "DataLoader": DataLoader(data, batch_size=7),
        "IterableDataset": Items(X, y),
        "loader of IterableDataset": DataLoader(Items(X, y), batch_size=5),
        "workers": DataLoader(data, batch_size=11, num_workers=1),
    }[kind]


STREAMS = ["Dataset", "DataLoader", "IterableDataset", "loader of IterableDataset"]


def cases():
    """Return detectors in networks and streams: of a kind of detector one gets all in CI."""
    for detector in IN_NETWORKS:
        for kind in STREAMS:
            often = type(detector) in KINDS or kind == "DataLoader"
            marks = [] if often else [pytest.mark.nightly]
            yield pytest.param(detector, kind, id=f"{name_of(detector)}-{kind}", marks=marks)


@pytest.mark.parametrize(("detector", "kind"), cases())
def test_a_stream_gives_what_the_array_gives(detector, kind, images):
    """OOD rows among it; whatever the batches are."""
    X, y = images
    # In float64: in float32 batches of other sizes round otherwise, and SCALE's exponential more.
    X, y = X.astype(np.float64), np.where(y == 3, -1, y)
    detector = clone(detector).set_params(model=seeded(SmallCNN).double(), batch_size=7)
    stream = as_stream(kind, X, y)
    expected = clone(detector).fit(X, y)
    state = torch.get_rng_state()
    found = clone(detector).fit(stream)
    if "loader" not in kind.lower():
        assert torch.equal(torch.get_rng_state(), state)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-6)
    np.testing.assert_array_equal(found.known_classes_, [0, 1, 2])
    assert found.n_features_in_ == expected.n_features_in_
    for method in ("score_samples", "decision_function", "predict"):
        result, wanted = getattr(found, method)(stream), getattr(expected, method)(X)
        # Thresholds allow for rounding as it is measured on the first batch.
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
        assert result.dtype == wanted.dtype
    assert found.score(stream) == pytest.approx(expected.score(X, y))
    # Labels that are given come first.
    other = np.arange(len(y)) % 2
    assert clone(detector).fit(stream, other).known_classes_.tolist() == [0, 1]
    assert found.score(stream, other - 1) == pytest.approx(expected.score(X, other - 1))


@each(DEFAULTS)
def test_streams_of_features(detector, iris):
    X, y = iris
    expected = clone(detector).fit(X, y)
    found = clone(detector).fit(as_stream("DataLoader", X, y))
    np.testing.assert_allclose(found.score_samples(X), expected.score_samples(X), rtol=1e-9)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-9)


def test_worker_processes(images):
    X, y = images
    loader = as_stream("workers", X, y)
    detector = NACDetector(seeded(SmallCNN)).fit(loader)
    np.testing.assert_allclose(detector.score_samples(loader), detector.score_samples(X))


def test_one_pass_over_a_dataset(images):
    """`fit` reads each item once; so does scoring."""
    X, y = images
    read = []

    class Counting(Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            read.append(i)
            return X[i], y[i]

    for detector in IN_NETWORKS:
        detector = clone(detector).set_params(model=seeded(SmallCNN), batch_size=7)
        for method in (detector.fit, detector.score_samples):
            read.clear()
            method(Counting())
            assert read == list(range(len(X)))


def test_dicts_and_words(images):
    X, y = images

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = seeded(SmallCNN)

        def forward(self, x):
            return self.net(x)

    net = Net()
    found = GMMDetector(net, reg_covar=0.1).fit(Named(X, y))
    expected = GMMDetector(net, reg_covar=0.1).fit({"x": X}, y)
    assert found.known_classes_.tolist() == ["a", "b", "c", "d"]
    np.testing.assert_allclose(
        found.score_samples(Named(X, y)), expected.score_samples({"x": X}), rtol=1e-5
    )


def test_segmentation_data(rng):
    """Items (image, mask): 255 is ignored and negative is OOD."""
    net = seeded(Segmenter)
    X = sample_inputs(net, 24)
    y = rng.choice([0, 1, 255, -1], size=(24, 8, 8))
    stream = as_stream("DataLoader", X, y)
    found = ASHDetector(net).fit(stream)
    expected = ASHDetector(net).fit(X, y)
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-6)
    assert found.score(stream) == pytest.approx(expected.score(X, y))
    assert found.predict(stream).shape == (24, 8, 8)


def test_models_to_be_fitted_take_streams(iris):
    from skorch import NeuralNetClassifier

    X, y = iris
    X = X.astype(np.float32)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=2,
        train_split=None,
        verbose=0,
    )
    stream = as_stream("DataLoader", X, np.where(y == 2, -1, y))
    found = GMMDetector(net, reg_covar=0.1).fit(stream)
    assert hasattr(found, "model_")
    assert found.known_classes_.tolist() == [0, 1]
    assert np.isfinite(found.score_samples(X)).all()


def test_features_of_a_stream(images):
    X, y = images
    stream = as_stream("DataLoader", X, y)
    extractor = FeatureExtractor(seeded(SmallCNN), batch_size=7)
    expected = extractor.fit_transform(X)
    np.testing.assert_allclose(extractor.fit(stream).transform(stream), expected, rtol=1e-5)
    pipeline = make_pipeline(extractor, GMMDetector(reg_covar=0.1)).fit(stream, y)
    assert 0 <= pipeline.score(stream, np.where(y == 0, -1, y)) <= 1


def test_progress_is_shown_on_a_terminal_only(images, capsys, monkeypatch):
    X, y = images
    detector = ASHDetector(seeded(SmallCNN), verbose=True, batch_size=5).fit(X, y)
    detector.score_samples(X)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for fit in (detector.fit, detector.partial_fit):
        fit(X, y)
        shown = capsys.readouterr().err
        assert "ASHDetector" in shown and "100%" in shown
    detector.score_samples(X)
    assert "ASHDetector: 100%" in capsys.readouterr().err
    detector.set_params(verbose=False).score_samples(X)
    assert capsys.readouterr().err == ""


def test_what_was_chosen_is_logged(images, caplog):
    X, y = images
    with caplog.at_level("INFO", "skood"):
        LayersDetector(seeded(SmallCNN)).fit(X, y)
    text = caplog.text
    assert "LayersDetector: <SmallCNN on cpu, torch.float32, head 'fc'>" in text
    assert f"bank of {len(X)} rows, index='exact'" in text and f"fitted to {len(X)} rows" in text
    # A library is silent unless it is asked.
    assert logging.NullHandler in map(type, logging.getLogger("skood").handlers)


class Ragged(IterableDataset):
    """Batches of another width each."""

    def __iter__(self):
        return iter([np.zeros(4), np.zeros(4), np.zeros(5), np.zeros(5)])


@each(DEFAULTS)
def test_bad_streams(detector, images):
    X, y = images
    net = seeded(SmallCNN)
    detector = clone(detector).set_params(model=net)
    data = as_stream("Dataset", X, y)
    missing = torch.from_numpy(np.where(np.arange(24)[:, None, None, None] == 20, np.nan, X))
    for bad, message in [
        (Subset(data, []), "without a single batch"),
        (Subset(data, [0]), r"Found 1 (in-distribution )?sample\(s\)"),
        (TensorDataset(*[torch.zeros(4, 2)] * 3), "batches of X have 3 entries"),
        (TensorDataset(missing), "NaN"),
        (DataLoader(Ragged(), batch_size=2), "rows of shape|X has 5 features"),
        (as_stream("Dataset", X, np.full(24, -1)), "Found 0 in-distribution"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            given = nn.Linear(4, 3) if "shape" in message else net
            clone(detector).set_params(model=given).fit(bad)
    with pytest.raises(ValueError, match="24 rows and 10 labels"):
        clone(detector).fit(data, y[:10])
    with pytest.raises(ValueError, match="y has 48 labels, but X gives 24 rows"):
        clone(detector).fit(data, np.r_[y, y])
    fitted = clone(detector).fit(data)
    with pytest.raises(ValueError, match="score needs y"):
        fitted.score(TensorDataset(torch.from_numpy(X)))
    with pytest.raises(ValueError, match=re.escape("(1, 8, 8)")):
        fitted.score_samples(TensorDataset(torch.zeros(4, 1, 4, 4)))
    shuffled = DataLoader(data, batch_size=5, shuffle=True)
    with pytest.warns(UserWarning, match="The DataLoader shuffles"):
        fitted.score_samples(shuffled)
    assert fitted.score(shuffled, None) == pytest.approx(fitted.score(X, y), nan_ok=True)


class Columns:
    """What skood asks of a Dataset of Hugging Face: named columns, and lists until formatted."""

    def __init__(self, columns, kind=None):
        self.columns, self.format = columns, {"type": kind}

    @property
    def column_names(self):
        return list(self.columns)

    @property
    def features(self):
        return dict.fromkeys(self.columns)

    def with_format(self, kind):
        return Columns(self.columns, kind)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        rows = {name: values[i] for name, values in self.columns.items()}
        if self.format["type"] == "torch":
            return {name: torch.as_tensor(values) for name, values in rows.items()}
        return {name: np.asarray(values).tolist() for name, values in rows.items()}


def hugging_face(**columns):
    """Return a Dataset of the package itself."""
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({n: values.tolist() for n, values in columns.items()})


@pytest.mark.filterwarnings("ignore:y holds no")
@pytest.mark.parametrize("make", [lambda **columns: Columns(columns), hugging_face])
def test_datasets_of_hugging_face(make, images, iris):
    """Images or features beside labels; what is one column is no dict of inputs."""
    pictures = images[0], np.where(images[1] == 3, -1, images[1])
    on_pictures = GMMDetector(seeded(SmallCNN), reg_covar=0.1)
    for detector, (X, y) in [(on_pictures, pictures), (GMMDetector(), iris)]:
        data = make(image=X, label=y)
        expected = clone(detector).fit(X, y)
        for stream in (data, DataLoader(data.with_format("torch"), batch_size=7)):
            found = clone(detector).fit(stream)
            assert found.known_classes_.tolist() == [0, 1, 2]
            np.testing.assert_allclose(
                found.score_samples(stream), expected.score_samples(X), rtol=1e-4
            )
            assert found.score(stream) == pytest.approx(expected.score(X, y), nan_ok=True)
    with pytest.raises(TypeError, match="rows of the Dataset are lists"):
        GMMDetector().fit(DataLoader(data, batch_size=7))


def test_a_dict_of_splits():
    class DatasetDict(dict):
        column_names = ()

    with pytest.raises(TypeError, match=r"DatasetDict of the splits train, test.*X\['train'\]"):
        GMMDetector().fit(DatasetDict(train=1, test=2))


def test_metadata_beside_labels(iris):
    """The remedy that the message names works."""
    from torch.utils.data import default_collate

    X, y = map(torch.from_numpy, iris)
    data = TensorDataset(X, y, torch.zeros(150, 3))
    with pytest.raises(TypeError, match=r"3 entries.*\n.*collate_fn=.*row\[:2\]"):
        GMMDetector().fit(data)
    collate = lambda rows: default_collate([row[:2] for row in rows])  # noqa: E731
    found = GMMDetector().fit(DataLoader(data, batch_size=7, collate_fn=collate))
    assert found.offset_ == pytest.approx(GMMDetector().fit(*iris).offset_)


def random_loaders(data):
    """Yield loaders that give the rows of a Dataset in a random order."""
    n = len(data)
    batches = BatchSampler(RandomSampler(data), 7, drop_last=False)
    yield DataLoader(data, batch_size=7, shuffle=True)
    yield DataLoader(data, batch_size=7, sampler=SubsetRandomSampler(range(n)))
    yield DataLoader(data, batch_size=7, sampler=WeightedRandomSampler(np.ones(n), n))
    yield DataLoader(data, batch_sampler=batches)
    yield DataLoader(data, batch_size=None, sampler=batches)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    yield DataLoader(data, batch_size=7, sampler=sampler)


def test_loaders_that_draw_at_random(iris):
    """Scores come in another order, and detectors that each read X would score other rows."""
    X, y = iris
    data = as_stream("Dataset", X, y)
    detector = GMMDetector().fit(X, y)
    whole = [("a", GMMDetector(nn.Linear(4, 3).double())), ("b", GMMDetector())]
    ensemble = EnsembleDetector(whole).fit(data)
    loaders = list(random_loaders(data))
    for loader in loaders:
        with pytest.warns(UserWarning, match="The DataLoader shuffles"):
            detector.score_samples(loader)
        with pytest.raises(ValueError, match="y cannot be in the order of its rows"):
            detector.score(loader, y)
        with pytest.raises(ValueError, match="would see its rows in another order"):
            ensemble.score_samples(loader)
        with pytest.raises(ValueError, match="would see its rows in another order"):
            clone(ensemble).fit(loader)
    assert len(loaders) == 6


def test_rows_that_a_loader_drops(iris):
    data = as_stream("Dataset", *iris)
    loader = DataLoader(data, batch_size=40, drop_last=True)
    detector = GMMDetector().fit(data)
    with pytest.warns(UserWarning, match="drop_last=True: 30 rows of X"):
        assert len(detector.score_samples(loader)) == 120
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.score_samples(DataLoader(data, batch_size=50, drop_last=True))
