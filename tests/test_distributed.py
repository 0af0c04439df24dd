"""Fitting and scoring on dask collections, where their blocks are."""

import copy
import os
import re
import signal
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from skood import ASHDetector, FeatureExtractor, GMMDetector, NACDetector, NNGuideDetector
from tests.networks import MLP, Segmenter, SmallCNN, sample_inputs, seeded
from tests.registry import DEFAULTS, IN_NETWORKS, KINDS, each, name_of

dask = pytest.importorskip("dask")
pytest.importorskip("dask.distributed")
da, dd = pytest.importorskip("dask.array"), pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")

from skood import distributed  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:k=", "ignore:X has feature names"
)
METHODS = ["score_samples", "decision_function", "predict"]


@pytest.fixture(scope="module")
def client():
    """Return a client of two worker processes of one thread each."""
    from dask.distributed import Client, LocalCluster

    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**how, processes=True, memory_limit=None) as cluster, Client(cluster) as one:
        yield one


@pytest.fixture
def sync():
    """Compute in this thread, without a cluster."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def rows(rng):
    """Return 900 rows of three classes, float64, and their labels."""
    y = np.arange(900) % 3
    return rng.normal(size=(900, 6)) + 2 * np.eye(3, 6)[y], y


def assert_same(one, two, X, rtol=1e-9):
    """Check that two detectors score alike and have the same threshold and classes."""
    scale = float(np.abs(two.score_samples(X)).max())
    for method in ("score_samples", "decision_function"):
        results = [getattr(detector, method)(X) for detector in (one, two)]
        np.testing.assert_allclose(*results, rtol=rtol, atol=rtol * scale)
    assert one.offset_ == pytest.approx(two.offset_, rel=rtol, abs=rtol * scale)
    np.testing.assert_array_equal(
        *(getattr(detector, "known_classes_", None) for detector in (one, two))
    )


def assert_scores_lazily(detector, X, X_dask, rtol=1e-9):
    """Check that results are lazy, block by block, and those of the rows in memory."""
    lazy = [getattr(detector, method)(X_dask) for method in METHODS]
    for method, array, result in zip(METHODS, lazy, dask.compute(*lazy), strict=True):
        expected = getattr(detector, method)(X)
        assert isinstance(array, da.Array) and array.dtype == result.dtype == expected.dtype
        assert array.ndim == expected.ndim and array.chunks[0] == X_dask.chunks[0]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=rtol * scale)


@each(DEFAULTS, often=KINDS)
def test_on_features(detector, iris, client):
    """How states of parts come together is tested of all detectors in test_pieces."""
    X, y = iris
    # The head of model=None is cross-fitted for the threshold where all rows are in memory only.
    head = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
    detector = clone(detector).set_params(model=head)
    y = np.where(np.arange(150) % 10, y, -1)
    chunks = ((60, 1, 0, 89), (1, 3))
    one = clone(detector).fit(da.from_array(X, chunks), da.from_array(y, 30))
    assert_same(one, clone(detector).fit(X, y), X)
    assert_scores_lazily(one, X, da.from_array(X, ((60, 1, 0, 89), 4)))


@each(IN_NETWORKS, often=KINDS)
def test_in_networks(detector, client):
    net = seeded(SmallCNN)
    X, y = sample_inputs(net, 40), np.arange(40) % 4
    detector = clone(detector).set_params(model=net)
    X_dask = da.from_array(X, (15, 1, 8, 5))
    one = clone(detector).fit(X_dask, da.from_array(y, 15))
    assert_same(one, clone(detector).fit(X, y), X, rtol=1e-5)
    assert_scores_lazily(one, X, X_dask, rtol=1e-5)
    assert one.model is net and one._network.module is not net


def test_exact_methods(rows, client):
    """Sums and counts of blocks are those of all rows, and so is a bank of all."""
    X, y = rows
    X_dask = da.from_array(X, (70, 6))
    for detector, rtol in (
        (GMMDetector(), 1e-9),
        (NACDetector(MLP(6).double(), alpha=2.0, o_star=50), 0),
        (NNGuideDetector(MLP(6).double()), 1e-12),
    ):
        one, two = clone(detector).fit(X_dask, y), clone(detector).fit(X, y)
        results = one.score_samples(X), two.score_samples(X)
        np.testing.assert_allclose(*results, rtol=rtol, atol=rtol * np.abs(results[1]).max())
        assert one.offset_ == pytest.approx(two.offset_, rel=max(rtol, 1e-15))


class TestLabels:
    def test_kinds(self, rows, sync):
        X, y = rows
        X_dask = da.from_array(X, ((200, 0, 1, 699), 6))
        y = np.where(np.arange(900) < 250, -1, y)
        expected = GMMDetector().fit(X, y)
        for labels in (y, y.tolist(), pd.Series(y), da.from_array(y, 400)):
            assert_same(GMMDetector().fit(X_dask, labels), expected, X)
            assert GMMDetector().fit(X_dask, labels).score(X_dask, labels) == pytest.approx(
                expected.score(X, y)
            )
        assert_same(GMMDetector().fit(X_dask), GMMDetector().fit(X), X)

    def test_words(self, rows, client):
        X, y = rows
        words = ["abc"[c] if i % 9 else -1 for i, c in enumerate(y)]
        expected = GMMDetector().fit(X, words)
        X_dask = da.from_array(X, (300, 6))
        one = GMMDetector().fit(X_dask, words)
        assert_same(one, expected, X)
        assert one.score(X_dask, words) == pytest.approx(expected.score(X, words))
        texts = np.array(list("abc"))[y]
        assert_same(
            GMMDetector().fit(X_dask, da.from_array(texts, 300)), GMMDetector().fit(X, texts), X
        )

    def test_a_class_in_one_block(self, rows, client):
        X, y = rows
        y = np.sort(y)
        for detector in (GMMDetector(), GMMDetector(covariance_type="tied")):
            one = clone(detector).fit(da.from_array(X, (100, 6)), da.from_array(y, 100))
            assert_same(one, clone(detector).fit(X, y), X)

    def test_maps(self, sync):
        net = seeded(Segmenter)
        X = sample_inputs(net, 24)
        y = np.random.RandomState(0).choice([0, 1, 2, -1, 255], size=(24, 8, 8))
        detector = ASHDetector(net)
        X_dask = da.from_array(X, (7, 1, 8, 8))
        expected = clone(detector).fit(X, y)
        for labels in (y, da.from_array(y, (7, 8, 8)), da.from_array(y, (24, 4, 4))):
            one = clone(detector).fit(X_dask, labels)
            assert_same(one, expected, X, rtol=1e-5)
            assert one.score(X_dask, labels) == pytest.approx(expected.score(X, y))
        assert_scores_lazily(one, X, X_dask, rtol=1e-5)


class TestFrames:
    @pytest.fixture(params=[True, False], ids=["arrow", "objects"])
    def frame(self, request, rows):
        """Return a frame and its dask twin, of four partitions of unknown lengths."""
        X, y = rows
        frame = pd.DataFrame(X, columns=list("uvwxyz"))
        frame["label"] = np.array(["cat", "dog", "cow"])[y]
        with dask.config.set({"dataframe.convert-string": request.param}):
            yield frame, dd.from_pandas(frame, npartitions=4)

    def test_fit(self, frame, client):
        frame, frames = frame
        X, X_dask = frame.drop(columns="label"), frames.drop(columns="label")
        expected = GMMDetector().fit(X, frame["label"])
        one = GMMDetector().fit(X_dask, frames["label"])
        assert_same(one, expected, X)
        assert one.feature_names_in_.tolist() == list("uvwxyz")
        scores = one.score_samples(X_dask)
        assert isinstance(scores, da.Array) and scores.numblocks == (4,)
        np.testing.assert_allclose(scores.compute(), expected.score_samples(X), rtol=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            labels = frames["label"].replace("cow", "yak")
            score = one.score(X_dask, labels)
        assert score == pytest.approx(expected.score(X, frame["label"].replace("cow", "yak")))

    def test_empty_partitions(self, rows, client):
        X, y = rows
        X[225:450, 1] = -50
        frame = pd.DataFrame(X).rename(columns=str).assign(label=y)
        frames = dd.from_pandas(frame, npartitions=4)
        some, few = frame[frame["1"] > -9], frames[frames["1"] > -9]
        X, X_dask = some.drop(columns="label"), few.drop(columns="label")
        one = GMMDetector().fit(X_dask, few["label"])
        assert_same(one, GMMDetector().fit(X, some["label"]), X)
        np.testing.assert_array_equal(one.predict(X_dask).compute(), one.predict(X))

    def test_features(self, frame, client):
        frame, frames = frame
        net = seeded(MLP, 6).double()
        X, X_dask = frame.drop(columns="label"), frames.drop(columns="label")
        pipe = make_pipeline(FeatureExtractor(net), GMMDetector())
        one = clone(pipe).fit(X_dask, frames["label"])
        two = clone(pipe).fit(X, frame["label"])
        np.testing.assert_allclose(
            one.score_samples(X_dask).compute(), two.score_samples(X), rtol=1e-9
        )

    def test_what_is_refused(self, frame, sync):
        frame, frames = frame
        X = frames.drop(columns="label")
        with pytest.raises(ValueError, match="unknown lengths"):
            GMMDetector().fit(X, frame["label"])
        with pytest.raises(ValueError, match="feature names"):
            GMMDetector().fit(X).score_samples(X.rename(columns={"u": "other"}))
        with pytest.raises(ValueError, match="2-dimensional"):
            GMMDetector().fit(frames["u"])


def test_partial_fit_gathers_nothing(rows):
    with pytest.raises(TypeError, match="fit learns from all blocks"):
        GMMDetector().partial_fit(da.from_array(rows[0], (100, 6)))


class TestBlocks:
    def test_of_unknown_lengths(self, rows, client):
        X, y = rows
        keep = X[:, 0] > 0
        X_dask, y_dask = da.from_array(X, (130, 6)), da.from_array(y, 130)
        mask = X_dask[:, 0] > 0
        some, labels = X_dask[mask], y_dask[mask]
        one = GMMDetector().fit(some, labels)
        assert_same(one, GMMDetector().fit(X[keep], y[keep]), X)
        scores = one.score_samples(some)
        assert np.isnan(scores.shape[0])
        np.testing.assert_allclose(scores.compute(), one.score_samples(X[keep]), rtol=1e-9)

    @pytest.mark.parametrize("detector", [NNGuideDetector(), GMMDetector()], ids=name_of)
    def test_of_ood_rows_alone(self, detector, rows, client):
        X, y = rows
        head = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
        detector = clone(detector).set_params(model=head)
        y = np.where((np.arange(900) < 300) | (np.arange(900) >= 800), -2, y)
        one = clone(detector).fit(da.from_array(X, (100, 6)), da.from_array(y, 100))
        assert_same(one, clone(detector).fit(X, y), X)

    @given(cuts=st.lists(st.integers(0, 150), max_size=8).map(sorted), with_labels=st.booleans())
    @settings(max_examples=25, deadline=None)
    def test_any(self, cuts, with_labels):
        X, y = load_iris(return_X_y=True)
        y = y if with_labels else None
        chunks = (tuple(np.diff([0, *cuts, 150]).tolist()), 4)
        X_dask = da.from_array(X, chunks)
        with dask.config.set(scheduler="synchronous"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for detector, rtol in (
                (GMMDetector(), 1e-9),
                (NACDetector(seeded(MLP, 4).double(), alpha=2.0, o_star=20), 1e-12),
            ):
                one, two = clone(detector).fit(X_dask, y), clone(detector).fit(X, y)
                assert_same(one, two, X, rtol)
                assert one.predict(X_dask).chunks == X_dask.chunks[:1]

    def test_are_read_when_they_are_computed(self, rows, sync):
        X, y = rows
        read = []

        def note(block, block_info=None):
            read.append(block_info[0]["chunk-location"][0])
            return block

        X_dask = da.from_array(X, (100, 6)).map_blocks(note, dtype=X.dtype, meta=X[:0])
        pipe = make_pipeline(FeatureExtractor(seeded(MLP, 6).double()), GMMDetector())
        pipe.fit(X_dask, y)
        # For the network of each of the two the first block, then each once.
        assert sorted(read) == [0, 0, *range(9)]
        read.clear()
        scores = [getattr(pipe, method)(X_dask) for method in METHODS]
        assert read == []
        scores[0][:150].compute()
        assert sorted(read) == [0, 1]
        read.clear()
        pipe.score(X_dask, np.where(y == 0, -1, y))
        assert sorted(read) == list(range(9))
        read.clear()
        # A head is fitted to a sample of all blocks.
        NNGuideDetector().fit(X_dask, y)
        assert sorted(read) == [0, *sorted(2 * [*range(9)])]

    def test_graphs_are_small(self, sync):
        X = da.zeros((50_000, 4), chunks=(10, 4))
        detector = GMMDetector().fit(np.random.RandomState(0).normal(size=(50, 4)))
        (scores,) = dask.optimize(detector.score_samples(X))
        # Of each block what makes it and what scores it, and the detector.
        assert len(scores.__dask_graph__()) <= 2 * 5000 + 3


class TestWhatMoves:
    def test_shares_of_samples(self, rng, monkeypatch, sync):
        """A block gives its share of the bank and of the rows that set the threshold."""
        X = rng.normal(size=(100_000, 4))
        learned, alive, most = [], weakref.WeakSet(), [0]

        def noting(function):
            def noted(*args):
                alive.add(result := function(*args))
                most[0] = max(most[0], len(alive))
                if function.__name__ == "learn_block":
                    learned.append((result.state.n_kept, result.sample.n_kept))
                return result

            return noted

        for name in ("learn_block", "merge_blocks"):
            monkeypatch.setattr(distributed, name, noting(getattr(distributed, name)))
        net = seeded(MLP, 4).double()
        detector = NNGuideDetector(net, k=3, bank_size=100, random_state=0)
        detector.fit(da.from_array(X, (500, 4)))
        banks, samples = np.transpose(learned)
        # Of 100 rows, 0.5 on average, and of 20 000, 100, with room for chance.
        assert len(learned) == 200 and banks.max() <= 10 and samples.max() <= 150
        assert len(detector.scorer_.bank) == 100
        # What was merged is let go: of 200 blocks few are held at a time.
        assert most[0] <= 3 * distributed.FAN_IN

    def test_between_workers(self, client):
        """Of 13 MB of rows no message holds more than samples and a few blocks do."""

        def log(dask_worker):
            return [entry["total"] for entry in dask_worker.transfer_incoming_log]

        before = client.run(log)
        X = da.random.default_rng(0).normal(size=(200_000, 8), chunks=(5000, 8))
        detector = NNGuideDetector(seeded(MLP, 8).double(), k=3, bank_size=100, random_state=0)
        detector.fit(X)
        sizes = [
            size for name, all_ in client.run(log).items() for size in all_[len(before[name]) :]
        ]
        assert 1e4 < max(sizes) < 6e6

    def test_networks_are_loaded_once(self, rows, client, tmp_path):
        X, y = rows
        net, path = Counted(tmp_path / "loads").double(), tmp_path / "loads"
        # Its keys are new: nothing that a test before has left is found.
        detector = GMMDetector(net)
        loads = []
        for size in (300, 20):
            detector.fit(da.from_array(X, (size, 6)), y)
            loads.append(count_loads(path))
            detector.score_samples(da.from_array(X, (size, 6))).compute()
            loads.append(count_loads(path))
        assert loads[1] and all(max(counts.values()) == 1 for counts in loads), loads


def count_loads(path):
    """Return how often each process has loaded a `Counted`, and forget it."""
    processes = path.read_text().split()
    path.unlink()
    return {process: processes.count(process) for process in processes}


class Counted(MLP):
    """Notes each time that it is read from a pickle."""

    def __init__(self, path):
        super().__init__(6)
        self.path = path

    def __reduce__(self):
        return load_counted, (self.path, self.__dict__)

    def __deepcopy__(self, memo):
        return counted({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})


def counted(state):
    """Return a `Counted` of this state."""
    net = object.__new__(Counted)
    net.__dict__.update(state)
    return net


def load_counted(path, state):
    """Return a `Counted` and note it."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return counted(state)


