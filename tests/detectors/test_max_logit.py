"""MaxLogit: equal to a plain reference, also of pixels."""

import numpy as np
import torch

from skood import MaxLogitDetector
from tests.detectors import Method
from tests.networks import MLP, Segmenter, seeded

METHOD = Method(
    settings={"default": MaxLogitDetector()},
    in_networks={"default": MaxLogitDetector()},
    gives_maps=True,
)


def test_parity(rng):
    X, net = rng.normal(size=(40, 8)), seeded(MLP).double()
    logits = net(torch.from_numpy(X)).detach().numpy()
    scores = MaxLogitDetector(net).fit(X).score_samples(X)
    np.testing.assert_array_equal(scores, [max(row) for row in logits])


def test_maps(images):
    X, _ = images
    net = seeded(Segmenter)
    scores = MaxLogitDetector(net).fit(X).score_samples(X)
    logits = net(torch.from_numpy(X)).detach().numpy()
    assert scores.shape == (24, 8, 8)
    for n, row in enumerate(logits):
        for position in np.ndindex(8, 8):
            assert scores[n][position] == max(row[(slice(None), *position)])
