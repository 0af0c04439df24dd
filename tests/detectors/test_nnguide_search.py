"""NNGuide's search against sorting all inner products."""

import copy
import pickle
import sys

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from skood import KNNDetector, NNGuideDetector
from skood.detectors.head.nnguide import mean
from skood.learning import products
from skood.learning.neighbours import reduce_found
from skood.learning.products import SPARE, TILE, in_float32, reduce_largest

TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def sorted_mean(queries, bank, k, own=None):
    """Sort every query's products but the one with its own row; average the k largest."""
    means = []
    for i, query in enumerate(queries.double().numpy()):
        rest = np.arange(len(bank)) != (-1 if own is None else int(own[i]))
        means.append(np.sort(bank.double().numpy()[rest] @ query)[::-1][:k].mean())
    return np.array(means)


def assert_exact(queries, bank, k, own=None):
    """Compare, to the rounding of products of rows of length 1."""
    found = reduce_largest(mean, queries, bank, k, own)
    assert found.dtype == torch.float64
    expected = sorted_mean(queries, bank, k, own)
    assert_allclose(found, expected, rtol=0, atol=TOLERANCE[queries.dtype])

    def mean_of_rows(products, block, rows):
        assert rows.sort(1).values.diff(dim=1).ne(0).all()
        return (block[:, None].double() * bank[rows].double()).sum(2).mean(1)

    found = reduce_largest(mean_of_rows, queries, bank, k, own, with_rows=True)
    assert_allclose(found, expected, rtol=0, atol=TOLERANCE[queries.dtype])


def unit(rng, n_rows, n_features, dtype=torch.float64):
    """Return random rows of length 1."""
    rows = rng.normal(size=(n_rows, n_features))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).to(dtype)


