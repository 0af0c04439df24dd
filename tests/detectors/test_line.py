"""LINe: equal to a plain reference, with rows left out by tenths, labels and logits."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from skood import LINeDetector, ReActDetector
from skood.detectors.head import line
from skood.detectors.head.line import round_down
from skood.learning.keys import row_keys
from tests import references as ref
from tests.detectors import Method
from tests.parity import DTYPES, TOLERANCE, blobs, linear

METHOD = Method(
    settings={
        "default": LINeDetector(),
        "sparse": LINeDetector(
            activation_percentile=0.5, weight_percentile=0.3, clip_percentile=1.0, batch_size=7
        ),
    },
    in_networks={"default": LINeDetector()},
)

# With 7 features and 3 classes quantiles at .5 are numbers themselves, which do not count.
LEVELS = [(0.1, 0.1, 0.9), (0.5, 0.5, 1.0), (0, 0.3, 0.8), (0.4, 0, 0.5), (0.9, 0.9, 0.9)]
EACH = pytest.mark.parametrize("levels", LEVELS, ids=str)


def make(model, levels):
    """Return a detector."""
    names = ("activation_percentile", "weight_percentile", "clip_percentile")
    return LINeDetector(model, **dict(zip(names, levels, strict=True)))


def energy_of(h, rows, W, b, levels):
    """Score a row, which is clipped, by those training rows that belong to its logit."""
    logits, kept = b.copy(), np.ones_like(W)
    if len(rows):
        A = np.mean(rows, axis=0) * W[np.argmax(W @ h + b)]
        least = np.quantile(A, levels[0]) if levels[0] else -np.inf
        least_product = np.quantile(abs(A) * W, levels[1]) if levels[1] else -np.inf
    for k in range(len(W)):
        for j in range(len(h)):
            if len(rows):
                kept[k, j] = A[j] > least and abs(A[j]) * W[k, j] > least_product
            logits[k] += h[j] * W[k, j] * kept[k, j]
    return logsumexp(logits)


def reference(H, columns, head, H_new, levels):
    """Score rows one by one; the columns are those of the logits of the training rows."""
    H, W, b, H_new = map(ref.as_array, (H, head.weight, head.bias, H_new))
    scores = []
    for h in np.minimum(H_new, np.quantile(H, levels[2])):
        rows = H[columns == np.argmax(W @ h + b)]
        scores.append(energy_of(h, rows, W, b, levels))
    return np.array(scores)


@pytest.fixture
def rows():
    """Return a head, training rows, their labels, and rows to score; of each class some."""
    (X, y), head = blobs(0, n=60, d=7), linear(0, d=7)
    with torch.no_grad():
        head.bias -= head(torch.as_tensor(X)).mean(0)
    X_new = X.mean(0) + np.random.default_rng(1).normal(size=(40, 7)) * 3
    for part in (X, X_new):
        assert len(head(torch.as_tensor(part)).argmax(1).unique()) == 3
    return head, X, y, X_new


@DTYPES
@EACH
def test_parity(rows, levels, dtype):
    head, X, y, X_new = rows
    head, X, X_new = head.to(dtype), *(part.astype(str(dtype)[6:]) for part in (X, X_new))
    found = make(head, levels).fit(X, y).score_samples(X_new)
    expected = reference(X, y, head, X_new, levels)
    np.testing.assert_allclose(found, expected, TOLERANCE[dtype], TOLERANCE[dtype])


@EACH
def test_rows_left_out(rows, levels, left_out):
    """Of the means of the other tenths, and of the quantile of all others."""
    head, X, y, _ = rows
    found = left_out(make(head, levels), X, y)
    folds = np.floor(10 * row_keys(torch.as_tensor(X)).numpy())
    W, b = map(ref.as_array, (head.weight, head.bias))
    for i, row in enumerate(X):
        h = np.minimum(row, np.quantile(np.delete(X, i, axis=0), levels[2]))
        others = X[(folds != folds[i]) & (y == np.argmax(W @ h + b))]
        np.testing.assert_allclose(found[i], energy_of(h, others, W, b, levels), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:The largest logit")
def test_the_logits_of_labels(rows):
    """By a classifier that knows them, or by their number; not by their order among those seen."""
    head, X, y, X_new = rows
    levels = LEVELS[1]
    W, b = map(ref.as_array, (head.weight, head.bias))
    classifier = LogisticRegression(C=0.01).fit(X, np.array(["x", "z", "y"])[y])
    classifier.coef_, classifier.intercept_ = W, b
    known = make(FrozenEstimator(classifier), levels)
    # Logits are those of x, y and z.
    columns, names = np.array([0, 2, 1])[y], np.array(["x", "z", "y"])[y]
    expected = reference(X, columns, head, X_new, levels)
    np.testing.assert_allclose(known.fit(X, names).score_samples(X_new), expected, rtol=1e-8)
    seen = columns != 1
    expected = reference(X[seen], columns[seen], head, X_new, levels)
    for detector, labels in ((known, names), (make(head, levels), columns)):
        found = detector.fit(X[seen], labels[seen]).score_samples(X_new)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    with pytest.raises(ValueError, match="it cannot be told which are whose"):
        make(head, levels).fit(X[seen], names[seen])
    with pytest.raises(ValueError, match="a logit of none of the classes"):
        known.fit(X, np.array(["u", "v", "w"])[y])


@pytest.mark.filterwarnings("ignore:The largest logit")
def test_labels_that_come_one_by_one(rows):
    """Their order tells the logits once all are there."""
    head, X, y, X_new = rows
    names = np.array(["x", "y", "z"])[y]
    expected = LINeDetector(head).fit(X, names).score_samples(X_new)
    pieces = LINeDetector(head)
    for k in (2, 0, 1):
        pieces.partial_fit(X[y == k], names[y == k])
    np.testing.assert_allclose(pieces.score_samples(X_new), expected, rtol=1e-10)


def test_without_labels_rows_belong_to_the_predicted_class(rows):
    head, X, _, X_new = rows
    predicted = head(torch.as_tensor(X)).argmax(1).numpy()
    expected = reference(X, predicted, head, X_new, LEVELS[0])
    np.testing.assert_allclose(LINeDetector(head).fit(X).score_samples(X_new), expected, rtol=1e-8)


def test_nothing_removed_is_react(rows):
    head, X, y, X_new = rows
    detector = make(head, (0, 0, 0.8)).fit(X, y)
    react = ReActDetector(head, percentile=0.8).fit(X, y)
    np.testing.assert_allclose(detector.score_samples(X_new), react.score_samples(X_new))
    assert bool(detector.scorer_.bounds.isinf().all())


def test_of_many_classes_fewer_rows_set_the_threshold(rows, left_out, monkeypatch):
    head, X, y, _ = rows
    monkeypatch.setattr(line, "THRESHOLD_PRODUCTS", 21 * 30)
    monkeypatch.setattr(line, "FEWEST_ROWS", 20)
    assert len(left_out(LINeDetector(head), X, y)) == 30


def test_rounding_down():
    values = [0.1, -0.1, 0.5, 1e300, -1e300, np.inf, -np.inf, 0]
    values = torch.tensor(values, dtype=torch.float64)
    found = round_down(values, torch.float32)
    largest = torch.finfo(torch.float32).max
    np.testing.assert_array_equal(found[2:], [0.5, largest, -np.inf, np.inf, -np.inf, 0])
    assert (found[:2].double() < values[:2]).all()
    assert (torch.nextafter(found[:2], torch.ones(2)).double() > values[:2]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("activation_percentile", 1), ("weight_percentile", -0.1), ("clip_percentile", 0)],
)
def test_parameters_outside_of_the_range(name, value, iris):
    with pytest.raises(ValueError, match=f"'{name}' parameter of LINeDetector"):
        LINeDetector(**{name: value}).fit(*iris)
