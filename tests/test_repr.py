"""How detectors print: a network is one line, alone and inside of other estimators."""

import html
import re

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from skood import ASHDetector, FeatureExtractor, GMMDetector, NNGuideDetector
from skood.calibration import ConformalDetector
from skood.ensemble import EnsembleDetector
from skood.open_set import OpenSetClassifier
from skood.testing.common import assert_untouched, snapshot
from tests.networks import MLP, ResNet18, seeded

LINE = "<ResNet18: 11,181,642 parameters on cpu>"


@pytest.fixture(scope="module")
def net():
    return seeded(ResNet18)


def test_a_network_is_one_line(net):
    assert repr(ASHDetector(net)) == f"ASHDetector(model={LINE})"
    assert str(FeatureExtractor(net, pool="max")) == (f"FeatureExtractor(model={LINE}, pool='max')")
    with config_context(print_changed_only=False):
        assert f"model={LINE}" in repr(GMMDetector(net))


def test_a_layer_that_is_one_line_stays():
    assert repr(GMMDetector(nn.Linear(4, 3))) == (
        "GMMDetector(model=Linear(in_features=4, out_features=3, bias=True))"
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda detector: make_pipeline(FeatureExtractor(detector.model), detector),
        lambda detector: GridSearchCV(detector, {"k": [1, 10]}),
        ConformalDetector,
        lambda detector: OpenSetClassifier(detector.model, GMMDetector(detector.model)),
        lambda detector: EnsembleDetector([("guide", detector)], detector.model),
    ],
    ids=["Pipeline", "GridSearchCV", "ConformalDetector", "OpenSetClassifier", "EnsembleDetector"],
)
def test_inside_of_another_estimator(wrap, net):
    estimator = wrap(NNGuideDetector(net))
    assert LINE in repr(estimator) and "Conv2d" not in repr(estimator)
    shown = html.unescape(estimator._repr_html_())
    assert f"'{LINE}'" in shown and "Conv2d" not in shown


def test_html(net):
    before = snapshot(net)
    detector = ASHDetector(net, percentile=0.9)
    X = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    for shown in (detector._repr_html_(), detector.fit(X)._repr_html_()):
        shown = html.unescape(shown)
        assert re.search(f"<td class=\"value\">'{LINE}'</td>", shown)
        assert "Conv2d" not in shown and "percentile" in shown
    assert_untouched(net, before)


def test_parameters_are_the_users_own(net):
    detector = ASHDetector(net)
    assert detector.get_params()["model"] is net
    assert clone(detector).model is net
    assert clone(OpenSetClassifier(net, detector)).classifier is net
    assert clone(EnsembleDetector([("ash", detector)], net)).model is net
    assert detector.get_params(deep=False).keys() == detector.get_params().keys()


def test_lazy_parameters_do_not_hinder_printing():
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    assert repr(GMMDetector(lazy)) == "GMMDetector(model=<Sequential: 8 parameters on cpu>)"


def test_networks_on_features_print_no_address():
    assert " at 0x" not in repr(GMMDetector(seeded(MLP)))