@settings(deadline=None, max_examples=60)
@given(
    n_queries=st.integers(0, 20),
    n_bank=st.one_of(
        st.integers(2, 70), st.integers(TILE - 20, TILE + 20), st.integers(2000, 2200)
    ),
    n_features=st.integers(1, 9),
    share=st.floats(0, 1),
    dtype=st.sampled_from(list(TOLERANCE)),
    decimals=st.sampled_from([None, 1, 0]),
    leave_out=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_sorting(n_queries, n_bank, n_features, share, dtype, decimals, leave_out, seed):
    rng = np.random.default_rng(seed)
    queries, bank = (unit(rng, n, n_features) for n in (n_queries, n_bank))
    if decimals is not None:
        # Few distinct values: ties everywhere.
        queries, bank = queries.round(decimals=decimals), bank.round(decimals=decimals)
    own = torch.from_numpy(rng.integers(-1, n_bank, n_queries)) if leave_out else None
    k = max(1, round(share * (n_bank - leave_out)))
    assert_exact(queries.to(dtype), bank.to(dtype), k, own)


@DTYPES
@pytest.mark.parametrize("k", [1, 32, 33, TILE // 16 + 1, TILE // 8 + 1, TILE, TILE + 1])
@pytest.mark.parametrize("n_bank", [TILE + 1, 2 * TILE, 2 * TILE + 7])
def test_k_around_the_numbers_of_groups_and_the_ends_of_tiles(rng, k, n_bank, dtype):
    assert_exact(unit(rng, 5, 6, dtype), unit(rng, n_bank, 6, dtype), k)


@DTYPES
@pytest.mark.parametrize("n_bank", [1, 15, 16, 17, TILE - 1, TILE, TILE + 1, 3 * TILE])
def test_the_whole_bank(rng, n_bank, dtype):
    queries, bank = unit(rng, 3, 4, dtype), unit(rng, n_bank, 4, dtype)
    assert_exact(queries, bank, n_bank)
    if n_bank > 1:
        assert_exact(queries, bank, n_bank - 1, torch.tensor([0, n_bank - 1, n_bank // 2]))


@DTYPES
@pytest.mark.parametrize("n_queries", [TILE - 1, TILE, TILE + 1])
def test_blocks_of_queries(rng, n_queries, dtype):
    assert_exact(unit(rng, n_queries, 3, dtype), unit(rng, 40, 3, dtype), 5)


@pytest.mark.parametrize("k", [1, 40])
def test_queries_stay_apart_where_k_makes_their_blocks_small(rng, k, monkeypatch):
    monkeypatch.setattr("skood.learning.products.TILE", 16)
    bank = unit(rng, 50, 3)
    assert_exact(bank, bank, k, torch.arange(50))


@DTYPES
@pytest.mark.parametrize("k", [3, 50])
@pytest.mark.parametrize("order", [1, -1])
def test_sorted_banks(rng, k, order, dtype):
    """The worst order: each row exceeds those before it, so that every group is looked into."""
    queries, bank = unit(rng, 1, 5).repeat(4, 1), unit(rng, 3 * TILE, 5)
    bank = bank[(order * (bank @ queries[0])).argsort()]
    assert_exact(queries.to(dtype), bank.to(dtype), k)


@DTYPES
@pytest.mark.parametrize("k", [1, 10, 100])
def test_ties(k, dtype):
    """Equal rows count one by one; one better row shows wherever it stands."""
    bank = torch.full((2 * TILE, 2), 0.5, dtype=dtype)
    query = torch.ones(1, 2, dtype=dtype)
    assert reduce_largest(mean, query, bank, k).item() == 1
    for better in (0, TILE - 1, TILE, 2 * TILE - 1):
        bank[better] = 1
        assert reduce_largest(mean, query, bank, k).item() == pytest.approx(1 + 1 / k, rel=1e-15)
        own = torch.tensor([better])
        assert reduce_largest(mean, query, bank, k, own).item() == 1
        bank[better] = 0.5


@DTYPES
def test_own_rows_at_the_ends_of_tiles(rng, dtype):
    bank = unit(rng, 2 * TILE + 3, 8, dtype)
    own = torch.tensor([0, TILE - 1, TILE, 2 * TILE - 1, 2 * TILE, 2 * TILE + 2, -1])
    queries = bank[own]
    assert_exact(queries, bank, 1, own)
    # Left out is the row, not what equals it.
    assert_exact(queries, bank.roll(1, 0), 1, own)
    assert_exact(queries, torch.cat([bank, bank]), 2, own)


@settings(deadline=None, max_examples=40)
@given(
    n_queries=st.integers(1, 20),
    n_bank=st.one_of(st.integers(20, 70), st.integers(TILE - 20, TILE + 20)),
    k=st.integers(1, 12),
    spread=st.sampled_from([1, 1e-3, 1e-6, 1e-9, 0]),
    size=st.sampled_from([1, 1e-200, 1e100]),
    longest=st.sampled_from([1, 1e6]),
    leave_out=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_float32_then_float64(n_queries, n_bank, k, spread, size, longest, leave_out, seed):
    """The digits are those of float64 where rows are alike, equal, zero or of unequal length."""
    rng = np.random.default_rng(seed)
    center = unit(rng, 1, 5)
    queries, bank = (center + spread * unit(rng, n, 5) for n in (n_queries, n_bank))
    bank[1::7], queries[::5], bank[0] = bank[0], 0, bank[0] * longest
    own = torch.from_numpy(rng.integers(-1, n_bank, n_queries)) if leave_out else None
    bank, scale = bank * size, size * longest

    def mean_of_rows(products, block, rows):
        assert rows.sort(1).values.diff(dim=1).ne(0).all()
        expected = (block[:, None] * bank[rows]).sum(2)
        assert_allclose(products, expected, rtol=0, atol=1e-15 * scale)
        return products.mean(1)

    found = reduce_largest(mean_of_rows, queries, bank, k, own, True, in_float32(bank))
    expected = sorted_mean(queries, bank, k, own)
    assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-15)


def test_float32_where_what_is_found_just_fills_a_tile(rng):
    queries, bank = unit(rng, TILE + 1, 3), unit(rng, TILE + SPARE, 3)
    found = reduce_largest(mean, queries, bank, TILE, single=in_float32(bank))
    expected = (queries @ bank.T).topk(TILE).values.mean(1)
    assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_large_banks_in_float64_are_searched_in_float32(rng, monkeypatch):
    searched, search = [], products.search

    def noting(queries, bank, *args):
        searched.append(queries.dtype)
        return search(queries, bank, *args)

    monkeypatch.setattr(products, "search", noting)
    X = rng.normal(size=(200 * (2 + SPARE), 5))
    X_new = X[:50] + 0.1
    found = KNNDetector(k=2, normalize=False).fit(X).score_samples(X_new)
    assert set(searched) == {torch.float32}
    far = np.linalg.norm(X_new[:, None] - X, axis=2)
    assert_allclose(found, -np.sort(far, axis=1)[:, 1], rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_numpy_does_not_sort(rng, dtype):
    queries, bank = (unit(rng, n, 5, dtype) for n in (TILE + 1, 2 * TILE))
    expected = (queries @ bank.T).double().topk(3).values.mean(1)
    assert_allclose(reduce_largest(mean, queries, bank, 3), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_banks(rng, scale, sign):
    """Also where all products are negative, as with negative energies."""
    queries, bank = (unit(rng, n, 3, torch.float32).abs() for n in (4, 1500))
    found = reduce_largest(mean, queries, bank * sign * scale, 7)
    assert_allclose(found, sorted_mean(queries, bank * sign * scale, 7), rtol=1e-5)


@pytest.fixture
def faiss():
    """Return faiss, or skip."""
    return pytest.importorskip("faiss")


@pytest.fixture
def rows(rng):
    """Return training rows of 3 classes, float32, with labels, and new rows."""
    y = np.arange(300) % 3
    X = (rng.normal(size=(300, 6)) + 3 * np.eye(3, 6)[y]).astype(np.float32)
    return X, y, rng.normal(size=(40, 6)).astype(np.float32)


def leave_one_out(monkeypatch, detector, *data):
    """Return the scores that `fit` takes the threshold from."""
    kept = []
    threshold = NNGuideDetector._threshold

    def keep(self, scores, dtype):
        kept.append(scores.numpy())
        return threshold(self, scores, dtype)

    monkeypatch.setattr(NNGuideDetector, "_threshold", keep)
    detector.fit(*data)
    return kept[0]


@pytest.mark.parametrize("k", [1, 7, 299, 300])
@pytest.mark.parametrize("bank_size", [None, 100])
@pytest.mark.parametrize("index", ["Flat", "IVF8,Flat"])
@pytest.mark.filterwarnings("ignore:k=")
def test_faiss_equals_the_exact_search(faiss, rows, k, bank_size, index, monkeypatch):
    """All of 8 lists are looked into."""
    X, y, X_new = rows
    settings = {"k": k, "bank_size": bank_size, "random_state": 0}
    exact, found = NNGuideDetector(**settings), NNGuideDetector(index=index, **settings)
    expected = leave_one_out(monkeypatch, exact, X, y)
    assert_allclose(leave_one_out(monkeypatch, found, X, y), expected, rtol=1e-4, atol=1e-4)
    assert found.k_ == exact.k_
    scores = found.score_samples(X_new)
    assert scores.dtype == np.float32
    assert_allclose(scores, exact.score_samples(X_new), rtol=1e-4, atol=1e-4)


def test_faiss_takes_float64(faiss, rows):
    X, y, X_new = (a.astype(np.float64) for a in rows)
    exact, found = NNGuideDetector().fit(X, y), NNGuideDetector(index="Flat").fit(X, y)
    scores = found.score_samples(X_new)
    assert scores.dtype == np.float64
    assert_allclose(scores, exact.score_samples(X_new), rtol=1e-5)


@pytest.mark.parametrize("index", ["IVF16,Flat", "HNSW8", "RR6,Flat", "SQ8", "IVF4,PQ3x4"])
def test_an_approximate_index_is_close_and_reproducible(faiss, rows, index):
    X, y, X_new = rows
    exact = NNGuideDetector().fit(X, y)
    first, again = (NNGuideDetector(index=index).fit(X, y) for _ in range(2))
    scores = first.score_samples(X_new)
    assert np.corrcoef(scores, exact.score_samples(X_new))[0, 1] > 0.9
    if index != "HNSW8":
        # faiss builds these graphs from several threads.
        assert_array_equal(again.score_samples(X_new), scores)
        assert again.offset_ == first.offset_


def test_the_mean_is_over_what_faiss_finds(faiss, rng):
    class Index:
        def search(self, queries, n):
            found = np.array([[3, 1, 2], [5, -1, -1], [4, -1, -1], [-1, -1, -1], [1, 2, 3]])
            products = np.where(found >= 0, [[9.0, 6.0, 3.0]], np.finfo(np.float32).min)
            assert n == 3
            return products.astype(np.float32), found

    own = torch.tensor([3, -1, 4, 0, 7])
    found = reduce_found(mean, torch.zeros(5, 2), Index(), 2, own)
    assert_array_equal(found, [4.5, 9, 0, 0, 7.5])


@pytest.mark.parametrize(
    "travel",
    [
        lambda detector, path: pickle.loads(pickle.dumps(detector)),
        lambda detector, path: copy.deepcopy(detector),
        lambda detector, path: joblib.load(joblib.dump(detector, path)[0]),
    ],
    ids=["pickle", "deepcopy", "joblib"],
)
def test_a_faiss_index_travels(faiss, rows, travel, tmp_path):
    X, y, X_new = rows
    detector = NNGuideDetector(index="IVF4,Flat").fit(X, y)
    scores = detector.score_samples(X_new)
    loaded = travel(detector, tmp_path / "detector")
    assert_array_equal(loaded.score_samples(X_new), scores)
    assert_array_equal(loaded.predict(X), detector.predict(X))
    fresh = clone(loaded)
    assert fresh.index == "IVF4,Flat" and not hasattr(fresh, "scorer_")
    assert_array_equal(fresh.fit(X, y).score_samples(X_new), scores)
    assert set(dict(loaded.scorer_.named_buffers(recurse=False))) == {"index_bytes"}


def test_setting_the_index_does_not_change_what_was_fitted(faiss, rows):
    X, y, X_new = rows
    detector = NNGuideDetector().fit(X, y)
    scores = detector.score_samples(X_new)
    detector.set_params(index="Flat")
    assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(X_new), scores)


@pytest.mark.parametrize("index", ["Flatt", "IVF999,Flat", "PQ5"])
def test_what_faiss_cannot_build(faiss, rows, index):
    with pytest.raises(ValueError, match=f"faiss cannot build index='{index}' of 300 rows of 6"):
        NNGuideDetector(index=index).fit(*rows[:2])


def test_without_faiss(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        NNGuideDetector(index="Flat").fit(*rows[:2])
    NNGuideDetector().fit(*rows[:2])


def test_fits_are_alike_and_the_bank_is_not_in_the_order_of_classes(rng):
    X, y = rng.normal(size=(300, 4)), np.repeat([0, 1, 2], 100)
    first, second = (NNGuideDetector(torch.nn.Linear(4, 3).double()) for _ in range(2))
    second.set_params(model=first.model)
    first.fit(X, y), second.fit(X, y)
    assert_array_equal(first.scorer_.bank, second.scorer_.bank)
    assert_array_equal(first.score_samples(X), second.score_samples(X))
    unsorted = NNGuideDetector(first.model, energy_weighted=False).fit(X, y).scorer_.bank.numpy()
    directions = X / np.linalg.norm(X, axis=1, keepdims=True)
    order = np.abs(unsorted[:, np.newaxis] - directions).sum(2).argmin(1)
    assert sorted(order) == list(range(300))
    # In random order half of the steps go up.
    assert 100 < (np.diff(order) > 0).sum() < 200


@pytest.mark.parametrize("n_columns", [16 * 12, 16 * 64, 1000])
@pytest.mark.parametrize("k", [1, 3, 16])
def test_the_largest_of_a_tile_lie_in_the_groups_of_the_largest_maxima(rng, k, n_columns):
    """As a GPU looks for them; ties too."""
    tile = torch.from_numpy(rng.integers(0, 300, size=(20, n_columns)).astype(np.float32))
    values, columns = products.k_largest_of_groups(tile, k, True)
    assert_array_equal(values.sort(1).values, tile.sort(1).values[:, -k:])
    assert_array_equal(tile.gather(1, columns), values)
    assert columns.sort(1).values.diff(dim=1).ne(0).all()
    without, none = products.k_largest_of_groups(tile, k, False)
    assert_array_equal(without.sort(1).values, values.sort(1).values)
    assert none is None


@pytest.mark.cuda
@pytest.mark.parametrize("k", [1, 50])
def test_search_on_a_gpu(rng, k, monkeypatch):
    monkeypatch.setattr(products, "GPU_TILE_BYTES", products.GPU_TILE_ROWS * 4 * 2048)
    queries, bank = (unit(rng, n, 6, torch.float32) for n in (9, 5000))
    own = torch.arange(9) - 1
    found = reduce_largest(mean, queries.cuda(), bank.cuda(), k, own.cuda())
    assert_allclose(found.cpu(), sorted_mean(queries, bank, k, own), rtol=0, atol=3e-6)


@DTYPES
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("is_intel", [True, False])
def test_products_of_every_processor(rng, is_intel, capability, dtype, monkeypatch):
    monkeypatch.setattr(products, "is_intel", lambda: is_intel)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert_exact(unit(rng, 30, 5, dtype), unit(rng, 2 * TILE + 9, 5, dtype), 7)
