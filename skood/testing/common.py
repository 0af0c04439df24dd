"""What the checks share: data, and a network as it was before."""

from unittest import SkipTest, TestCase

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris

from skood.network.gradients import InputGradient

# `assertRaisesRegex` and `assertWarnsRegex`, so that pytest is not needed here.
expect = TestCase()


def with_model(detector, model):
    """Return a clone of a detector with a model."""
    return clone(detector).set_params(model=model)


def load_iris_float():
    """Return 150 rows of 4 positive float64 features and their 3 classes."""
    return load_iris(return_X_y=True)


def random_images():
    """Return 24 random images (24, 1, 8, 8), float32, and labels of 4 classes."""
    X = np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype(np.float32)
    return X, np.arange(24) % 4


def optional(name):
    """Import a library that a check is about, or skip the check."""
    try:
        return __import__(name)
    except ImportError as error:
        raise SkipTest(f"{name} is not installed") from error


def read_only(X):
    """Return a copy that cannot be written to."""
    X = X.copy()
    X.flags.writeable = False
    return X


def random_blobs(rng):
    """Return 30 rows around 3 class means, positive mostly, and their labels."""
    y = np.arange(30) % 3
    return rng.normal(size=(30, 4)) + 3 * rng.uniform(size=(3, 4))[y] + 3, y


def depends_on_keys(detector):
    """Tell whether other rows of equal features would have taught a fitted detector something else.

    Samples and folds are drawn by what rows hold.
    """
    scorer = detector.scorer_
    return getattr(scorer, "samples_by_key", False) or getattr(scorer, "folds_by_key", False)


def moves_inputs(detector):
    """Tell whether a fitted detector moves the inputs of its network, by steps in their units."""
    return any(isinstance(part, InputGradient) for part in detector._body.modules())


def snapshot(net):
    """Return everything of a network that could be changed.

    Parameters
    ----------
    net : nn.Module
        Any network.
    """
    return {
        "weights and buffers": [tensor.clone() for tensor in net.state_dict().values()],
        "identity": [id(p) for p in net.parameters()] + [id(b) for b in net.buffers()],
        "training flags": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "device": [p.device for p in net.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in net.modules()
        ],
        "modules": [id(m) for m in net.modules()],
    }


def assert_untouched(net, before):
    """Compare a network to its snapshot, bit by bit.

    Parameters
    ----------
    net : nn.Module
        The network.
    before : dict
        What `snapshot` gave.
    """
    for kind, found in snapshot(net).items():
        same = len(found) == len(before[kind]) and all(map(is_equal, found, before[kind]))
        assert same, f"The user's network was changed: its {kind}."


def is_equal(a, b):
    """Tell whether two tensors or values are equal."""
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and b is not None else a == b


class Recorder:
    """A callback of scikit-learn that notes what it is told."""

    def __init__(self):
        self.begun, self.ended, self.set_up, self.torn_down = [], [], 0, 0

    def setup(self, estimator, context):
        """Count the beginning of a fit."""
        self.set_up += 1

    def teardown(self, estimator, context):
        """Count the end of a fit."""
        self.torn_down += 1

    def on_fit_task_begin(self, estimator, context):
        """Note a task that begins."""
        self.begun.append(context.task_name)

    def on_fit_task_end(self, estimator, context):
        """Note a task that ends."""
        self.ended.append(context.task_name)