class TestSamples:
    @pytest.mark.parametrize("size", [100, 0.25])
    def test_banks(self, size, rows, client):
        X, y = rows
        y = np.where(np.arange(900) % 9, y, -1)
        detector = NNGuideDetector(seeded(MLP, 6).double(), k=3, bank_size=size, random_state=0)
        X_dask = da.from_array(X, (70, 6))
        one, two, other = (
            clone(detector).set_params(random_state=seed).fit(X_dask, y) for seed in (0, 0, 1)
        )
        assert len(one.scorer_.bank) == (100 if size == 100 else 200)
        with dask.config.set(scheduler="synchronous"):
            three = clone(detector).fit(X_dask, y)
        for same in (two, three):
            np.testing.assert_array_equal(same.scorer_.bank, one.scorer_.bank)
            assert same.offset_ == one.offset_
        assert not torch.equal(other.scorer_.bank, one.scorer_.bank)

    def test_of_fewer_rows_than_expected(self, rng, sync):
        """Nine of ten rows are OOD: what blocks kept does not suffice, and they are read again."""
        X, y, read = rng.normal(size=(40_000, 4)), np.full(40_000, -1), []
        y[::10] = 0

        def note(block, block_info=None):
            read.append(block_info[0]["chunk-location"][0])
            return block

        X_dask = da.from_array(X, (4000, 4)).map_blocks(note, dtype=X.dtype, meta=X[:0])
        net = seeded(MLP, 4).double()
        detector = NNGuideDetector(net, k=3, bank_size=500, random_state=0).fit(X_dask, y)
        assert len(detector.scorer_.bank) == 500
        assert sorted(read) == [0, *sorted(2 * [*range(10)])]

    def test_models_that_fit_trains(self, rows, client):
        X, y = rows
        X_dask = da.from_array(X, (200, 6))
        detector = NNGuideDetector(LogisticRegression())
        one, two = clone(detector).fit(X_dask, y), clone(detector).fit(X, y)
        assert_same(one, two, X)
        assert one.model_.n_iter_ == two.model_.n_iter_
        extractor = FeatureExtractor(LogisticRegression())
        np.testing.assert_array_equal(
            extractor.fit(X_dask, y).transform(X_dask).compute(), extractor.fit(X, y).transform(X)
        )


