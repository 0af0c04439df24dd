"""CADRef: equal to a plain reference, with rows left out as if refitted."""

import numpy as np
import pytest
import torch
from torch import nn

from skood import CADRefDetector
from skood.functional import gen
from tests import references as ref
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": CADRefDetector(),
        "CARef": CADRefDetector(decoupled=False, batch_size=7),
    },
    in_networks={"default": CADRefDetector(), "msp": CADRefDetector(logit_score="msp")},
)
EACH = pytest.mark.parametrize(
    ("decoupled", "logit_score"), [(True, "energy"), (True, "msp"), (False, "energy")]
)


def reference(H, X, W, b, decoupled=True, logit_score="energy"):
    """Score rows one by one, by the means of the training rows of the predicted class."""
    H, X, W, b = map(ref.as_array, (H, X, W, b))
    predicted = [int(np.argmax(W @ h + b)) for h in H]
    means = {c: H[np.array(predicted) == c].mean(0) for c in set(predicted)}

    def score_of(h):
        return float(ref.score_of_logits((W @ h + b)[None], logit_score)[0])

    mean_score, scores = np.mean([score_of(h) for h in H]), []
    for x in X:
        c = max(means, key=lambda c: W[c] @ x + b[c])
        delta, size = x - means[c], np.abs(x).sum()
        if not decoupled:
            scores.append(-np.abs(delta).sum() / size)
            continue
        positive = sum(max(d * np.sign(w), 0) for d, w in zip(delta, W[c], strict=True)) / size
        negative = sum(max(-d * np.sign(w), 0) for d, w in zip(delta, W[c], strict=True)) / size
        logit_score_ = max(score_of(x), 1e-3 * mean_score)
        scores.append(-(positive / logit_score_ + negative / mean_score))
    return np.array(scores)


@pytest.fixture
def head():
    """Return a head of 5 classes with positive energies, one of which is never predicted."""
    layer = seeded(nn.Linear, in_features=6, out_features=5).double()
    with torch.no_grad():
        layer.bias += torch.tensor([3.0, 3, 3, 3, -90])
        layer.weight[1, 2] = 0
    return layer


@pytest.fixture
def rows(rng):
    """Return training rows and rows to score."""
    return 2 * rng.normal(size=(50, 6)), 3 * rng.normal(size=(30, 6))


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, head, decoupled, logit_score, dtype, tolerance):
    H, X = (part.astype(dtype) for part in rows)
    head = head.to(getattr(torch, dtype))
    how = {"decoupled": decoupled, "logit_score": logit_score}
    found = CADRefDetector(head, **how).fit(H).score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, head.weight, head.bias, **how), tolerance)


@EACH
def test_rows_left_out(rows, head, left_out, decoupled, logit_score):
    H, how = rows[0], {"decoupled": decoupled, "logit_score": logit_score}
    with torch.no_grad():
        # So that it is predicted of one row alone.
        logits = head(torch.as_tensor(H))
        head.bias[4] += (logits.amax(1) - logits[:, 4]).min() + 1e-9
    assert (head(torch.as_tensor(H)).argmax(1) == 4).sum() == 1
    expected = []
    for i in range(len(H)):
        rest = np.arange(len(H)) != i
        expected += [*reference(H[rest], H[[i]], head.weight, head.bias, **how)]
    found = left_out(CADRefDetector(head, **how), H)
    np.testing.assert_allclose(found, expected, 1e-8)


def test_rows_of_a_class_that_fit_did_not_predict(rows, head):
    H, X = rows
    X = X + 1000 * head.weight[4].detach().numpy()
    assert (head(torch.as_tensor(X)).argmax(1) == 4).all()
    detector = CADRefDetector(head).fit(H)
    assert detector.scorer_.counts[4] == 0
    found = detector.score_samples(X)
    np.testing.assert_allclose(found, reference(H, X, head.weight, head.bias), 1e-8)


def test_their_gen(rows, head):
    def score(logits):
        return gen(logits, n_classes=10).exp()

    H, X = rows
    found = CADRefDetector(head, logit_score=score).fit(H).score_samples(X)
    logits = head(torch.as_tensor(X)).detach()
    p = torch.softmax(logits, 1)
    np.testing.assert_allclose(score(logits), 1 / ((p * (1 - p)) ** 0.1).sum(1), 1e-8)
    expected = reference(H, X, head.weight, head.bias, True, score)
    np.testing.assert_allclose(found, expected, 1e-8)


def test_scores_of_logits_that_are_not_positive(rows, head):
    H, X = rows
    with torch.no_grad():
        head.bias -= 3
    with pytest.warns(UserWarning, match=r"not positive in \d+.\d% of the rows of fit"):
        detector = CADRefDetector(head, logit_score="max_logit").fit(3 * H)
    expected = reference(3 * H, X, head.weight, head.bias, True, "max_logit")
    np.testing.assert_allclose(detector.score_samples(X), expected, 1e-8)
    with torch.no_grad():
        head.bias -= 90
        # Where a weight is 0 a difference is neither with nor against it.
        head.weight[1, 2] = 1
    with pytest.warns(UserWarning, match="100.0% of(.|\n)*nor on average: 1 stands in"):
        found = CADRefDetector(head).fit(H).score_samples(X)
    plain = CADRefDetector(head, decoupled=False).fit(H).score_samples(X)
    np.testing.assert_allclose(found, plain, 1e-12)


@pytest.mark.parametrize("decoupled", [True, False])
def test_zero_and_equal_rows(rows, head, decoupled):
    H, X = rows
    detector = CADRefDetector(head, decoupled=decoupled).fit(H)
    scores = detector.score_samples(np.r_[X[:1] * 0, X[:1] * 1e-300, X])
    assert np.isfinite(scores).all()
    assert (scores[:2] < scores[2:].min()).all()
    detector.fit(H[:1].repeat(40, 0))
    assert (detector.predict(H[:1]) == 1).all()
    assert (detector.predict(X) == -1).all()


def test_labels_do_not_count_and_parts_are_merged(rows, head, rng):
    H, X = rows
    whole = CADRefDetector(head).fit(H)
    a, b = (CADRefDetector(head).partial_fit(part, [0] * 25) for part in np.split(H, 2))
    np.testing.assert_allclose(a.merge(b).score_samples(X), whole.score_samples(X), 1e-9)
    np.testing.assert_allclose(a.offset_, whole.offset_, 1e-9)


def test_bad_input(rows, head):
    with pytest.raises(ValueError, match="'logit_score' parameter"):
        CADRefDetector(head, logit_score="size").fit(rows[0])
    with pytest.raises(ValueError, match="'decoupled' parameter"):
        CADRefDetector(head, decoupled=2.5).fit(rows[0])
