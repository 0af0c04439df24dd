"""Parameters that are declared once: signature, validation, docstring, types."""

import inspect
import pickle
from numbers import Real

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skood
from skood._compat import Interval
from skood.base import BaseDetector
from skood.estimators.kinds import FeatureDetector
from skood.estimators.parameters import param

ESTIMATORS = [
    cls
    for cls in vars(skood).values()
    if inspect.isclass(cls) and issubclass(cls, (BaseDetector, skood.FeatureExtractor))
]


class ScaledNorm(FeatureDetector):
    """Minus the norm of the features, to a power.

    Parameters
    ----------
    power : float, default=1.0
        The power.

    Notes
    -----
    A norm of its own.
    """

    power: float = param(Interval(Real, 0, None, closed="neither"), default=1.0)

    def _make_scorer(self):
        return Norm(self.power)


class Norm(torch.nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, features):
        return -(features.norm(dim=1) ** self.power)


class OfAnotherDefault(ScaledNorm):
    """The same with another default."""

    power: float = param(Interval(Real, 0, None, closed="neither"), default=2.0)


class OfItsOwn(ScaledNorm):
    """One that has a constructor of its own."""

    _parameter_constraints = {**BaseDetector._parameter_constraints, "size": [Real]}

    def __init__(self, model=None, *, size=3, device="auto", batch_size=None):
        self.model, self.size, self.device, self.batch_size = model, size, device, batch_size
        self.layer, self.power, self.verbose, self.false_alarm_rate = None, size, False, 0.05


class Inherits(OfItsOwn):
    """It inherits that constructor."""


def test_declared_parameters_make_the_constructor():
    assert str(inspect.signature(ScaledNorm)) == (
        "(model: Any = None, layer: str | None = None, *, power: float = 1.0, "
        "channel_axis: int | None = None, false_alarm_rate: float = 0.05, "
        "device: str | torch.device = 'auto', "
        "batch_size: int | None = None, verbose: bool | int = False) -> None"
    )
    net = torch.nn.Linear(2, 2)
    detector = ScaledNorm(net, "x", power=3)
    assert (detector.model, detector.layer, detector.power) == (net, "x", 3)
    assert OfAnotherDefault().power == 2 and ScaledNorm().power == 1
    with pytest.raises(TypeError, match=r"ScaledNorm\.__init__\(\) .*unexpected .*'powers'"):
        ScaledNorm(powers=3)


def test_values_are_validated_as_declared(rng):
    X = rng.normal(size=(20, 3))
    with pytest.raises(ValueError, match="The 'power' parameter of ScaledNorm must be a float"):
        ScaledNorm(power=-1.0).fit(X)
    with pytest.raises(ValueError, match="The 'false_alarm_rate' parameter of ScaledNorm"):
        ScaledNorm(false_alarm_rate=0.7).fit(X)
    with pytest.raises(ValueError, match="The 'size' parameter of OfItsOwn"):
        OfItsOwn(size="large").fit(X)


def test_clone_set_params_and_pickle(rng):
    X = rng.normal(size=(20, 3))
    detector = clone(ScaledNorm().set_params(power=2.0)).fit(X)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))
    assert again.get_params() == detector.get_params()


@pytest.mark.parametrize("cls", [OfItsOwn, Inherits])
def test_a_constructor_of_ones_own_is_kept(cls, rng):
    X = rng.normal(size=(20, 3))
    assert list(inspect.signature(cls).parameters) == ["model", "size", "device", "batch_size"]
    assert clone(cls(size=2)).fit(X).predict(X).shape == (20,)


def test_docstrings_take_what_they_lack_from_the_bases():
    doc = ScaledNorm.__doc__
    start, *sections = doc.split("----\n")
    assert start.startswith("Minus the norm of the features, to a power.")
    assert doc.index("model : nn.Module") < doc.index("power : float") < doc.index("device : str")
    assert doc.index("Attributes\n") < doc.index("offset_ : float") < doc.index("Notes\n")
    assert "logistic regression" not in doc.split("layer : ")[0]
    assert OfAnotherDefault.__doc__.count("power : ") == 1


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_every_parameter_is_described_once(cls):
    _, after = cls.__doc__.split("Parameters\n----------\n")
    entries = [line.split(" : ")[0] for line in after.splitlines() if " : " in line]
    described = entries[: len(inspect.signature(cls).parameters)]
    assert described == list(inspect.signature(cls).parameters)
    assert len(entries) == len(set(entries))


def test_dask_tells_two_fits_apart(rng):
    base = pytest.importorskip("dask.base")
    X = rng.normal(size=(20, 3))
    one, two = (skood.GMMDetector().fit(part) for part in (X[:10], X[10:]))
    assert base.tokenize(one) != base.tokenize(two)
