"""ODIN: equal to a plain reference; signs right where probabilities round to 0 and 1."""

import numpy as np
import pytest
import torch

from skood import MSPDetector, ODINDetector
from tests.detectors import Method
from tests.networks import MLP, Segmenter, SmallCNN, seeded
from tests.parity import DTYPES, TOLERANCE

METHOD = Method(
    settings={
        "default": ODINDetector(),
        "iODIN": ODINDetector(temperature=1.0, epsilon=0.1, n_inputs=1, log=True, batch_size=7),
    },
    in_networks={"default": ODINDetector()},
    gives_maps=True,
    refuses={"BERT": "cannot be moved by a small step"},
)


def reference(net, X, temperature=1000.0, epsilon=0.0014, scale=1.0, n_inputs=None):
    """Move and score rows one by one."""
    scores = []
    for row in torch.as_tensor(X):
        x = row[None].clone().requires_grad_()
        log_p = torch.log_softmax(net(x) / temperature, 1)
        (gradient,) = torch.autograd.grad(log_p[0, log_p.argmax()], x)
        signs = torch.sign(gradient)
        if n_inputs is not None:
            keep = gradient.abs().flatten().argsort(descending=True)[:n_inputs]
            mask = torch.zeros(gradient.numel(), dtype=signs.dtype)
            mask[keep] = 1
            signs = signs * mask.view_as(signs)
        with torch.no_grad():
            logits = net(x + epsilon / scale * signs)[0].double().numpy() / temperature
        exponentials = [np.exp(value - max(logits)) for value in logits]
        scores.append(max(exponentials) / sum(exponentials))
    return np.array(scores)


@DTYPES
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0, "epsilon": 0.05},
        {"temperature": 2.0, "epsilon": 0.1, "n_inputs": 3},
    ],
)
@pytest.mark.parametrize("cls", [MLP, SmallCNN])
def test_parity(rng, cls, settings, dtype):
    net = seeded(cls).to(dtype)
    shape = (40, 8) if cls is MLP else (40, 1, 8, 8)
    X = torch.as_tensor(rng.normal(size=shape)).to(dtype).numpy()
    found = ODINDetector(net, **settings).fit(X).score_samples(X)
    np.testing.assert_allclose(found, reference(net, X, **settings), TOLERANCE[dtype])


def test_a_step_a_channel(rng):
    net, X = seeded(MLP).double(), rng.normal(size=(40, 8))
    scale = rng.uniform(1, 2, size=8)
    found = ODINDetector(net, epsilon=0.3, scale=scale).fit(X).score_samples(X)
    expected = reference(net, X, epsilon=0.3, scale=torch.as_tensor(scale))
    np.testing.assert_allclose(found, expected, 1e-10)
    net, X = seeded(SmallCNN).double(), rng.normal(size=(20, 1, 8, 8))
    one = ODINDetector(net, epsilon=0.3, scale=[2.0]).fit(X).score_samples(X)
    np.testing.assert_array_equal(one, ODINDetector(net, epsilon=0.15).fit(X).score_samples(X))
    for wrong, message in ((np.ones(3), "one for each of the 1"), ([-1.0], "positive")):
        with pytest.raises(ValueError, match=message):
            ODINDetector(net, scale=wrong).fit(X)


def test_without_a_step_it_is_the_probability(rng):
    net, X = seeded(MLP).double(), rng.normal(size=(40, 8))
    found = ODINDetector(net, epsilon=0, temperature=3.0).fit(X)
    msp = MSPDetector(net, temperature=3.0, log=False).fit(X)
    np.testing.assert_array_equal(found.score_samples(X), msp.score_samples(X))
    assert found.offset_ == msp.offset_


def test_the_direction_where_the_network_is_sure(rng):
    """In float32 the gradient of log p is 0 where p rounds to 1."""
    net, X = seeded(MLP), 300 * rng.normal(size=(40, 8)).astype(np.float32)
    settings = {"temperature": 1.0, "epsilon": 0.5}
    narrow = ODINDetector(net, **settings).fit(X)
    moved = narrow._body[0](torch.from_numpy(X)).double()
    expected = ODINDetector(net.double(), **settings).fit(X.astype(float))._body[0]
    assert (moved - torch.from_numpy(X)).abs().amin() > 0.4
    torch.testing.assert_close(moved, expected(torch.from_numpy(X).double()), rtol=1e-6, atol=1e-4)


def test_maps(rng):
    net, X = seeded(Segmenter).double(), rng.normal(size=(20, 1, 8, 8))
    detector = ODINDetector(net, temperature=1.0, epsilon=0.01).fit(X)
    x = torch.as_tensor(X).requires_grad_()
    logits = net(x)
    others = logits.scatter(1, logits.argmax(1, keepdim=True), -torch.inf)
    (gradient,) = torch.autograd.grad((logits.amax(1) - others.logsumexp(1)).sum(), x)
    expected = net(x + 0.01 * gradient.sign()).softmax(1).amax(1)
    np.testing.assert_allclose(detector.score_samples(X), expected.detach(), 1e-10)


def test_what_cannot_be_moved_is_told():
    words = {"ids": np.zeros((4, 3), dtype=np.int64)}

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.fc = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3)

        def forward(self, ids):
            return self.fc(self.words(ids).mean(1))

    with pytest.raises(ValueError, match="takes a dict of arrays"):
        ODINDetector(Words()).fit(words)
