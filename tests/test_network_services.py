"""What methods are given of a network: logits, layers, gradients, moved inputs, passes."""

import pytest
import torch
from networks import MLP, ResNet, Segmenter, ViT, sample_inputs, seeded

from skood.network import Network


def network_of(net, n_rows=6, seed=0):
    """Return a `Network` around a module and some rows of X."""
    x = torch.from_numpy(sample_inputs(net, n_rows, seed))
    return Network(net, "cpu", torch.float32, sample=x[:2]), x


@pytest.mark.parametrize("cls", [MLP, ResNet, ViT, Segmenter])
def test_logits_are_those_of_the_network(cls):
    net = seeded(cls)
    network, x = network_of(net)
    torch.testing.assert_close(network.logits()(x), net(x))


def test_logits_of_features_are_the_heads():
    head = torch.nn.Linear(6, 1)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    logit = head(x).detach()
    logits = Network(head, "cpu", torch.float32, sample=x[:2]).logits()(x)
    torch.testing.assert_close(logits, torch.cat([-logit, logit], 1) / 2)
    half = seeded(MLP).half()
    rows = torch.from_numpy(sample_inputs(half, 4, 0)).half()
    assert Network(half, "cpu", torch.half, sample=rows[:2]).logits()(rows).dtype == torch.float32
