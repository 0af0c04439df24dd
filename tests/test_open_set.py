"""A classifier with a reject option."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import scale
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector
from skood.open_set import OpenSetClassifier
from tests.networks import SmallCNN, sample_inputs, seeded

pytestmark = pytest.mark.filterwarnings("ignore:The features are signed", "ignore:k=")
REJECTS = "demands that no training row is called unknown"


@parametrize_with_checks(
    [
        OpenSetClassifier(LogisticRegression(), GMMDetector()),
        OpenSetClassifier(RandomForestClassifier(5, random_state=0), NNGuideDetector(k=3)),
    ],
    expected_failed_checks=lambda _: {
        "check_classifiers_train": REJECTS,
        "check_classifiers_classes": REJECTS,
    },
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture
def images():
    """Return images of 4 classes that a network tells apart, and far ones."""
    net = seeded(SmallCNN)
    X = sample_inputs(net, 200, seed=3)
    with torch.no_grad():
        y = net(torch.from_numpy(X)).argmax(1).numpy()
    return net, X, y


DETECTORS = [
    ASHDetector(),
    ASHDetector(layer="conv1"),
    GMMDetector(reg_covar=0.1),
    GradNormDetector(params="all"),
    NACDetector(layers=["conv1"]),
    NNGuideDetector(k=3),
    IsolationForest(random_state=0),
]


@pytest.mark.parametrize("detector", DETECTORS, ids=str)
def test_a_network_and_a_detector(detector, images):
    """The class is the network's, and the detector decides as on its own."""
    net, X, y = images
    model = OpenSetClassifier(net, detector).fit(X, y)
    known = model.predict(X) != -1
    assert 0.5 < known.mean()
    np.testing.assert_array_equal(model.predict(X)[known], y[known])
    with torch.no_grad():
        logits = net(torch.from_numpy(X))
    np.testing.assert_allclose(model.decision_function(X), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.predict_proba(X), logits.softmax(1), atol=1e-5)
    if not isinstance(detector, IsolationForest):
        alone = clone(detector).set_params(model=net).fit(X, y)
        np.testing.assert_allclose(model.score_samples(X), alone.score_samples(X), rtol=1e-4)
        np.testing.assert_array_equal(known, alone.predict(X) == 1)
    assert model.score(X, y) == pytest.approx(known.mean())
    assert model.score(X, np.full(200, -1)) == pytest.approx(1 - known.mean())
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(twin.predict(X), model.predict(X))


@pytest.mark.parametrize("detector", [GMMDetector(reg_covar=0.1), IsolationForest()], ids=str)
def test_one_pass_serves_both(detector, images):
    net, X, y = images
    rows = []
    model = OpenSetClassifier(net, detector).fit(X, y)
    counted = model.classifier_._network.module
    counted.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    model.classifier_._body = model.classifier_._network.features()
    model.predict(X)
    assert sum(rows) == len(X)


def test_a_failed_fit_leaves_what_was_fitted(iris):
    X, y = iris
    model = OpenSetClassifier(LogisticRegression(max_iter=1000), GMMDetector()).fit(X, y)
    expected = model.predict(X)
    for bad_X, bad_y in ((X[:, :2], np.zeros(150)), (X[:, :2], X[:, 0])):
        with pytest.raises(ValueError):
            model.fit(bad_X, bad_y)
        assert model.n_features_in_ == 4
        np.testing.assert_array_equal(model.predict(X), expected)


def test_rows_of_no_class_are_left_out_and_labels_may_be_words(iris):
    X, y = iris
    words = np.array(["a", "b", "c"])[y].astype(object)
    words[y == 2] = -1
    model = OpenSetClassifier(LogisticRegression(max_iter=1000), GMMDetector()).fit(X, words)
    assert model.classes_.tolist() == ["a", "b"]
    found = model.predict(X)
    assert set(found) == {"a", "b", -1}
    assert (found[y == 2] == -1).mean() > 0.8
    assert model.score(X, words) > 0.9
    named = clone(model).set_params(unknown_label="none of these").fit(X, words)
    assert set(named.predict(X)) == {"a", "b", "none of these"}


def test_skorch_nets_and_frozen_models(iris):
    from skorch import NeuralNetClassifier

    X, y = scale(iris[0]).astype(np.float32), iris[1] + 5
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=200,
        lr=0.1,
        train_split=None,
        verbose=0,
    )
    model = OpenSetClassifier(net, NNGuideDetector()).fit(X, y)
    assert model.score(X, y) > 0.8
    frozen = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
    assert OpenSetClassifier(frozen, ASHDetector(variant="p", percentile=0)).fit(X, y)
    with pytest.raises(NotFittedError):
        OpenSetClassifier(net, GMMDetector()).predict(X)


def test_searches_tune_the_parts(iris):
    X, y = iris
    model = OpenSetClassifier(LogisticRegression(max_iter=1000), NNGuideDetector())
    grid = {"detector__k": [1, 10], "classifier__C": [0.1, 1]}
    assert GridSearchCV(model, grid, cv=3).fit(X, y).best_score_ > 0.8


def test_bad_classes_and_detectors(images):
    net, X, y = images
    with pytest.raises(ValueError, match="4 logits, but y has 3 classes"):
        OpenSetClassifier(net, GMMDetector(reg_covar=0.1)).fit(X, y % 3 + 7)
    with pytest.raises(ValueError, match="The 'detector' parameter"):
        OpenSetClassifier(net, "GMM").fit(X, y)
