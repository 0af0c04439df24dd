"""What every detector promises: scikit-learn's checks, inputs, nothing of the user's changed."""

import copy
import io
import pickle
import threading
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError, UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    MSPDetector,
    NACDetector,
    NNGuideDetector,
)
from skood._compat import move_estimator_to
from skood.metrics import auroc_score
from skood.testing.running import detector_checks, needs_gpu
from skood.testing.running import name_of as name_of_check
from tests.detectors import NEEDS_VECTORS
from tests.detectors.test_gradnorm import gradnorm
from tests.networks import (
    MLP,
    Branching,
    EndsInSoftmax,
    ResNet,
    Segmenter,
    SmallCNN,
    TwoHeads,
    WithDropout,
    seeded,
)
from tests.registry import (
    DEFAULTS,
    EXTRACTORS,
    IN_NETWORKS,
    KINDS,
    METHODS,
    OTHER_SETTINGS,
    each,
    layer_parameter,
    method_of,
    name_of,
    needs_head,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:The features are signed", "ignore:lbfgs failed", "ignore:.*is singular"
)


# What a setting may break though the default does not; the rest is that of the class.
CHECKS_OF_SETTINGS = {
    *("check_scores_are_finite", "check_pickles", "check_clone_and_set_params"),
    *("check_rows_are_scored_each_on_its_own", "check_ood_rows_score_lower"),
    # Of scikit-learn those that fit seldom or never.
    *("check_estimator_cloneable", "check_estimator_repr", "check_no_attributes_set_in_init"),
    *("check_do_not_raise_errors_in_init_or_set_params", "check_estimators_overwrite_params"),
    *("check_parameters_default_constructible", "check_get_params_invariance"),
    *("check_set_params", "check_estimators_unfitted", "check_fit_idempotent"),
}
# What comes before the method: validation, dtypes, labels. As scikit-learn's checks of arrays on
# a GPU they are run of one detector of each kind, and of the others nightly.
CHECKS_OF_INPUT = {
    *("check_kind_of_input", "check_dtypes", "check_memmap", "check_bad_X_and_y"),
    *("check_bad_X_after_fit", "check_ood_rows_are_left_out_and_counted"),
    *("check_array_api_input", "check_array_api_mixed_inputs"),
}
CHECKS_INSIDE_OF_NETWORKS = {
    *("check_network_is_untouched", "check_network_is_untouched_when_fit_fails"),
    *("check_state_of_the_network_does_not_matter", "check_autocast_does_not_matter"),
    *("check_pickle_with_a_network", "check_threads_share_a_detector"),
}


def checks(detectors, kind, names=None):
    """Parametrize a test by detectors and all checks, or those of some names."""
    cases = []
    for detector in detectors:
        agreement = method_of(detector).agreement
        for _, check in detector_checks(detector, kinds=[kind], agreement=agreement):
            name = name_of_check(check)
            short = name.partition("(")[0]
            if names is None or short in names:
                of_input = short in CHECKS_OF_INPUT or needs_gpu(check)
                seldom = of_input and type(detector) not in KINDS
                reason = method_of(detector).excused.get(short)
                marks = [pytest.mark.nightly] if seldom else []
                marks += [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
                case = pytest.param(detector, check, marks=marks, id=f"{name_of(detector)}-{name}")
                cases.append(case)
    return cases


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("detector", "check"),
    checks(DEFAULTS, "features") + checks(OTHER_SETTINGS, "features", CHECKS_OF_SETTINGS),
)
def test_on_features(detector, check):
    check(detector)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("detector", "check"),
    checks([next(iter(method.in_networks.values())) for method in METHODS], "network")
    + checks(
        [d for method in METHODS for d in list(method.in_networks.values())[1:]],
        "network",
        CHECKS_INSIDE_OF_NETWORKS,
    ),
)
def test_in_networks(detector, check):
    check(detector)


