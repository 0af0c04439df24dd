"""PNML: equal to a plain reference, with rows left out as if refitted, and small regrets."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from skood import PNMLDetector
from skood.detectors.head.pnml import log_regret
from tests.detectors import Method
from tests.networks import seeded

METHOD = Method(
    settings={
        "default": PNMLDetector(),
        "plain": PNMLDetector(bias=False, orthogonal=False, log=False, batch_size=7),
    },
    in_networks={"default": PNMLDetector()},
)
EACH = pytest.mark.parametrize("bias", [True, False])
ORTHOGONAL = pytest.mark.parametrize("orthogonal", [True, False])


def unit(h, bias):
    """Return a row of length 1, perhaps with a 1 in front."""
    h = np.asarray(h, dtype=np.float64)
    h = h / np.linalg.norm(h) if h.any() else h
    return np.r_[1.0, h] if bias else h


def reference(H, X, W, b, bias=True, orthogonal=True):
    """Return the regrets of rows one by one, with a pseudo-inverse and the sum over classes."""
    H = np.array([unit(h, bias) for h in H])
    M = sum(np.outer(x, x) for x in H)
    inverse = np.linalg.pinv(M, rcond=1e-10, hermitian=True)
    outside = np.eye(len(M)) - inverse @ M
    regrets = []
    for h in X:
        x = unit(h, bias)
        q = x @ inverse @ x
        g = max(q / (1 + q), x @ outside @ x) if orthogonal else q / (1 + q)
        logits = W @ unit(h, False) + b
        p = np.exp(logits - logits.max())
        p /= p.sum()
        regrets.append(math.log(sum(p_k / (p_k + (1 - p_k) * p_k**g) for p_k in p)))
    return np.array(regrets) / math.log(len(W))


@pytest.fixture
def rows(rng):
    """Return training rows and rows to score."""
    return rng.normal(size=(40, 5)) + 1, 3 * rng.normal(size=(30, 5))


def head_of(dtype="float64"):
    """Return a linear head, its weight and its bias."""
    head = seeded(nn.Linear, in_features=5, out_features=4).to(getattr(torch, dtype))
    return head, *(p.detach().double().numpy().copy() for p in (head.weight, head.bias))


@EACH
@ORTHOGONAL
@pytest.mark.parametrize("rank", [5, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(rows, bias, orthogonal, rank, dtype, tolerance):
    H, X = (part.astype(dtype) for part in rows)
    H[:, rank:] = 0
    X[0] = 0
    head, W, b = head_of(dtype)
    params = {"bias": bias, "orthogonal": orthogonal}
    expected = reference(H, X, W, b, **params)
    found = PNMLDetector(head, log=False, **params).fit(H).score_samples(X)
    np.testing.assert_allclose(found, -expected, tolerance, 1e-12)
    # Without a 1, the row of zeros has no regret.
    found = PNMLDetector(head, **params).fit(H).score_samples(X[1:])
    np.testing.assert_allclose(found, -np.log(expected[1:]), tolerance)


@EACH
@ORTHOGONAL
@pytest.mark.parametrize("n_rows", [40, 4])
def test_rows_left_out(rows, bias, orthogonal, n_rows, left_out):
    """Also where a row is the only one in its direction: with fewer rows than features."""
    H = rows[0][:n_rows]
    H[-2:] = H[-1]
    head, W, b = head_of()
    params = {"bias": bias, "orthogonal": orthogonal}
    expected = [reference(np.delete(H, i, 0), H[[i]], W, b, **params)[0] for i in range(n_rows)]
    detector = PNMLDetector(head, log=False, false_alarm_rate=0.5, **params)
    np.testing.assert_allclose(left_out(detector, H), -np.array(expected), 1e-8)


def exact_log_regret(logits, g):
    """Return the logarithm of the regret by rational numbers, for g = 1 / 2 ** k."""
    one, bits = Fraction(1), 2000

    def power(x, half):
        for _ in range(half):
            scaled = x.numerator * 4**bits // x.denominator
            x = Fraction(math.isqrt(scaled), 2**bits)
        return x

    e = [Fraction(math.exp(v % 1)) * Fraction(math.e) ** int(v // 1) for v in logits]
    p = [v / sum(e) for v in e]
    rest = sum(v / (v + (one - v) * power(v, g)) - v for v in p)
    # log(1 + r) is r but for r² / 2.
    n, d = rest.numerator, rest.denominator
    shift = d.bit_length() - n.bit_length()
    return math.log(n * 2**shift / d) - shift * math.log(2) - math.log(math.log(len(logits)))


@pytest.mark.parametrize("gap", [50, 150, 400])
def test_small_regrets_keep_their_digits(gap):
    """Of a sum of 1 and e⁻¹⁵⁰ nothing is left but 1."""
    logits = [float(gap), 1.0, 0.0]
    found = log_regret(torch.tensor([logits], dtype=torch.float64), torch.tensor([0.125]).double())
    np.testing.assert_allclose(float(found[0]), exact_log_regret(logits, 3), 1e-12)


def test_confident_rows_are_told_apart(rows):
    H, X = (part.astype("float32") for part in rows)
    head, W, b = head_of("float32")
    with torch.no_grad():
        head.weight *= 1000
    X = X[np.sort(np.diff(np.sort(X @ W.T, 1))[:, -1:], 0)[:, 0] > 0.1]
    plain, logs = (PNMLDetector(head, log=log).fit(H).score_samples(X) for log in (False, True))
    assert len(np.unique(plain)) < len(X) == len(np.unique(logs))


def test_threshold_holds_on_fresh_rows():
    """Of plain scores of training rows it would call 15 % and more out-of-distribution."""
    rng, alarms, plain = np.random.default_rng(0), [], []
    head = seeded(nn.Linear, in_features=40, out_features=6).double()
    for _ in range(20):
        X, fresh = rng.normal(size=(2, 120, 40))
        detector = PNMLDetector(head).fit(X)
        alarms.append((detector.predict(fresh) < 0).mean())
        scores = detector.score_samples(fresh)
        plain.append((scores < np.quantile(detector.score_samples(X), 0.05)).mean())
    assert 0.03 < np.mean(alarms) < 0.07 < 0.15 < np.mean(plain)


@pytest.mark.parametrize("scale", [1e-200, 1e30, 1e300])
def test_lengths_do_not_count(rows, scale):
    H, X = rows
    head, _, _ = head_of()
    expected = PNMLDetector(head).fit(H).score_samples(X)
    found = PNMLDetector(head).fit(H * scale).score_samples(X * scale)
    np.testing.assert_allclose(found, expected, 1e-9)


@EACH
def test_zeros_and_equal_rows(rows, bias):
    _, X = rows
    head, _, _ = head_of()
    for H in (np.zeros((30, 5)), np.full((30, 5), 0.1)):
        for log in (True, False):
            detector = PNMLDetector(head, bias=bias, log=log, batch_size=7).fit(H)
            assert np.isfinite(detector.offset_)
            assert (detector.predict(H) == 1).all()
            assert np.isfinite(detector.score_samples(np.r_[X, 0 * X])).all()
