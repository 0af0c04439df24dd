"""What learning accumulates: states, keys of rows, samples, folds, and scorers of several parts."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import kstest
from sklearn.base import clone
from sklearn.datasets import load_iris
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skood
from skood import GMMDetector, NNGuideDetector
from skood.base import BaseDetector
from skood.files import values
from skood.learning.keys import entry_keys, row_keys
from skood.learning.learning import LearnedModule, LearningScorer
from skood.learning.moments import ClassMoments, FoldMoments
from skood.learning.reservoir import Reservoir
from skood.learning.states import Extremes, LogSums, State, StateList
from tests.networks import seeded

pytestmark = pytest.mark.filterwarnings("ignore:X has feature names")
some = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
N_ROWS, N_FEATURES = 60, 5


def data(dtype=np.float64):
    """Return rows of three classes, half of them copies of others, and their labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N_ROWS)
    X = rng.normal(size=(N_ROWS, N_FEATURES)).astype(np.float32) + 2 * y[:, None]
    twins = rng.integers(0, N_ROWS // 2, N_ROWS // 2)
    X[N_ROWS // 2 :] = X[twins]
    y[N_ROWS // 2 : -5] = y[twins[:-5]]
    return X.astype(dtype), y


# -- states


class TestStates:
    @pytest.fixture
    def logs(self):
        rng = np.random.default_rng(0)
        return torch.from_numpy(300 * rng.normal(size=(50, 4))), torch.from_numpy(
            rng.integers(0, 3, 50)
        )

    @staticmethod
    def filled(make, values, groups, cuts=(0, 7, 7, 30, 50)):
        """Return the state of rows that come in pieces, which are merged."""
        whole = make()
        for start, stop in zip(cuts, cuts[1:], strict=False):
            part = make()
            part.update(values[start:stop], groups[start:stop])
            whole.merge(pickle.loads(pickle.dumps(part)))
        return whole

    def test_extremes(self, logs):
        """The two least and largest, equal ones and groups of one row and of none among them."""
        values, groups = logs[0].clamp(-300, 300), logs[1].clone()
        groups[-1] = 3
        found = self.filled(lambda: Extremes(5, 4, values.dtype, "cpu"), values, groups)
        for k in range(3):
            ordered = values[groups == k].sort(0).values
            assert torch.equal(found.low[k], ordered[:2])
            assert torch.equal(found.high[k], ordered[-2:].flip(0))
        assert (ordered[0] == ordered[1]).any()
        assert torch.equal(found.low[3, 0], values[-1]) and torch.equal(
            found.high[3, 0], values[-1]
        )
        assert (found.low[3, 1] == torch.inf).all() and (found.high[3, 1] == -torch.inf).all()
        assert (found.low[4] == torch.inf).all() and (found.high[4] == -torch.inf).all()

    def test_log_sums(self, logs):
        """Of e⁻¹⁰⁰⁰ and e¹⁰⁰⁰, and of zeros."""
        values, groups = logs[0].clone(), logs[1]
        values[::9, 1] = -torch.inf
        values[:, 2] = -torch.inf
        found = self.filled(lambda: LogSums(4, 4, "cpu"), values, groups)
        for k in range(3):
            expected = logsumexp(values[groups == k].numpy(), axis=0)
            np.testing.assert_allclose(found.values[k].numpy(), expected, rtol=1e-14)
        assert found.values[3].tolist() == [-np.inf] * 4

    def test_new_classes(self, logs):
        values, groups = logs
        for make in (
            lambda n: Extremes(n, 4, values.dtype, "cpu", per_class=True),
            lambda n: LogSums(n, 4, "cpu", per_class=True),
        ):
            one, other, every = make(1), make(2), make(3)
            every.update(values, groups)
            one.update(values[groups == 1], torch.zeros(int((groups == 1).sum()), dtype=int))
            other.update(values[groups != 1], groups[groups != 1] // 2)
            one = one.recoded(torch.tensor([1]), 3)
            one.merge(other.recoded(torch.tensor([0, 2]), 3))
            assert all(torch.equal(vars(one)[k], v) for k, v in every._parts(torch.Tensor))

    def test_states_of_states(self, logs):
        """Each part is merged, recoded, moved and pickled as it is on its own."""
        values, groups = logs

        def make(n_classes):
            moments = [ClassMoments(n_classes, 4, shape, "cpu") for shape in ("full", "diag")]
            sample = Reservoir(8, with_codes=True)
            counts = torch.zeros(n_classes)
            return State(["counts"], counts=counts, layers=StateList(moments), sample=sample)

        def update(state, values, groups):
            state.counts += torch.bincount(groups, minlength=len(state.counts))
            for moments in state.layers:
                moments.update(values, groups)
            keys = row_keys(values)
            chosen = state.sample.choose(keys)
            state.sample.add([values[chosen], groups[chosen]], keys[chosen])
            return state

        expected = update(make(3), values, groups)
        one = update(make(1), values[groups == 1], groups[groups == 1] - 1)
        other = update(make(2), values[groups != 1], groups[groups != 1] // 2)
        one = pickle.loads(pickle.dumps(one)).recoded(torch.tensor([1]), 3)
        one.merge(copy.deepcopy(other).recoded(torch.tensor([0, 2]), 3))
        one.to("cpu")
        assert torch.equal(one.counts, expected.counts)
        for found, wanted in zip(one.layers, expected.layers, strict=True):
            torch.testing.assert_close(found.means, wanted.means, rtol=1e-12, atol=1e-9)
            torch.testing.assert_close(found.scatters, wanted.scatters, rtol=1e-10, atol=1e-6)
        (keys, rows), (wanted_keys, wanted) = one.sample.sample(), expected.sample.sample()
        assert torch.equal(keys, wanted_keys) and all(map(torch.equal, rows, wanted))
        assert one.is_complete
        one.sample.n_expected, one.sample.n_seen = 10**6, 10**4
        assert not one.is_complete


class TestFolds:
    @pytest.mark.parametrize("offset", [0.0, 1e6])
    @pytest.mark.parametrize("n_groups", [1, 2])
    @pytest.mark.parametrize("shape", ["full", "diag", "mean"])
    def test_moments_of_the_other_folds(self, shape, n_groups, offset):
        rng = np.random.default_rng(0)
        X = rng.normal(size=(90, 4)) + offset
        rows, keys = torch.from_numpy(X), torch.from_numpy(rng.random(90))
        groups = torch.from_numpy(rng.integers(0, n_groups, 90))
        parts = [FoldMoments(4, shape, "cpu", n_groups) for _ in range(3)]
        for i, part in enumerate(parts):
            part.update(rows[i::3], keys[i::3], groups[i::3])
            parts[0].merge(part) if i else None
        folds = (keys.numpy() * 10).astype(int)
        for fold in [None, *range(10)]:
            counts, means, scatters = parts[0].without(fold)
            for k in range(n_groups):
                own = X[(folds != fold) & (groups.numpy() == k)]
                assert counts[k] == len(own)
                np.testing.assert_allclose(means[k], own.mean(0), rtol=1e-12)
                scatter = (own - own.mean(0)).T @ (own - own.mean(0))
                wanted = {"full": scatter, "diag": np.diag(scatter), "mean": 0}[shape]
                np.testing.assert_allclose(scatters[k], wanted, atol=1e-7 if offset else 1e-12)

    def test_rows_that_are_all_equal(self):
        """They are in one fold, and no row is in another."""
        rows = torch.ones(20, 3)
        moments = FoldMoments(3, "full", "cpu")
        moments.update(rows, row_keys(rows))
        for fold in (None, *range(10)):
            counts, means, _ = moments.without(fold)
            assert counts.tolist() == [20] and means.tolist() == [[1, 1, 1]]

    def test_wide_rows_have_fewer_folds(self):
        assert FoldMoments(1024, "full", "cpu").scatters.nbytes == 40 * 1024**2


# -- keys


class TestKeys:
    def test_are_those_of_the_content(self):
        """In any batch, order and floating dtype, and of any sign of zero."""
        X = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 3, 4)).astype(np.float32))
        X[:50, 0] = 0.0
        keys = row_keys(X, 3)
        assert keys.dtype == torch.float64 and keys.unique().numel() == 200
        order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
        assert torch.equal(row_keys(X[order].double(), 3), keys[order])
        assert torch.equal(torch.cat([row_keys(x[None], 3) for x in X]), keys)
        assert torch.equal(row_keys(torch.where(X == 0, -0.0, X), 3), keys)
        assert torch.equal(row_keys(X.transpose(1, 2).contiguous().transpose(1, 2), 3), keys)
        assert not bool((row_keys(X, 4) == keys).any())
        assert not bool((row_keys(X.flip(2), 3) == keys).any())
        half = X.bfloat16()
        assert torch.equal(row_keys(half), row_keys(half.double()))

    def test_are_uniform(self):
        """Also of rows of small numbers, and of those that float32 does not tell apart."""
        bits = torch.arange(2**14)[:, None] >> torch.arange(14) & 1
        for rows in (
            bits.float(),
            torch.arange(20_000.0)[:, None],
            1e10 + 1e-3 * torch.arange(20_000, dtype=torch.float64)[:, None],
            1e300 * torch.arange(1, 20_000, dtype=torch.float64)[:, None],
            torch.arange(20_000),
        ):
            for seed in (0, 2**31 - 1):
                keys = row_keys(rows, seed)
                assert keys.unique().numel() == len(rows)
                assert kstest(keys.numpy(), "uniform").pvalue > 1e-4

    def test_of_named_entries(self):
        rng = np.random.default_rng(0)
        ids, mask = torch.from_numpy(rng.integers(0, 9, (30, 6))), torch.ones(30, dtype=torch.int32)
        keys = row_keys({"ids": ids, "mask": mask})
        assert torch.equal(row_keys({"mask": mask.long(), "ids": ids.int()}), keys)
        assert not bool((row_keys({"other": ids, "mask": mask}) == keys).any())
        assert not bool((row_keys({"mask": ids, "ids": mask}) == keys).any())

    def test_of_entries(self):
        keys = entry_keys(row_keys(torch.arange(300.0)), 100)
        assert keys.shape == (300, 100) and keys.unique().numel() == 30_000
        assert kstest(keys.flatten().numpy(), "uniform").pvalue > 1e-4


# -- samples of rows with copies


def fill(reservoir, rows, class_indices=None):
    keys = row_keys(rows)
    chosen = reservoir.choose(keys)
    kept = [rows] if class_indices is None else [rows, class_indices]
    reservoir.add([tensor[chosen] for tensor in kept], keys[chosen])
    return reservoir


class TestSamples:
    @pytest.mark.parametrize("size", [None, 1, 40, 0.02, 0.5])
    @pytest.mark.parametrize("n_distinct", [1, 3, 30, 500])
    @given(draws=st.data())
    @some
    def test_are_those_of_any_pieces(self, size, n_distinct, draws):
        """Of exact size, of copies too, and in any order and tree."""
        rng = np.random.default_rng(draws.draw(st.integers(0, 99)))
        rows = torch.from_numpy(rng.integers(0, n_distinct, 1500)).double()
        whole = fill(Reservoir(size), rows).sample()
        cuts = sorted(draws.draw(st.lists(st.integers(0, 1500), max_size=6)))
        parts = [Reservoir(size)]
        for part in np.split(rng.permutation(1500), cuts):
            parts.append(Reservoir(size))
            for piece in np.array_split(part, draws.draw(st.integers(1, 9))):
                fill(parts[-1], rows[piece])
        while len(parts) > 1:
            one, other = (parts.pop(draws.draw(st.integers(0, len(parts) - 1))) for _ in range(2))
            one.merge(pickle.loads(pickle.dumps(other)))
            parts.append(one)
        n_wanted = {None: 1500, 0.02: 30, 0.5: 750}.get(size, size)
        for found in (parts[0].sample(), parts[0].sample()):
            assert len(found[0]) == n_wanted
            assert torch.equal(found[0], whole[0]) and torch.equal(found[1][0], whole[1][0])
        foreseen = fill(Reservoir(size, n_expected=1500), rows)
        if foreseen.is_complete:
            assert torch.equal(foreseen.sample()[1][0], whole[1][0])

    def test_copies_are_in_their_share(self):
        """One row in ten is blank, half are copies of few rows; whatever the seed of the keys."""
        for seed in range(40):
            rng = np.random.default_rng(seed)
            rows = rng.normal(size=20_000)
            rows[:2000], rows[2000:10_000] = 9.0, rng.integers(10, 13, 8000)
            (sample,) = fill(Reservoir(500), torch.from_numpy(rng.permutation(rows))).sample()[1]
            assert len(sample) == 500
            counts = [int((sample == value).sum()) for value in (9, 10, 11, 12)]
            # Those whose keys are among the smallest are there in their share, others are not.
            assert counts[0] in (0, *range(49, 52))
            assert all(count == 0 or 60 < count < 74 for count in counts[1:])

    def test_equal_rows_of_two_classes(self):
        """Wrong labels make no difference to the order either."""
        rows, class_indices = torch.zeros(100), torch.arange(100) % 3
        for order in (torch.arange(100), torch.arange(100).flip(0)):
            _, (_, found) = fill(
                Reservoir(50, with_codes=True), rows[order], class_indices[order]
            ).sample()
            assert torch.bincount(found).tolist() == [17, 17, 16]


# -- scorers of parts, and folds


class Residual(LearningScorer):
    """Features → minus their distance to a line through the mean, by folds for training rows."""

    learned = ("center", "basis")

    def init_state(self, inputs, n_classes, n_expected):
        return FoldMoments(inputs[0].shape[1], "full", inputs[0].device)

    def update(self, state, inputs, class_indices, keys):
        state.update(inputs[0], keys)

    @staticmethod
    def solve(moments):
        _, mean, scatter = moments
        return mean[0], torch.linalg.eigh(scatter[0])[1][:, :-1]

    def finalize(self, state, classes):
        self.moments = state
        self.center, self.basis = self.solve(state.without())

    def distances(self, features, center, basis):
        return torch.linalg.vector_norm((features.double() - center) @ basis, dim=1)

    def forward(self, features):
        return -self.distances(features, self.center, self.basis)

    def leave_one_out(self, inputs, class_indices, keys):
        scores, folds = torch.empty_like(keys), self.moments.folds(keys)
        for fold in range(self.moments.n_folds):
            own = folds == fold
            scores[own] = -self.distances(inputs[0][own], *self.solve(self.moments.without(fold)))
        return scores


class Scale(LearnedModule):
    """Divides by what a part of a scorer has learned, which is no scorer."""

    learned = ("scale",)

    def forward(self, scores):
        return scores / self.scale


class FoldScorer(LearningScorer):
    """Two residuals, of the features and of their squares, scaled by what a sample tells."""

    needs_row_keys = samples_by_key = True
    learned = ("least",)

    def __init__(self, head, size):
        super().__init__()
        self.head, self.size = head, size
        self.parts = nn.ModuleList([Residual(), Residual()])
        self.scale = Scale()

    def init_state(self, inputs, n_classes, n_expected):
        parts = StateList(part.init_state(inputs, n_classes, n_expected) for part in self.parts)
        return State(parts=parts, sample=Reservoir(self.size, n_expected))

    def update(self, state, inputs, class_indices, keys):
        for part, own, features in zip(self.parts, state.parts, self.split(*inputs), strict=True):
            part.update(own, (features,), class_indices, keys)
        chosen = state.sample.choose(keys)
        state.sample.add([inputs[0][chosen]], keys[chosen])

    @staticmethod
    def split(features):
        return features, features.square()

    def finalize(self, state, classes):
        for part, own in zip(self.parts, state.parts, strict=True):
            part.finalize(own, classes)
        _, (rows,) = state.sample.sample()
        self.least, self.scale.scale = rows.double().amin(), 1 + rows.double().std()

    def forward(self, features):
        pairs = zip(self.parts, self.split(features), strict=True)
        return self.scale(sum(part(own) for part, own in pairs)) + self.least

    def leave_one_out(self, inputs, class_indices, keys):
        pairs = zip(self.parts, self.split(*inputs), strict=True)
        scores = sum(part.leave_one_out((own,), class_indices, keys) for part, own in pairs)
        return self.scale(scores) + self.least


class FoldDetector(BaseDetector):
    """Of several parts, in folds of the rows."""

    def __init__(
        self, model=None, size=20, *, false_alarm_rate=0.05, device="auto", batch_size=None,
        verbose=False, random_state=0
    ):  # fmt: skip
        self.model, self.size, self.false_alarm_rate = model, size, false_alarm_rate
        self.device, self.batch_size = device, batch_size
        self.verbose, self.random_state = verbose, random_state

    _parameter_constraints = {
        **{k: v for k, v in BaseDetector._parameter_constraints.items() if k != "layer"},
        "size": "no_validation",
    }

    def _build(self, network):
        return network.features(), FoldScorer(network.head, self.size)


class Head(nn.Module):
    """A network whose head has a buffer, which is not for a scorer to keep."""

    def __init__(self):
        super().__init__()
        self.body = nn.BatchNorm1d(N_FEATURES)
        self.fc = nn.Linear(N_FEATURES, 3)
        self.fc.register_buffer("seen", torch.ones(3))

    def forward(self, x):
        return self.fc(self.body(x))


def head():
    return seeded(nn.Linear, in_features=N_FEATURES, out_features=3).double()


def assert_same(found, expected, X):
    np.testing.assert_allclose(
        found.score_samples(X), expected.score_samples(X), rtol=1e-9, atol=1e-9
    )
    assert found.offset_ == pytest.approx(expected.offset_, rel=1e-9)


DETECTORS = [
    FoldDetector(head()),
    FoldDetector(head(), 0.3, random_state=1),
    FoldDetector(head(), None),
    NNGuideDetector(head(), k=3, bank_size=12, random_state=0),
    NNGuideDetector(head(), k=2, bank_size=0.25, random_state=5),
    NNGuideDetector(head(), k=3),
]


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
@given(draws=st.data())
@some
def test_fit_learns_what_pieces_and_trees_do(detector, draws):
    """The same rows in samples and folds: in any order, in pieces and parts, in either dtype."""
    X, y = data()
    expected = clone(detector).fit(X, y)
    order = np.random.default_rng(draws.draw(st.integers(0, 99))).permutation(N_ROWS)
    batch_size = draws.draw(st.sampled_from([None, 1, 7]))
    assert_same(
        clone(detector).set_params(batch_size=batch_size).fit(X[order], y[order]), expected, X
    )
    parts = []
    for part in np.split(order, sorted(draws.draw(st.lists(st.integers(0, N_ROWS), max_size=5)))):
        if len(part):
            parts.append(clone(detector))
            for piece in np.array_split(part, min(len(part), draws.draw(st.integers(1, 3)))):
                parts[-1].partial_fit(X[piece], y[piece])
    while len(parts) > 1:
        one, other = (parts.pop(draws.draw(st.integers(0, len(parts) - 1))) for _ in range(2))
        parts.append(pickle.loads(pickle.dumps(one)).merge(other))
    assert_same(parts[0], expected, X)


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_fit_learns_what_dask_and_loaders_do(detector):
    X, y = data()
    expected = clone(detector).fit(X, y)
    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), batch_size=9)
    assert_same(clone(detector).fit(loader), expected, X)
    dask = pytest.importorskip("dask")
    da = pytest.importorskip("dask.array")
    pd = pytest.importorskip("pandas")
    named = pd.DataFrame(X, columns=list("abcde"))
    assert_same(clone(detector).fit(named, y), expected, named)
    with dask.config.set(scheduler="synchronous"):
        for chunks in (N_ROWS, 25, (1, 0, 39, 20)):
            blocks = da.from_array(X, (chunks, N_FEATURES))
            assert_same(clone(detector).fit(blocks, y), expected, X)