def test_names_of_checks_are_known():
    checks = detector_checks(DEFAULTS[0])
    names = {name_of_check(check).partition("(")[0] for _, check in checks}
    assert names >= CHECKS_OF_SETTINGS | CHECKS_INSIDE_OF_NETWORKS | CHECKS_OF_INPUT


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(EXTRACTORS)
def test_scikit_learn_checks_of_extractors(estimator, check):
    check(estimator)


def test_array_api_checks_run():
    """They skip silently where scipy's array API support is off."""
    from scipy._lib._array_api import SCIPY_ARRAY_API

    assert SCIPY_ARRAY_API


def test_array_api_checks_on_cuda_are_marked(request):
    """Without a GPU they fail on a CUDA build of torch, if conftest does not skip them."""
    items = [item for item in request.session.items if "check_array_api" in item.name]
    assert all(item.get_closest_marker("cuda") for item in items if "cuda" in item.name)


def put(detector, net):
    """Return a clone of a detector with a network."""
    return clone(detector).set_params(model=net)


# Inputs


# Labels


def test_a_network_that_may_know_unseen_classes_is_warned_of(iris):
    X, y = iris
    net = seeded(MLP, in_features=4, classes=3).double()
    detector = GMMDetector(net).fit(X[y < 2], y[y < 2])
    with pytest.warns(UserWarning, match="50 rows of the classes 2, which fit did not see"):
        detector.score(X, y)
    frozen = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, y))
    detector = GMMDetector(frozen).fit(X[y < 2], y[y < 2])
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(detector.score(X, y))


# The network


def test_dropout_is_off(iris):
    X, y = iris
    net = seeded(WithDropout, in_features=4).double().train()
    detector = ASHDetector(net).fit(X, y)
    np.testing.assert_array_equal(detector.score_samples(X), detector.score_samples(X))
    assert net.training and net.dropout.training


def test_half_precision_networks(images):
    X, y = images
    for dtype in (torch.bfloat16, torch.float16):
        net = seeded(SmallCNN).to(dtype)
        for detector in (ASHDetector(net), ASHDetector(net, "conv2"), NACDetector(net, ["conv2"])):
            scores = detector.fit(X, y).score_samples(X)
            exact = clone(detector).set_params(model=copy.deepcopy(net).float()).fit(X, y)
            assert scores.dtype == np.float32
            assert np.isfinite(scores).all()
            if isinstance(detector, ASHDetector):
                assert np.corrcoef(scores, exact.score_samples(X))[0, 1] > 0.99


def test_recurrent_and_branching_networks_for_all_parameters(rng):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 5, batch_first=True)
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            return self.fc(self.lstm(x)[0][:, -1])

    for net, X in (
        (Recurrent().double(), rng.normal(size=(9, 6, 4))),
        (seeded(Branching).double(), rng.normal(size=(9, 8))),
    ):
        scores = GradNormDetector(net, params="all").fit(X).score_samples(X)
        np.testing.assert_allclose(scores, gradnorm(net, X), rtol=1e-8)


def test_methods_that_take_no_maps_of_logits(images):
    X, _ = images
    net = seeded(Segmenter)
    for detector in (NNGuideDetector(net, "backbone"), NACDetector(net, ["backbone"])):
        with pytest.raises(ValueError, match="needs .n_samples, n_classes"):
            detector.fit(X)
    with pytest.raises(ValueError, match="needs .n_samples, n_classes"):
        GradNormDetector(net, params="all").fit(X)
    tokens = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="returns logits of shape"):
        NNGuideDetector(tokens).fit(X[:, 0])