class TestErrors:
    def test_of_labels(self, rows, sync):
        X, y = rows
        X_dask = da.from_array(X, (100, 6))
        unknown = X_dask[X_dask[:, 0] > -99]
        for X_bad, labels, message in (
            (X_dask, y[:-1], "inconsistent numbers of samples"),
            (X_dask, da.from_array(y[:-1]), "inconsistent numbers of samples"),
            (unknown, y, "unknown lengths"),
            (unknown, da.from_array(y, 300), "9 blocks and y has 3"),
            (unknown, da.from_array(y, ((99, 101, *[100] * 7),)), "inconsistent numbers"),
            (unknown, da.from_array(y, ((101, 99, *[100] * 7),)), "inconsistent numbers"),
            (X_dask, np.full(900, -1), "in-distribution"),
            (X_dask, y / 7, "[Uu]nknown label type"),
        ):
            with pytest.raises(ValueError, match=message):
                GMMDetector().fit(X_bad, labels)
        with pytest.raises(ValueError, match="score needs y"):
            GMMDetector().fit(X_dask).score(X_dask)

    def test_of_rows(self, rows, client):
        X, y = rows
        detector = GMMDetector().fit(X, y)
        before = dict(vars(detector))
        bad = X.copy()
        bad[500, 3] = np.nan
        X_bad = da.from_array(bad, (100, 6))
        for X_, message in (
            (X_bad, "X contains NaN"),
            (da.from_array(X[:1]), "minimum of 2"),
            (da.from_array(X)[:0], "minimum of 2"),
            (da.from_array(X[0]), "Expected 2D"),
        ):
            with pytest.raises(ValueError, match=message):
                detector.fit(X_)
            assert vars(detector).keys() == before.keys()
            assert all(vars(detector)[name] is value for name, value in before.items())
        with pytest.raises(ValueError, match="X contains NaN"):
            detector.predict(X_bad).compute()
        # What can be told without rows is told at once.
        with pytest.raises(ValueError, match="5 features"):
            detector.predict(X_bad[:, :5])
        with pytest.raises(NotFittedError):
            GMMDetector().predict(X_bad)
        with pytest.raises(ValueError, match="covariance_type"):
            GMMDetector(covariance_type="other").fit(X_bad)

    def test_of_collections(self, rows):
        bag = pytest.importorskip("dask.bag").from_sequence(range(9))
        for X in (bag, dask.delayed(rows[0])):
            for method in (GMMDetector().fit, GMMDetector().fit(rows[0]).predict):
                with pytest.raises(TypeError, match="must be a dask array or dataframe"):
                    method(X)