@pytest.mark.parametrize("detector", DETECTORS, ids=repr)
def test_dtypes_draw_the_same_rows(detector):
    X, y = data()
    net = copy.deepcopy(detector.model).float()
    one, two = (clone(detector).set_params(model=net).fit(x, y) for x in (X, X.astype(np.float32)))
    np.testing.assert_allclose(
        one.score_samples(X), two.score_samples(X.astype(np.float32)), rtol=1e-4
    )
    assert one.offset_ == pytest.approx(two.offset_, rel=1e-4)


@pytest.mark.parametrize("bank_size", [7, 0.1])
def test_a_bank_of_equal_rows(bank_size):
    X = np.ones((2000, 3))
    detector = NNGuideDetector(seeded(nn.Linear, in_features=3, out_features=2).double(), k=2)
    detector.set_params(bank_size=bank_size, random_state=0)
    n_bank = 7 if bank_size == 7 else 200
    for found in (clone(detector).fit(X), clone(detector).partial_fit(X[:5]).partial_fit(X[5:])):
        assert len(found.scorer_.bank) == n_bank
        assert (found.predict(X) == 1).all()


# -- buffers of parts


@pytest.mark.parametrize("pieces", [False, True])
def test_buffers_of_parts_are_kept(pieces, tmp_path, monkeypatch):
    """Those of scorers inside of scorers, each once, and none of the head."""
    X, y = data(np.float32)
    detector = FoldDetector(seeded(Head))
    if pieces:
        detector.partial_fit(X[:30], y[:30]).partial_fit(X[30:], y[30:])
    else:
        detector.fit(X, y)
    expected = detector.score_samples(X)
    saved = detector.__getstate__()["_saved_scorer"]
    parts = [f"parts.{i}.{name}" for i in range(2) for name in Residual.learned]
    assert sorted(saved) == sorted(["least", "scale.scale", *parts])
    copies = [copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))]
    if pytest.importorskip("safetensors"):
        monkeypatch.setitem(values.CLASSES, "FoldDetector", FoldDetector)
        skood.save(detector, tmp_path / "one", include_model=False)
        copies.append(skood.load(tmp_path / "one", model=detector.model))
    for twin in copies:
        np.testing.assert_array_equal(twin.score_samples(X), expected)
        assert twin.offset_ == detector.offset_
    if pieces:
        twin = copies[1].partial_fit(X[:9], y[:9])
        np.testing.assert_array_equal(detector.score_samples(X), expected)
        detector.partial_fit(X[:9], y[:9])
        np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


