"""SHE: equal to a plain reference, with rows left out as if refitted; labels and predictions."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn

from skood import SHEDetector
from tests import references as ref
from tests.detectors import Method
from tests.networks import SmallCNN, seeded

METHOD = Method(
    settings={
        "default": SHEDetector(),
        "all": SHEDetector(patterns="all", batch_size=7),
        "softmax": SHEDetector(metric="cosine", assign="softmax"),
    },
    in_networks={
        "default": SHEDetector(),
        "conv1": SHEDetector(layer="conv1", metric="euclidean", assign="any"),
        "all": SHEDetector(patterns="all"),
    },
)
METRICS = ("inner_product", "cosine", "euclidean")
SETTINGS = [
    *(
        {"metric": metric, "assign": a}
        for metric in METRICS
        for a in ("predicted", "any", "softmax")
    ),
    {"patterns": "all", "beta": 0.3},
]
EACH = pytest.mark.parametrize("params", SETTINGS, ids=lambda p: "-".join(map(str, p.values())))
pytestmark = pytest.mark.filterwarnings("ignore:The largest logit is that of the label")
# Classes without a row that is predicted right, which some of these data have.
wrong = pytest.mark.filterwarnings("ignore:Of the classes of the logits")


def similarity(h, m, metric, is_unit):
    """Return how similar a row is to a mean."""
    if metric == "euclidean":
        return -np.linalg.norm(h - m)
    m = m / np.linalg.norm(m) if is_unit or metric == "cosine" else m
    return h @ m / (np.linalg.norm(h) if metric == "cosine" else 1)


def by_logits(
    H, y, X, L, L_new, metric="inner_product", patterns="mean", assign="predicted", beta=0.01
):
    """Score rows one by one; y holds columns of the logits, -1 for those it does not know."""
    H, X = (np.asarray(part, dtype=np.float64) for part in (H, X))
    rows = {}
    for c in range(L.shape[1]):
        every = [(h, int(np.argmax(l_h))) for h, l_h, k in zip(H, L, y, strict=True) if k == c]
        right = [h for h, predicted in every if predicted == c]
        if every:
            takes_all = assign == "softmax" or not right
            rows[c] = np.array([h for h, _ in every] if takes_all else right)
    scores = []
    for h, logits in zip(X, L_new, strict=True):
        predicted = max(rows, key=lambda c: logits[c])
        if patterns == "all":
            scores.append(logsumexp(beta * rows[predicted] @ h))
            continue
        values = {
            c: similarity(h, of_class.mean(0), metric, assign == "softmax")
            for c, of_class in rows.items()
        }
        if assign == "softmax":
            p = softmax(logits)
            scores.append(sum(p[c] * value for c, value in values.items()))
        else:
            scores.append(values[predicted] if assign == "predicted" else max(values.values()))
    return np.array(scores)


def reference(H, y, X, W, b, **params):
    """Score rows by a linear head."""
    return by_logits(H, y, X, H @ W.T + b, X @ W.T + b, **params)


@pytest.fixture
def rows(rng):
    """Return training rows, their classes, mostly those that are predicted, and rows to score."""
    head, W, b = head_of()
    H = 2 * rng.normal(size=(40, 5)) + 0.5
    y = (H @ W.T + b).argmax(1)
    y[::5] = rng.integers(0, 4, 8)
    return H, y, 3 * rng.normal(size=(30, 5))


def head_of(dtype="float64"):
    """Return a linear head, its weight and its bias."""
    head = seeded(nn.Linear, in_features=5, out_features=4).to(getattr(torch, dtype))
    return head, *(p.detach().double().numpy().copy() for p in (head.weight, head.bias))


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, params, dtype, tolerance):
    H, y, X = rows
    head, W, b = head_of(dtype)
    H, X = H.astype(dtype), X.astype(dtype)
    found = SHEDetector(head, **params).fit(H, y).score_samples(X)
    np.testing.assert_allclose(found, reference(H, y, X, W, b, **params), tolerance, tolerance)


@EACH
def test_rows_left_out(rows, params, left_out):
    H, y, _ = rows
    head, W, b = head_of()
    expected = [
        reference(np.delete(H, i, 0), np.delete(y, i), H[[i]], W, b, **params)[0]
        for i in range(len(H))
    ]
    found = left_out(SHEDetector(head, **params), H, y)
    np.testing.assert_allclose(found, expected, 1e-8, 1e-8)


def small_classes(H, W, b):
    """Return rows with classes of which one, none, the only and no row is predicted right."""
    predicted = (H @ W.T + b).argmax(1)
    first, second = np.bincount(predicted).argsort()[::-1][:2]
    others = [c for c in range(4) if c not in (first, second)]
    H = np.r_[H[predicted == first][:6], H[predicted == second][:3], H[predicted == first][6:8]]
    # The first class is right six times. Of the second a row is right, and two rows of its label
    # are not; of a third two rows have its label; of the fourth none.
    y = np.array([first] * 6 + [second] + [others[0]] * 2 + [second] * 2)
    return H, y, others


@wrong
@EACH
def test_small_classes_left_out(rng, params, left_out):
    head, W, b = head_of()
    H, y, _ = small_classes(2 * rng.normal(size=(80, 5)) + 0.5, W, b)
    found = left_out(SHEDetector(head, false_alarm_rate=0.5, **params), H, y)
    for i in range(len(H)):
        rest = np.arange(len(H)) != i
        expected = reference(H[rest], y[rest], H[[i]], W, b, **params)[0]
        if params.get("patterns") == "all" and i == 6:
            # The bank has no rows that are predicted wrong: the class counts as one without rows.
            rest &= y != y[i]
            expected = reference(H[rest], y[rest], H[[i]], W, b, **params)[0]
        np.testing.assert_allclose(found[i], expected, 1e-8, err_msg=str(i))


@EACH
def test_classes_of_wrong_rows_and_without_rows(rng, params):
    head, W, b = head_of()
    H, y, others = small_classes(2 * rng.normal(size=(80, 5)) + 0.5, W, b)
    X = 3 * rng.normal(size=(40, 5))
    assert set(others) <= set((X @ W.T + b).argmax(1))
    detector = SHEDetector(head, false_alarm_rate=0.5, **params)
    if params.get("assign") == "softmax":
        detector.fit(H, y)
    else:
        with pytest.warns(UserWarning, match=rf"logits \[{others[0]}\] no row is predicted right"):
            detector.fit(H, y)
    expected = reference(H, y, X, W, b, **params)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-8)


@EACH
def test_without_labels_the_prediction_stands_in(rows, params, left_out):
    H, _, X = rows
    head, W, b = head_of()
    predicted = (H @ W.T + b).argmax(1)
    detector = SHEDetector(head, **params)
    expected = left_out(detector, H, predicted), detector.score_samples(X)
    np.testing.assert_array_equal(left_out(detector, H), expected[0])
    np.testing.assert_array_equal(detector.score_samples(X), expected[1])


@wrong
@EACH
def test_labels_are_those_of_a_frozen_classifier(rows, params):
    """Also where it knows classes of which there are no rows, and rows are of others."""
    H, y, X = rows
    names = np.array(["d", "a", "c", "b"])[y]
    model = LogisticRegression().fit(H, names)
    y = np.array([list(model.classes_).index(name) for name in names])
    y[::7], names[::7] = -1, "new"
    kept = y != 1
    detector = SHEDetector(FrozenEstimator(model), **params).fit(H[kept], names[kept])
    expected = reference(H[kept], y[kept], X, model.coef_, model.intercept_, **params)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-8)
    pieces = SHEDetector(FrozenEstimator(model), **params)
    for some in (slice(0, 3), slice(3, None)):
        pieces.partial_fit(H[kept][some], names[kept][some])
    np.testing.assert_allclose(pieces.score_samples(X), expected, 1e-8)


def test_labels_of_an_unknown_network(rows):
    H, y, X = rows
    head, _, _ = head_of()
    expected = SHEDetector(head).fit(H, y).score_samples(X)
    # In their order, if there are as many as logits.
    found = SHEDetector(head).fit(H, np.array(list("abcd"))[y]).score_samples(X)
    np.testing.assert_array_equal(found, expected)
    some = y != 2
    with pytest.raises(ValueError, match="it cannot be told which are whose"):
        SHEDetector(head).fit(H[some], np.array(list("abcd"))[y[some]])
    model = FrozenEstimator(LogisticRegression().fit(H, y))
    for patterns in ("mean", "all"):
        with pytest.raises(ValueError, match="a logit of none of the classes"):
            SHEDetector(model, patterns=patterns).fit(H, y + 10)


@EACH
def test_layer_of_a_network(params):
    rng = np.random.default_rng(1)
    X, X_new = rng.normal(size=(20, 1, 8, 8)), 2 * rng.normal(size=(12, 1, 8, 8))
    net = seeded(SmallCNN).double()
    L, L_new = ref.logits(net, X), ref.logits(net, X_new)
    H, H_new = (ref.features(net, part, "conv1").mean((2, 3)) for part in (X, X_new))
    found = SHEDetector(net, "conv1", **params).fit(X).score_samples(X_new)
    expected = by_logits(H, L.argmax(1), H_new, L, L_new, **params)
    np.testing.assert_allclose(found, expected, 1e-8)


@pytest.mark.parametrize("bank_size", [10, 0.5])
def test_a_sample_of_rows(rows, bank_size):
    H, y, X = rows
    head, W, b = head_of()
    y = (H @ W.T + b).argmax(1)
    detector = SHEDetector(head, patterns="all", bank_size=bank_size, random_state=0).fit(H, y)
    bank = detector.scorer_.bank.numpy()
    assert len(bank) == (10 if bank_size == 10 else 20)
    labels = detector.scorer_.bank_classes.numpy()
    expected = reference(bank, labels, X, W, b, patterns="all", beta=0.01)
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-8)


def test_equal_rows_of_several_classes(rows, left_out):
    """Of the copies of a row its own is left out, not one with another label."""
    H, _, _ = rows
    head, W, b = head_of()
    y = (H @ W.T + b).argmax(1)
    H, y = np.r_[H, H[:9], H[:9]], np.r_[y, y[:9], (y[:9] + 1) % 4]
    expected = [
        reference(np.delete(H, i, 0), np.delete(y, i), H[[i]], W, b, patterns="all", beta=0.3)[0]
        for i in range(len(H))
    ]
    found = left_out(SHEDetector(head, patterns="all", beta=0.3), H, y)
    np.testing.assert_allclose(found, expected, 1e-8)


@EACH
def test_zeros_equal_and_large_rows(rows, params):
    H, y, X = rows
    head, _, _ = head_of()
    for train in (0 * H, 0 * H + 0.1, H * 1e100):
        detector = SHEDetector(head, **params).fit(train)
        assert (detector.predict(train) == 1).mean() > 0.8 and np.isfinite(detector.offset_)
        assert np.isfinite(detector.score_samples(np.r_[X * 1e250, 0 * X, X * 1e-300])).all()
    with pytest.raises(ValueError, match="overflow"):
        detector.fit(H * 1e307)


def test_bad_input(rows):
    H, y, _ = rows
    head, _, _ = head_of()
    for name in ("metric", "patterns", "assign", "beta"):
        with pytest.raises(ValueError, match=f"'{name}' parameter"):
            SHEDetector(head, **{name: 0}).fit(H, y)
    with pytest.raises(ValueError, match="patterns='all' takes metric='inner_product'"):
        SHEDetector(head, patterns="all", assign="any").fit(H, y)