def kill_once(block, flag, block_info):
    """Kill the process that computes the fourth block, the first time."""
    if block_info[0]["chunk-location"][0] == 3 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.mark.nightly
def test_a_worker_is_killed(rows, client, tmp_path):
    X, y = rows
    detector = NNGuideDetector(seeded(MLP, 6).double(), k=3, bank_size=90, random_state=0)
    X_dask = da.from_array(X, (100, 6))

    def deadly(name):
        return X_dask.map_blocks(kill_once, tmp_path / name, dtype=X.dtype, meta=X[:0])

    expected = clone(detector).fit(X_dask, y)
    one = clone(detector).fit(deadly("fit"), y)
    np.testing.assert_array_equal(one.scorer_.bank, expected.scorer_.bank)
    assert one.offset_ == expected.offset_
    scores = one.score_samples(deadly("score")).compute()
    np.testing.assert_array_equal(scores, one.score_samples(X_dask).compute())
    assert (tmp_path / "fit").exists() and (tmp_path / "score").exists()


def test_search(client, images):
    X, y = images
    net = seeded(SmallCNN)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    y = np.where(np.arange(len(y)) % 3, y, -1)
    search = GridSearchCV(NNGuideDetector(net), {"k": [1, 5]}, cv=folds)
    expected = clone(search).fit(X, y).cv_results_["mean_test_score"]
    with joblib.parallel_config("dask"):
        found = clone(search).fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected)


