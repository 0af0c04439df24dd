"""The shared references agree with facts that were found without them; the networks vary."""

import numpy as np
import pytest
import torch

from tests import networks
from tests import references as ref
from tests.detectors.test_nac import nac_products
from tests.parity import IMAGE_NETWORKS, has_power, with_inputs


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Run tiny operations on one thread: on a busy machine several are ten times slower."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


VECTOR_NETWORKS = [
    networks.MLP,
    networks.Branching,
    networks.WeightNormed,
    networks.WithDropout,
]


@pytest.mark.parametrize("cls", [*(case[0] for case in IMAGE_NETWORKS), *VECTOR_NETWORKS])
def test_networks_give_varied_logits(cls):
    """Every class is predicted, and the softmax is mostly neither uniform nor saturated."""
    net, X = with_inputs(cls, 64)
    with torch.no_grad():
        logits = net(torch.from_numpy(X))
    top = logits.softmax(dim=1).max(dim=1)
    assert not net.training
    assert len(top.indices.unique()) == logits.shape[1]
    assert has_power(top.values.double().numpy())
    assert 0.3 < top.values.median() < 0.99


@pytest.mark.parametrize("cls", [*VECTOR_NETWORKS, networks.EndsInSoftmax, networks.TwoHeads])
def test_seeded(cls):
    """The same seed gives the same network, another seed another; the generator stays as it is."""
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 8))).float()
    state = torch.random.get_rng_state()
    outputs = [networks.seeded(cls, seed=seed)(X) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    first, again, other = (
        torch.cat(out) if isinstance(out, tuple) else out.detach() for out in outputs
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_traps_are_set():
    """Each network does what its docstring warns of."""
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 8))).float()
    net = networks.seeded(networks.WithDropout).train()
    assert not torch.equal(net(X), net(X))
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(networks.seeded(networks.Branching))
    net = networks.seeded(networks.EndsInSoftmax)
    torch.testing.assert_close(net(X).sum(dim=1), torch.ones(5))
    main, auxiliary = networks.seeded(networks.TwoHeads)(X)
    both = networks.seeded(networks.TwoHeads, returns="sum")(X)
    torch.testing.assert_close(main + auxiliary, both)
    assert "weight" not in dict(networks.seeded(networks.WeightNormed).fc.named_parameters())
    net, maps = with_inputs(networks.Segmenter, 2)
    assert net(torch.from_numpy(maps)).shape == (2, 3, 8, 8)
    kept = []
    net = networks.seeded(networks.SmallCNN)
    assert (net.bn.running_mean != 0).all()
    net.bn.register_forward_hook(lambda _, __, output: kept.append(output))
    net(torch.from_numpy(maps))
    assert (kept[0] >= 0).all()


@pytest.mark.parametrize("cls, layer", IMAGE_NETWORKS)
def test_features_and_logits(cls, layer):
    """The head applied to the features gives the logits, and the user's network is untouched."""
    net, X = with_inputs(cls, 4)
    (head_name,) = net.head_names
    linear = net.get_submodule(head_name)
    H = ref.features(net, X, head_name=head_name)
    expected = H @ ref.as_array(linear.weight).T + ref.as_array(linear.bias)
    np.testing.assert_allclose(ref.logits(net, X), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        batch = net(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(batch, expected, rtol=1e-4, atol=1e-4)
    assert ref.features(net, X, layer).shape[0] == 4
    assert next(net.parameters()).dtype == torch.float32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_features_are_not_overwritten():
    """What BatchNorm returned is read before the in-place ReLU behind it."""
    net, X = with_inputs(networks.SmallCNN, 3)
    assert (ref.features(net, X, "bn") < 0).any()
    products = nac_products(net, X, ["bn"])
    net.relu.inplace = False
    np.testing.assert_array_equal(products, nac_products(net, X, ["bn"]))


@pytest.mark.parametrize("cls", [networks.SmallCNN, networks.WithDropout])
def test_train_mode_does_not_matter(cls):
    """References run in eval mode whatever the mode of the network, and leave it there."""
    net, X = with_inputs(cls, 3)
    expected = ref.logits(net, X)
    np.testing.assert_array_equal(ref.logits(net.train(), X), expected)
    assert net.training


@pytest.mark.parametrize("logit_score", ["energy", "msp", "max_logit"])
def test_logit_scores(logit_score):
    """The logit scores equal torch's, on vectors and on maps."""
    functions = {
        "energy": lambda t: t.logsumexp(dim=1),
        "msp": lambda t: t.softmax(dim=1).amax(dim=1),
        "max_logit": lambda t: t.amax(dim=1),
    }
    for shape in [(5, 4), (5, 4, 2, 3)]:
        logits = np.random.default_rng(0).normal(size=shape)
        got = ref.score_of_logits(logits, logit_score)
        assert got.shape == (5, *shape[2:])
        np.testing.assert_allclose(got, functions[logit_score](torch.from_numpy(logits)))
        np.testing.assert_allclose(got, ref.score_of_logits(logits, functions[logit_score]))