def test_label_maps(images):
    """Negative pixels are OOD and 255 is ignored, in `fit` and in `score`."""
    X, _ = images
    rng = np.random.default_rng(0)
    y = rng.choice([0, 1, 255, -1], size=(24, 8, 8))
    detector = ASHDetector(seeded(Segmenter), "backbone").fit(X, y)
    scores = detector.score_samples(X)
    assert detector.offset_ == pytest.approx(
        np.quantile(scores[(y == 0) | (y == 1)], 0.05), rel=1e-4
    )
    used = y != 255
    expected = auroc_score(np.where(y[used] < 0, -1, 0), scores[used])
    assert detector.score(X, y) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"labels of pixels, of shape \(24, 4, 8\)"):
        detector.score(X, y[:, :4])
    with pytest.raises(ValueError, match="y must hold labels of pixels"):
        detector.score(X, np.zeros(24))


def test_gradnorm_of_half_precision_at_a_high_temperature(images):
    X, y = images
    net = seeded(SmallCNN)
    settings = {"params": "all", "temperature": 1000.0}
    exact = GradNormDetector(net, **settings).fit(X, y).score_samples(X)
    half = GradNormDetector(copy.deepcopy(net).bfloat16(), **settings).fit(X, y)
    np.testing.assert_allclose(half.score_samples(X), exact, rtol=0.1)