def test_gaussians_declare_their_buffers():
    X, y = data()
    detector = GMMDetector().fit(X, y)
    assert detector.scorer_.learned[:2] == ("means", "factors")
    assert set(detector.__getstate__()["_saved_scorer"]) <= set(detector.scorer_.learned)


def test_samples_of_earlier_versions_go_on():
    """Their pickles hold no counts of copies."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=300))
    old = fill(Reservoir(20), rows)
    state = old.__getstate__()
    del state["_reach"], state["_buffers"][1]
    loaded = object.__new__(Reservoir)
    loaded.__setstate__(state)
    found = fill(loaded, rows + 1).sample()
    expected = fill(old, rows + 1).sample()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1][0], expected[1][0])


@pytest.mark.filterwarnings("ignore")
def test_pickles_of_version_0_1_0_go_on():
    """Written in the middle of `partial_fit`, before and after the threshold was asked for."""
    X, y = (values[::3] for values in load_iris(return_X_y=True))
    written = pickle.loads((Path(__file__).parent / "files/0.1.0/pieces.pkl").read_bytes())
    for pickled in written:
        for one in map(pickle.loads, pickled[:2]):
            np.testing.assert_allclose(one.score_samples(X), pickled[2], rtol=1e-9)
            assert np.isfinite(one.partial_fit(X[:30], y[:30]).offset_)
            assert one.n_samples_seen_ == 80
            assert np.isfinite(one.merge(pickle.loads(pickled[1])).score_samples(X)).all()