@each(IN_NETWORKS, often=KINDS)
def test_threads(detector):
    """Four threads share one detector and its network."""
    net = seeded(SmallCNN)
    X, y = sample_inputs(net, 96), np.arange(96) % 4
    detector = clone(detector).set_params(model=net)
    X_dask = da.from_array(X, (4, 1, 8, 8))
    with dask.config.set(scheduler="threads", num_workers=4):
        one = clone(detector).fit(X_dask, y)
        assert_scores_lazily(one, X, X_dask, rtol=1e-5)
    with dask.config.set(scheduler="synchronous"):
        two = clone(detector).fit(X_dask, y)
    np.testing.assert_array_equal(one.score_samples(X), two.score_samples(X))
    # How much rounding changes scores, by which thresholds are lowered, is measured on the block
    # that comes first.
    assert_same(one, two, X, rtol=1e-6)


@pytest.mark.cuda
def test_workers_compute_on_their_gpu(rows, monkeypatch, sync):
    X, y = rows
    devices, check = [], GMMDetector._check_fits

    def note(self, source):
        devices.append(self._network.device.type)
        check(self, source)

    monkeypatch.setattr(GMMDetector, "_check_fits", note)
    X_dask = da.from_array(X, (300, 6))
    one = GMMDetector(seeded(MLP, 6).double()).fit(X_dask, y)
    assert devices == ["cuda"] * 3 and one._network.device.type == "cpu"
    scores = one.score_samples(X_dask).compute()
    assert devices[3:].count("cuda") == 3
    np.testing.assert_allclose(scores, one.score_samples(X), rtol=1e-9)