def test_an_embedding_that_rescales_itself_is_left_alone(rng):
    tokens = nn.Embedding(9, 4, max_norm=0.1)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.fc = tokens, nn.Linear(4, 3)

        def forward(self, ids):
            return self.fc(self.tokens(ids).mean(1))

    before = tokens.weight.detach().clone()
    X = {"ids": rng.integers(0, 9, size=(20, 5)).astype(np.uint16)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NNGuideDetector(Words(), k=2).fit(X).score_samples(X)
    assert torch.equal(tokens.weight, before)


def test_a_logit_score_that_is_a_module_keeps_its_mode(iris):
    class Top(nn.Module):
        def forward(self, logits):
            return logits.amax(1)

    top = Top().train()
    ASHDetector(logit_score=top).fit(*iris)
    assert top.training


def test_the_warning_of_further_training_travels_and_knows_its_own_weights(iris):
    X, y = iris
    net = seeded(MLP, in_features=4).double()
    detector = GMMDetector(net).fit(X, y)
    with torch.no_grad():
        net.hidden.weight.add_(1)
    with pytest.warns(UserWarning, match="trained further"):
        copy.deepcopy(detector).score_samples(X)
    half = nn.Linear(4, 3).half()
    detector = ASHDetector(half).fit(X, y)
    with torch.no_grad():
        half.weight.add_(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.score_samples(X)


def test_networks_with_odd_attributes(iris):
    X, y = iris
    net = seeded(MLP, in_features=4).double()
    expected = ASHDetector(net).fit(X, y).score_samples(X)
    net.cache = [net.hidden(torch.as_tensor(X))]
    np.testing.assert_array_equal(ASHDetector(net).fit(X, y).score_samples(X), expected)
    with torch.inference_mode():
        inferred = copy.deepcopy(seeded(MLP, in_features=4).double())
    NACDetector(inferred, ["hidden", None]).fit(X, y)
    net.lock = threading.Lock()
    with pytest.raises(TypeError, match="MLP cannot be copied"):
        ASHDetector(net).fit(X, y)


def test_wrapped_networks(images):
    X, y = images
    net = seeded(SmallCNN)
    expected = GMMDetector(net).fit(X, y).score_samples(X)
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        found = GMMDetector(wrapped).fit(X, y).score_samples(X)
        np.testing.assert_array_equal(found, expected)
    scripted = torch.jit.trace(net, torch.as_tensor(X))
    with pytest.raises(TypeError, match="TorchScript"):
        GMMDetector(scripted).fit(X, y)


def test_training_the_network_further_is_noticed(images):
    X, y = images
    net = seeded(SmallCNN)
    detector = GMMDetector(net).fit(X, y)
    with torch.no_grad():
        net.conv1.weight.add_(1)
    with pytest.warns(UserWarning, match="trained further"):
        detector.score_samples(X)


# Composition


def test_a_failed_fit_leaves_what_was_fitted(iris):
    X, y = iris
    for detector in (GMMDetector(), NNGuideDetector(k=5)):
        scores = detector.fit(pd.DataFrame(X, columns=list("abcd")), y).score_samples
        before = scores(pd.DataFrame(X, columns=list("abcd")))
        with pytest.raises(ValueError, match="continuous"):
            detector.fit(X[:, :3], X[:, 0])
        np.testing.assert_array_equal(scores(pd.DataFrame(X, columns=list("abcd"))), before)
        with warnings.catch_warnings(), pytest.raises(UserWarning):
            warnings.simplefilter("error")
            detector.set_params(**({"k": 999} if isinstance(detector, NNGuideDetector) else {}))
            detector.fit(np.zeros_like(X), y)
        np.testing.assert_array_equal(scores(pd.DataFrame(X, columns=list("abcd"))), before)


def test_parameters_set_after_fit_reach_no_pickle(iris, images):
    X, y = iris
    changes = [
        (GMMDetector(seeded(MLP, in_features=4).double()), {"model": None}),
        (ASHDetector(), {"percentile": 0.9, "variant": "p", "model": nn.Linear(4, 3)}),
        (NACDetector(), {"n_bins": 7, "layers": ["x"]}),
        (NNGuideDetector(), {"k": 1}),
    ]
    for detector, parameters in changes:
        expected = detector.fit(X, y).score_samples(X)
        detector.set_params(**parameters)
        np.testing.assert_array_equal(detector.score_samples(X), expected)
        twin = pickle.loads(pickle.dumps(detector))
        np.testing.assert_array_equal(twin.score_samples(X), expected)
    net = seeded(SmallCNN)
    detector = GMMDetector(net, reg_covar=0.1).fit(*images)
    expected = detector.score_samples(images[0])
    net.train()(torch.as_tensor(images[0]))
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(images[0]), expected)


def test_clone_shares_the_network():
    net = nn.Linear(4, 3)
    for default in DEFAULTS:
        detector = clone(default).set_params(model=net)
        assert detector.model is net
        assert clone(make_pipeline(FeatureExtractor(net), detector))[-1].model is net
    frozen = FrozenEstimator(LogisticRegression())
    assert clone(ASHDetector(frozen)).model is frozen
    classifier = LogisticRegression()
    assert clone(ASHDetector(classifier)).model is not classifier


def test_a_pickle_holds_no_tensor_of_ours(iris):
    X, y = iris
    for default in DEFAULTS:
        state = clone(default).fit(X, y).__getstate__()
        assert "scorer_" not in state and "_network" not in state
        buffer = io.BytesIO()
        pickle.dump(state, buffer)
        assert b"torch" not in buffer.getvalue()


SEARCHES = {
    "percentile": (ASHDetector(), {"percentile": [0.0, 0.5], "variant": ["s", "p", "b"]}),
    "k": (NNGuideDetector(), {"k": [1, 5], "energy_weighted": [True, False]}),
    "pipeline": (make_pipeline(PCA(3), NNGuideDetector()), {"nnguidedetector__k": [1, 10]}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name != "pipeline" else [])
        for name in SEARCHES
    ],
)
def test_searches_give_the_same_sequential_in_threads_and_in_processes(name, iris):
    X, y = iris
    X = np.vstack([X, X[:30] * 2 + 1])
    y = np.r_[y, -np.ones(30, dtype=int)]
    estimator, grid = SEARCHES[name]
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    results = []
    for backend in ("sequential", "threading", "loky"):
        with joblib.parallel_config(backend, n_jobs=2):
            search = GridSearchCV(estimator, grid, cv=cv).fit(X, y)
        results.append(search.cv_results_["mean_test_score"])
        assert np.isfinite(results[-1]).all() and len(set(results[-1])) > 1
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9)
    np.testing.assert_allclose(results[0], results[2], rtol=1e-9)


