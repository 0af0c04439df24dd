"""AdaSCALE: plain reference, parity, percentiles by the other rows."""

import numpy as np
import pytest
import torch

from skood import AdaSCALEDetector, EnergyDetector, SCALEDetector
from skood.ensemble import EnsembleDetector
from tests import references as ref
from tests.detectors import NEEDS_VECTORS, Method
from tests.networks import MLP, ResNet, SmallCNN, seeded
from tests.parity import DTYPES, assert_parity, cast, linear

pytestmark = pytest.mark.filterwarnings("ignore:X holds features")

METHOD = Method(
    settings={
        "default": AdaSCALEDetector(),
        "logits": AdaSCALEDetector(
            percentiles=(0.2, 0.6), scaled="logits", top_moved=0.5, logit_score="gen", batch_size=7
        ),
    },
    in_networks={"default": AdaSCALEDetector(percentiles=(0.75, 0.85), share=0.2)},
    refuses={"BERT": "cannot be moved by a small step", "segmenter": NEEDS_VECTORS},
)
SETTINGS = {
    "paper": {"percentiles": (0.75, 0.85)},
    "logits": {"scaled": "logits", "percentiles": (0.1, 0.9), "step": 1.5, "share": 0.3},
    "sizes": {"percentiles": (0.2, 0.8), "weight": 0.0, "top_moved": 0.6},
    "shifts": {"percentiles": (0.2, 0.8), "weight": 100.0, "top_shift": 0.4, "share": 1.0},
}
EACH = pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)


def features_before_and_after(net, x, share, step):
    """Return the features of one row, and those with the inputs of the least gradients moved."""
    kept = []
    handle = net.get_submodule("fc").register_forward_pre_hook(
        lambda _, inputs: kept.append(ref.as_array(inputs[0])[0])
    )
    x = ref.as_tensor(x)[None].requires_grad_()
    net(x).max().backward()
    moved, grad = ref.as_array(x).ravel(), ref.as_array(x.grad).ravel()
    for place in np.argsort(np.abs(grad), kind="stable")[: int(share * moved.size)]:
        moved[place] += step * np.sign(grad[place])
    with torch.no_grad():
        net(torch.tensor(moved).view(x.shape))
    handle.remove()
    return kept


def stability_of(h, moved, top_moved=0.05, top_shift=0.01, weight=10.0):
    """Return Q' of one row."""
    largest = np.argsort(-h, kind="stable")
    sizes = sum(max(moved[j], 0) for j in largest[: max(1, int(top_moved * len(h)))])
    shifts = sum(abs(h[j] - moved[j]) for j in largest[: max(1, int(top_shift * len(h)))])
    return sizes + weight * shifts


def adascale(net, rows, X, percentiles, scaled="features", share=0.05, step=0.5, **of_rows):
    """Score rows, one at a time, by the percentiles that training rows tell."""
    net = ref.as_double(net)
    own = [stability_of(*features_before_and_after(net, x, share, step), **of_rows) for x in rows]
    low, high = percentiles
    scores = []
    for x in X:
        h, moved = features_before_and_after(net, x, share, step)
        rank = np.mean([q <= stability_of(h, moved, **of_rows) for q in own])
        percentile = low + (1 - rank) * (high - low)
        k = max(1, len(h) - int(np.round(len(h) * percentile)))
        positive = np.maximum(h, 0)
        ratio = positive.sum() / np.sort(positive)[-k:].sum() if positive.any() else None
        factor = 1.0 if ratio is None else np.exp(ratio) if scaled == "features" else ratio**2
        with torch.no_grad():
            if scaled == "features":
                logits = net.fc(ref.as_tensor(factor * h)[None])
            else:
                logits = factor * net.fc(ref.as_tensor(h)[None])
        scores.append(ref.energy(logits)[0])
    return np.array(scores)


@DTYPES
@EACH
def test_in_a_network(X, params, dtype):
    net, X_train, X_new = cast(seeded(SmallCNN), X, dtype)
    found = AdaSCALEDetector(net, **params).fit(X_train).score_samples(X_new)
    assert_parity(found, adascale(net, X_train, X_new, **params), dtype)


