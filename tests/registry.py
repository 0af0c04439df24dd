"""The instances of all methods, as the files in tests/detectors have them, and what they need."""

import functools
import importlib
import pkgutil
import warnings

import pytest
from sklearn.base import clone

from skood import FeatureExtractor
from skood.estimators.kinds import LogitsDetector
from skood.learning.learning import LearningScorer
from skood.testing import common
from skood.testing.common import load_iris_float, random_images
from tests import detectors
from tests.networks import SmallCNN, seeded

MODULES = [
    importlib.import_module(f"{detectors.__name__}.{module.name}")
    for module in pkgutil.iter_modules(detectors.__path__)
    if module.name.startswith("test_")
]
METHODS = [module.METHOD for module in MODULES if hasattr(module, "METHOD")]
DETECTORS = [type(method.default) for method in METHODS]
DEFAULTS = [method.default for method in METHODS]
SETTINGS = [detector for method in METHODS for detector in method.settings.values()]
IN_NETWORKS = [detector for method in METHODS for detector in method.in_networks.values()]
OTHER_SETTINGS = [detector for detector in SETTINGS if detector not in DEFAULTS]
EXTRACTORS = [FeatureExtractor(), FeatureExtractor(pool="max", batch_size=7)]

NAMES = {
    id(detector): f"{method.name}-{where}{name}"
    for method in METHODS
    for where, instances in (("", method.settings), ("network-", method.in_networks))
    for name, detector in instances.items()
}


def name_of(detector):
    """Return the name of an instance, for the ids of tests."""
    return NAMES.get(id(detector)) or f"{type(detector).__name__}-{detector}".replace("\n", "")


def each(detectors, often=None):
    """Parametrize a test by detectors; where `often` says some classes, by all others nightly.

    Settings other than the default are then among the others.
    """
    cases = [
        detector
        if often is None or (type(detector) in often and detector not in OTHER_SETTINGS)
        else pytest.param(detector, marks=pytest.mark.nightly)
        for detector in detectors
    ]
    return pytest.mark.parametrize("detector", cases, ids=name_of)


def one_of_each_kind():
    """Return the defaults of methods that differ in what they consume, by their bases."""
    kinds = {type(detector).__mro__[1]: detector for detector in reversed(DEFAULTS)}
    return list(kinds.values())


# What takes a second for each instance is tested of these, and of all others nightly.
KINDS = {type(detector) for detector in one_of_each_kind()}


def is_tested_often(detector):
    """Tell whether it is a default, or one of a kind in a network."""
    in_network = any(detector is one for one in IN_NETWORKS)
    return type(detector) in KINDS if in_network else detector in DEFAULTS


def method_of(detector):
    """Return the method of a detector."""
    return METHODS[DETECTORS.index(type(detector))]


def with_fixed(detector):
    """Return a clone that settles nothing by the first rows."""
    return clone(detector).set_params(**method_of(detector).fixed)


# What a detector needs, found on the detector itself


def needs_logits(detector):
    """Tell whether a head is needed, or fitted where there is no network."""
    return detector._needs_logits


def needs_head(detector):
    """Tell whether a last linear layer is needed that gives the logits."""
    inner = getattr(detector, "detector", None) or detector
    return needs_logits(detector) and not isinstance(inner, LogitsDetector)


def layer_parameter(detector):
    """Return the parameter that names a layer or several; None if there is none."""
    return next((name for name in ("layers", "layer") if hasattr(detector, name)), None)


@functools.cache
def fitted(detector):
    """Return a clone that is fitted: an instance of `IN_NETWORKS` to images, else to features."""
    net = seeded(SmallCNN) if any(detector is one for one in IN_NETWORKS) else None
    data = load_iris_float() if net is None else random_images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(detector).set_params(model=net).fit(*data)


def learns(detector):
    """Tell whether scores depend on the rows of `fit` beyond the head."""
    return isinstance(fitted(detector).scorer_, LearningScorer)


def depends_on_keys(detector):
    """Tell whether what is learned is drawn by the keys of rows."""
    return common.depends_on_keys(fitted(detector))


def not_exportable(detector):
    """Return why the graph cannot be exported, such as that it differentiates the network."""
    parts = fitted(detector)
    modules = [*parts.scorer_.modules(), *parts._body.modules()]
    return next((m.not_exportable for m in modules if hasattr(m, "not_exportable")), None)