def test_cross_val_score_of_a_network(images):
    X, y = images
    y = np.where(y == 3, -1, y)
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(GMMDetector(seeded(SmallCNN), reg_covar=0.1), X, y, cv=cv)
    assert np.isfinite(scores).all()


def test_a_progress_bar_runs(iris):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    X, y = iris
    grid = GridSearchCV(NNGuideDetector(), {"k": [1, 5]}, cv=StratifiedKFold(2, shuffle=True))
    grid.set_callbacks(ProgressBar()).fit(X, np.where(y == 2, -1, y))
    make_pipeline(PCA(2), GMMDetector()).set_callbacks(ProgressBar()).fit(X, y)
    GMMDetector().set_callbacks(ProgressBar()).fit(X, y)


# What model may be


class Classifier(nn.Module):
    """A small network for skorch."""

    def __init__(self, width=8, softmax=False):
        super().__init__()
        self.hidden = nn.Linear(4, width)
        self.fc = nn.Linear(width, 3)
        self.softmax = softmax

    def forward(self, X):
        """Map features to logits."""
        logits = self.fc(torch.relu(self.hidden(X)))
        return logits.softmax(1) if self.softmax else logits


def skorch_net(**kwargs):
    """Return an unfitted skorch net."""
    from skorch import NeuralNetClassifier

    torch.manual_seed(0)
    settings = {"criterion": nn.CrossEntropyLoss, "max_epochs": 3, "lr": 0.1, "verbose": 0}
    return NeuralNetClassifier(Classifier, train_split=None, **{**settings, **kwargs})


@each(DEFAULTS, often=KINDS)
def test_an_unfitted_skorch_net_is_fitted(detector, iris):
    X, y = iris
    names = np.array(["a", "b", "c"], dtype=object)[y]
    names[:10] = -1
    net = skorch_net(module__width=16)
    detector = put(detector, net).fit(X, names)
    assert not getattr(net, "initialized_", False)
    with_module = put(detector, detector.model_.module_).fit(X, names)
    np.testing.assert_array_equal(with_module.score_samples(X), detector.score_samples(X))
    assert detector.known_classes_.tolist() == ["a", "b", "c"]
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), detector.score_samples(X))


def test_a_binary_skorch_net_is_fitted(iris):
    """Its loss takes labels of float32 alone."""
    from skorch import NeuralNetBinaryClassifier

    X, y = iris[0][:100], np.array(["a", "b"])[iris[1][:100]]
    net = NeuralNetBinaryClassifier(nn.Linear(4, 1), max_epochs=1, verbose=0)
    detector = MSPDetector(net).fit(X, y)
    assert detector.known_classes_.tolist() == ["a", "b"]
    frozen = MSPDetector(FrozenEstimator(detector.model_)).fit(X, y)
    np.testing.assert_array_equal(frozen.score_samples(X), detector.score_samples(X))


def test_a_search_over_the_learning_rate_of_a_skorch_net(iris):
    X, y = iris
    X = np.vstack([X, X[:30] * 2 + 1])
    y = np.r_[y, -np.ones(30, dtype=int)]
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    grid = {"model__lr": [0.001, 0.1], "model__module__width": [4, 8]}
    search = GridSearchCV(GMMDetector(skorch_net()), grid, cv=cv, error_score="raise").fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) > 2


@each(DEFAULTS, often=KINDS)
def test_frozen_models_are_used_as_they_are(detector, iris):
    X, y = iris
    net = skorch_net(module__width=16).fit(X.astype(np.float32), y)
    by_module = put(detector, net.module_).fit(X, y).score_samples(X)
    frozen = put(detector, FrozenEstimator(net)).fit(X, y)
    np.testing.assert_array_equal(frozen.score_samples(X), by_module)
    assert not hasattr(frozen, "model_")