def test_in_a_residual_network(X):
    net, X_train, X_new = cast(seeded(ResNet, in_channels=1), X, torch.float64)
    found = AdaSCALEDetector(net).fit(X_train).score_samples(X_new)
    expected = adascale(net, X_train, X_new, percentiles=(0.6, 0.7))
    assert_parity(found, expected, torch.float64)


@EACH
def test_leave_one_out_is_that_of_refits(X, params):
    net, X_train, _ = cast(seeded(SmallCNN), X, torch.float64)
    X_train = np.concatenate([X_train[:8], X_train[:1]])
    scores = AdaSCALEDetector(net, **params)._fit(X_train, None).numpy()
    for i in range(len(X_train)):
        others = np.delete(X_train, i, axis=0)
        expected = adascale(net, others, X_train[[i]], **params)
        np.testing.assert_allclose(scores[[i]], expected, rtol=1e-10)


@pytest.mark.parametrize("n_inputs", [1, 7])
def test_vectors_and_one_row_at_a_time(rng, n_inputs):
    net = seeded(MLP, in_features=n_inputs).double()
    X = rng.normal(size=(12, n_inputs))
    params = {"percentiles": (0.2, 0.8), "share": 0.5}
    detector = AdaSCALEDetector(net, batch_size=1, **params).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), adascale(net, X, X, **params), rtol=1e-8)


def test_equal_percentiles_are_scale(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    for scaled in ("features", "logits"):
        expected = SCALEDetector(net, scaled=scaled, percentile=0.7).fit(X_train)
        detector = AdaSCALEDetector(net, scaled=scaled, percentiles=[0.7, 0.7]).fit(X_train)
        np.testing.assert_allclose(
            detector.score_samples(X_new), expected.score_samples(X_new), rtol=1e-12
        )


def test_features_do_not_shift(data):
    Z, y, X_new = data
    Z, X_new = np.abs(Z), np.abs(X_new)
    head = linear(0, 6, 4)
    with pytest.warns(UserWarning, match="no inputs to move"):
        detector = AdaSCALEDetector(head, percentiles=(0.1, 0.9), top_moved=0.5).fit(Z, y)
    net = torch.nn.Sequential()
    net.fc = head
    params = {"percentiles": (0.1, 0.9), "top_moved": 0.5, "step": 0.0}
    assert_parity(detector.score_samples(X_new), adascale(net, Z, X_new, **params), torch.float64)


def test_behind_an_extractor_it_takes_the_whole_network(X):
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    y = np.arange(len(X_train)) % 4
    whole = AdaSCALEDetector(net).fit(X_train, y)
    both = EnsembleDetector([("a", AdaSCALEDetector()), ("b", EnergyDetector())], model=net)
    found = both.fit(X_train, y).detectors_[0].score_samples(X_new)
    np.testing.assert_allclose(found, whole.score_samples(X_new), rtol=1e-12)


def test_a_sample_of_the_rows(X, monkeypatch):
    monkeypatch.setattr("skood.detectors.shaping.adascale.N_ROWS", 6)
    net, X_train, X_new = cast(seeded(SmallCNN), X, torch.float64)
    detector = AdaSCALEDetector(net).fit(X_train)
    assert len(detector.scorer_.distribution.values) == 6
    pieces = AdaSCALEDetector(net).partial_fit(X_train[9:]).partial_fit(X_train[:9])
    np.testing.assert_array_equal(pieces.score_samples(X_new), detector.score_samples(X_new))


@pytest.mark.parametrize("percentiles", [(0.8, 0.7), (0.5, 1.0), (-0.1, 0.5), (0.5,), ("a", "b")])
def test_bad_percentiles(X, percentiles):
    with pytest.raises(ValueError, match=r"must be two numbers in \[0, 1\), the lower first"):
        AdaSCALEDetector(seeded(SmallCNN), percentiles=percentiles).fit(X[0])


def test_tokens_cannot_be_moved(X):
    images = {"image": X[0].astype(np.float32)}

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = seeded(SmallCNN)

        def forward(self, image):
            return self.net(image)

    with pytest.raises(ValueError, match="takes a dict of arrays"):
        AdaSCALEDetector(Named()).fit(images)