def run(script, *args):
    """Run a script in a process of its own."""
    command = [sys.executable, "-W", "ignore", script, *args]
    # Spark's workers run this Python too.
    how = {"cwd": script.parent, "env": {**os.environ, "PYSPARK_PYTHON": sys.executable}}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_network_of_the_script(client, tmp_path):
    """Workers cannot import its class."""
    script = tmp_path / "script.py"
    script.write_text("""
import sys
import numpy as np, torch
from skood import GMMDetector, NNGuideDetector

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.body(x).relu())

X = np.random.default_rng(0).normal(size=(60, 4))
net = Net().double()
two = GMMDetector(net).fit(X)
# Who does not use dask does not import it.
assert "dask" not in sys.modules and "distributed" not in sys.modules

from dask import array
from dask.distributed import Client

with Client(sys.argv[1]):
    X_dask = array.from_array(X, (15, 4))
    one = GMMDetector(net).fit(X_dask)
    assert np.allclose(one.score_samples(X_dask).compute(), two.score_samples(X), rtol=1e-9)
""")
    run(script, client.scheduler.address)


@pytest.mark.parametrize("library", ["ray", "pyspark"])
def test_page(library, tmp_path):
    """What the page on clusters says of other libraries runs, and gives what one fit does."""
    pytest.importorskip(library)
    page = (Path(__file__).parents[1] / "docs" / "guide" / "clusters.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if f"import {library}" in block]
    script = tmp_path / "script.py"
    script.write_text(block)
    run(script)