def test_a_binary_head_has_the_right_energy(iris):
    X, y = (a[iris[1] < 2] for a in iris)
    z = LogisticRegression(max_iter=1000).fit(X, y).decision_function(X)
    found = ASHDetector(variant="p", percentile=0).fit(X, y).score_samples(X)
    np.testing.assert_allclose(found, np.logaddexp(-z / 2, z / 2), rtol=1e-10)


def test_plain_baselines(images):
    X, y = images
    net = seeded(SmallCNN)
    with torch.no_grad():
        logits = net(torch.as_tensor(X))
    energy = ASHDetector(net, variant="p", percentile=0).fit(X)
    np.testing.assert_allclose(energy.score_samples(X), logits.logsumexp(1), rtol=1e-5)
    msp = ASHDetector(net, variant="p", percentile=0, logit_score="msp").fit(X)
    np.testing.assert_allclose(msp.score_samples(X), logits.softmax(1).amax(1), rtol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (NNGuideDetector(k=0), "'k' parameter"),
        (NNGuideDetector(bank_size=0), "'bank_size' parameter"),
        (NNGuideDetector(bank_size=1.5), "'bank_size' parameter"),
        (ASHDetector(percentile=1.0), "'percentile' parameter"),
        (ASHDetector(percentile=-0.1), "'percentile' parameter"),
        (ASHDetector(variant="x"), "'variant' parameter"),
        (ASHDetector(false_alarm_rate=0.0), "'false_alarm_rate' parameter"),
        (ASHDetector(false_alarm_rate=0.6), "'false_alarm_rate' parameter"),
        (ASHDetector(batch_size=0), "'batch_size' parameter"),
        (GradNormDetector(temperature=0), "'temperature' parameter"),
        (GradNormDetector(params=["wieght"]), "Did you mean 'weight'"),
        (GradNormDetector(params=lambda name: False), "selects no parameter"),
        (NACDetector(n_bins=7), "n_bins=7 must be even"),
        (NACDetector(n_bins=2), "n_bins=2 must be even and at least 4"),
        (NACDetector(alpha=[1.0, 2.0]), "alpha has 2 entries for 1 layers"),
        (NACDetector(alpha=[-1.0]), "alpha must be 'auto' or positive"),
        (
            NACDetector(layers=["conv1"]),
            "layer='conv1' names a submodule, but there is no network to",
        ),
        (NACDetector(layers=[]), "must name at least one layer"),
        (GMMDetector(layer="conv1"), "layer='conv1' names a submodule, but there is no network to"),
        (GMMDetector(reg_covar=-1.0), "'reg_covar' parameter"),
        (ASHDetector(device="nowhere"), "device='nowhere' cannot be used here"),
        (ASHDetector(device="cuda:77"), "device='cuda:77' cannot be used here"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_parameters(detector, message, iris):
    with pytest.raises(ValueError, match=message):
        detector.fit(*iris)


@each(DEFAULTS)
def test_unknown_layers_name_the_near_misses(detector, images):
    parameter = layer_parameter(detector)
    if parameter is None:
        pytest.skip("takes no layers")
    wrong = {parameter: ["conv3"] if parameter == "layers" else "conv3"}
    with pytest.raises(ValueError, match="SmallCNN has no layer 'conv3'. Did you mean 'conv"):
        put(detector, seeded(SmallCNN)).set_params(**wrong).fit(*images)


@each(DEFAULTS)
def test_networks_that_cannot_be_cut(detector, iris, images):
    X, y = iris
    logits_needed = [
        (seeded(EndsInSoftmax, in_features=4), ValueError, "ends in a softmax"),
        (seeded(TwoHeads, in_features=4), TypeError, "returns a tuple, in which no single entry"),
        (seeded(TwoHeads, in_features=4, returns="sum"), ValueError, "after its last linear"),
        (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), ValueError, "ends in a log-softmax"),
        (RandomForestClassifier(n_estimators=2), TypeError, "no coef_ and intercept_"),
        (MLP, TypeError, "model is a class"),
        ("net", TypeError, "model is str"),
        (nn.LazyLinear(3), ValueError, "lazy parameters"),
        (
            FrozenEstimator(SVC(kernel="linear").fit(X, y + 2 * (X[:, 0] > 5.8))),
            TypeError,
            "one row a",
        ),
        (FrozenEstimator(LinearRegression().fit(X, y)), TypeError, "one row a class"),
        (FrozenEstimator(LogisticRegression()), NotFittedError, "not fitted"),
        (FrozenEstimator(skorch_net()), NotFittedError, "not fitted"),
        (skorch_net(module__softmax=True, criterion=nn.NLLLoss), ValueError, "ends in a softmax"),
        (nn.Linear(5, 3).double(), ValueError, "takes 5 features"),
        (
            seeded(MLP, in_features=5),
            ValueError,
            r"MLP fails on two rows of X, X of shape \(2, 4\)",
        ),
    ]
    for model, error, message in logits_needed:
        if message == "after its last linear" and not needs_head(detector):
            continue
        with pytest.raises(error, match=message):
            put(detector, model).fit(X.astype(np.float32), y)
    if method_of(detector).refused("segmenter") == NEEDS_VECTORS:
        with pytest.raises(ValueError, match=r"(?s)needs .n_samples, n_classes.*layer=\.\.\."):
            put(detector, seeded(Segmenter)).fit(*images)


@each(DEFAULTS)
@pytest.mark.parametrize("model", [LogisticRegression(), skorch_net()], ids=["sklearn", "skorch"])
def test_a_classifier_to_be_fitted_needs_two_classes(detector, model, iris):
    X, y = iris
    for labels, got in ((None, "no y"), (np.zeros(150, dtype=int), "one class")):
        with pytest.raises(ValueError, match=f"at least two classes in y; got {got}"):
            put(detector, model).fit(X, labels)


def test_a_container_is_no_layer():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.fc(x)

    X = np.random.default_rng(0).normal(size=(10, 4))
    with pytest.raises(ValueError, match="never calls the layer 'blocks'.*'blocks.0'"):
        GMMDetector(Listed(), "blocks").fit(X)


def test_non_finite_activations_are_told(images):
    X, y = images
    net = seeded(SmallCNN)
    with torch.no_grad():
        net.conv1.weight.mul_(1e38)
    with pytest.raises(ValueError, match="network gives NaN or infinity"):
        GMMDetector(net).fit(1e3 * X, y)
    with pytest.raises(ValueError, match="lower `percentile`"):
        ASHDetector(net, "conv1").fit(1e3 * X, y)


def test_k_beyond_the_bank_is_told(iris):
    X, y = iris
    with pytest.warns(UserWarning, match="k=1000 is more than the 150 rows"):
        detector = NNGuideDetector(k=1000).fit(X, y)
    assert detector.k_ == 150


def test_signed_features_are_told_to_ash(iris):
    X, y = iris
    with pytest.warns(UserWarning, match="features are signed"):
        ASHDetector().fit(X - X.mean(0), y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ASHDetector().fit(X, y)
        # The energy alone.
        ASHDetector(percentile=0, variant="p").fit(X - X.mean(0), y)


def test_warnings_point_at_the_users_line(iris):
    X, y = iris
    net = seeded(MLP, in_features=4).double()
    detector = GMMDetector(net).fit(X, y)
    with torch.no_grad():
        net.hidden.weight.add_(1)
    calls = [
        lambda: ASHDetector().fit(X - X.mean(0), y),
        lambda: NNGuideDetector(k=999).fit(X, y),
        lambda: NACDetector(alpha=1e9).fit(X, y),
        lambda: GMMDetector(reg_covar=0).fit(np.ones_like(X), y),
        lambda: detector.predict(X),
        lambda: detector.score_samples(X),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(
    "logit_score",
    [lambda x: x, lambda x: x.sum(1, keepdim=True), lambda x: 1.0, lambda x: x.argmax(1)],
)
def test_a_callable_must_give_one_score_a_row(logit_score, iris):
    with pytest.raises(ValueError, match="logit_score must map logits"):
        ASHDetector(logit_score=logit_score).fit(*iris)


def test_saturated_neurons_are_told(iris):
    X, y = iris
    with pytest.warns(UserWarning, match="neuron states are saturated"):
        NACDetector(alpha=1e9).fit(X, y)


def test_full_covariances_that_do_not_fit_are_told(monkeypatch):
    X = np.random.default_rng(0).normal(size=(4, 50_000)).astype(np.float32)
    with pytest.raises(ValueError, match="GiB.*'tied'"):
        GMMDetector().fit(X, [0, 0, 1, 1])
    assert np.isfinite(GMMDetector(covariance_type="diag").fit(X).score_samples(X)).all()


def test_gaussians_that_are_singular_are_told(iris):
    X, y = iris
    flat = X.copy()
    flat[:, 1] = 7
    for covariance_type in ("full", "diag"):
        detector = GMMDetector(reg_covar=0, covariance_type=covariance_type)
        with pytest.warns(UserWarning, match=r"covariance of class 2 \(50 rows.* is singular"):
            assert np.isfinite(detector.fit(flat, y).score_samples(X)).all()
    one_row = np.r_[0, np.ones(149, dtype=int)]
    with pytest.warns(UserWarning, match=r"class 0 \(1 rows"):
        GMMDetector(reg_covar=0).fit(X, one_row)


@pytest.mark.cuda
@each(DEFAULTS + IN_NETWORKS + OTHER_SETTINGS, often=KINDS)
def test_cuda_equals_cpu(detector, iris, images, monkeypatch):
    # Products of convolutions have 10 bits else, and GrOOD squares their differences.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    X, y = iris
    net = None
    if detector in IN_NETWORKS:
        X, y = images
        net = seeded(SmallCNN)
    on_cpu = put(detector, net).fit(X, y)
    on_gpu = put(detector, None if net is None else copy.deepcopy(net).cuda())
    on_gpu = on_gpu.set_params(device="cuda").fit(X, y)
    np.testing.assert_allclose(
        on_gpu.score_samples(X), on_cpu.score_samples(X), rtol=1e-3, atol=1e-12
    )
    with config_context(array_api_dispatch=True):
        tensor = torch.as_tensor(X).cuda()
        scores = clone(on_gpu).fit(tensor, y).score_samples(tensor)
    assert scores.is_cuda


def test_resnet_blocks_for_every_detector(rng):
    X, y = rng.normal(size=(12, 3, 8, 8)).astype(np.float32), np.arange(12) % 3
    net = seeded(ResNet)
    for detector in (
        ASHDetector(net, "layer4"),
        GMMDetector(net, "layer2", reg_covar=0.1),
        NACDetector(net, ["layer1", "layer2", "layer3", "avgpool"]),
        NNGuideDetector(net, "layer3", k=2),
    ):
        assert np.isfinite(detector.fit(X, y).score_samples(X)).all()


@pytest.mark.parametrize("dtype", [">i4", ">f8"])
def test_labels_of_foreign_byte_order(dtype, iris):
    X, y = iris
    labels = np.where(y == 2, -1, y).astype(dtype)
    detector = GMMDetector().fit(X, labels)
    assert detector.known_classes_.tolist() == [0, 1]
    assert detector.score(X, labels) > 0.9


def test_a_detector_fitted_on_tensors_moves_to_numpy(iris):
    X, y = iris
    with config_context(array_api_dispatch=True):
        detector = GMMDetector().fit(torch.tensor(X), torch.tensor(y))
        moved = move_estimator_to(detector, np, "cpu")
        assert isinstance(moved.known_classes_, np.ndarray)
        np.testing.assert_array_equal(moved.predict(X), detector.predict(torch.tensor(X)).numpy())
