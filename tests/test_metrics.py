"""Metrics against slow references; scorers in scikit-learn's model selection."""

import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skood.metrics import (
    aupr_in_score,
    aupr_out_score,
    aurc_score,
    auroc_score,
    aurra_score,
    autc_score,
    ccr_at_fpr_score,
    detection_error_score,
    fpr_at_tpr_score,
    get_scorer,
    get_scorer_names,
    oscr_score,
    segmentation_score,
)


def reference_auroc(inside, outside):
    """Count the pairs that are ranked correctly, ties half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    return wins / (len(inside) * len(outside))


def reference_aupr(positive, negative):
    """Average over the positive rows the precision at the threshold that just accepts each."""
    precisions = []
    for threshold in positive:
        true = sum(s >= threshold for s in positive)
        false = sum(s >= threshold for s in negative)
        precisions.append(true / (true + false))
    return sum(precisions) / len(positive)


def reference_fpr(positive, negative, tpr):
    """Lower the threshold over all scores until enough positive rows are accepted."""
    for threshold in sorted({*positive, *negative}, reverse=True):
        if Fraction(sum(s >= threshold for s in positive), len(positive)) >= tpr:
            return sum(s >= threshold for s in negative) / len(negative)


def reference_detection_error(inside, outside):
    """Try every threshold, and one above all scores."""
    errors = []
    for threshold in [*inside, *outside, np.inf]:
        missed = sum(s < threshold for s in inside) / len(inside)
        accepted = sum(s >= threshold for s in outside) / len(outside)
        errors.append((missed + accepted) / 2)
    return min(errors)


def negated(scores):
    """Return the scores with the other sign."""
    return [-s for s in scores]


def fpr_out_score(y_true, y_score):
    """Compute FPR95 with OOD rows as the positive class."""
    return fpr_at_tpr_score(y_true, y_score, positive="out")


def reference_autc(inside, outside):
    """Average both error rates over the intervals between neighbouring scores."""
    scores = np.sort([*inside, *outside]) / 2
    if scores[0] == scores[-1]:
        return 0.5
    area = 0
    for low, high in zip(scores[:-1], scores[1:], strict=True):
        missed = np.mean([s / 2 < high for s in inside])
        accepted = np.mean([s / 2 >= high for s in outside])
        area += (high - low) / (scores[-1] - scores[0]) * (missed + accepted) / 2
    return area


TPR = Fraction(95, 100)
REFERENCES = {
    auroc_score: reference_auroc,
    aupr_in_score: reference_aupr,
    aupr_out_score: lambda inside, outside: reference_aupr(negated(outside), negated(inside)),
    fpr_at_tpr_score: lambda inside, outside: reference_fpr(inside, outside, TPR),
    fpr_out_score: lambda inside, outside: reference_fpr(negated(outside), negated(inside), TPR),
    detection_error_score: reference_detection_error,
    autc_score: reference_autc,
}
# What a metric becomes when the two kinds of row, and high and low scores, change places.
MIRRORED = {
    auroc_score: auroc_score,
    aupr_in_score: aupr_out_score,
    aupr_out_score: aupr_in_score,
    fpr_at_tpr_score: fpr_out_score,
    fpr_out_score: fpr_at_tpr_score,
    detection_error_score: detection_error_score,
    autc_score: autc_score,
}
METRICS = list(REFERENCES)
each_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
# Few distinct integers make ties within and between the kinds the rule; floats are the rest.
scores = st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6, allow_subnormal=False))
rows = st.lists(scores, min_size=1, max_size=25)


def joined(inside, outside):
    """Return labels and scores of both kinds of row as arrays."""
    y_true = np.repeat([0, -1], [len(inside), len(outside)])
    return y_true, np.array([*inside, *outside], dtype=float)


@each_metric
@settings(deadline=None, max_examples=60)
@given(inside=rows, outside=rows)
def test_equals_reference(metric, inside, outside):
    expected = REFERENCES[metric](inside, outside)
    assert metric(*joined(inside, outside)) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(inside=rows, outside=rows, percent=st.integers(1, 100), positive=st.booleans())
def test_fpr_equals_reference_at_any_tpr(inside, outside, percent, positive):
    level = Fraction(percent, 100)
    if positive:
        expected = reference_fpr(inside, outside, level)
    else:
        expected = reference_fpr(negated(outside), negated(inside), level)
    result = fpr_at_tpr_score(
        *joined(inside, outside), tpr=percent / 100, positive="in" if positive else "out"
    )
    assert result == expected


@pytest.mark.parametrize("n", [3, 7, 19, 49, 100])
def test_fpr_accepts_exactly_as_many_rows_as_needed(n):
    # OOD rows lie between the in-distribution rows, so that one row too many shows at once.
    y_true, y_score = joined(np.arange(n), np.arange(n) - 0.5)
    for k in range(1, n + 1):
        assert fpr_at_tpr_score(y_true, y_score, tpr=k / n) == (k - 1) / n


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decimals", [0, 2, 9])
@pytest.mark.parametrize("share", [0.001, 0.4, 0.6, 0.999])
def test_equals_scikit_learn_on_many_rows(rng, dtype, decimals, share):
    """From all tied to none; pairs are counted in integers, so that not even a bit differs."""
    inside = rng.random(30_000) < share
    scores = (rng.normal(size=30_000) + inside).round(decimals).astype(dtype)
    y_true = np.where(inside, 0, -1)
    values, index = np.unique(scores, return_inverse=True)
    n_in, n_out = (np.bincount(index[kind], minlength=len(values)) for kind in (inside, ~inside))
    doubled = (n_in * (2 * n_out.cumsum() - n_out)).sum()
    assert auroc_score(y_true, scores) == doubled / (2 * n_in.sum() * n_out.sum())
    assert auroc_score(y_true, scores) == pytest.approx(roc_auc_score(inside, scores), abs=1e-12)
    for tpr in [1e-9, 1.0, *rng.random(10)]:
        for positive, kind, sign in (("in", inside, 1), ("out", ~inside, -1)):
            fprs, tprs, _ = roc_curve(kind, sign * scores, drop_intermediate=False)
            expected = fprs[np.searchsorted(tprs, tpr)]
            assert fpr_at_tpr_score(y_true, scores, tpr=tpr, positive=positive) == expected


@each_metric
@settings(deadline=None, max_examples=30)
@given(inside=rows, outside=rows, seed=st.integers(0, 2**31))
def test_order_of_rows_does_not_matter(metric, inside, outside, seed):
    y_true, y_score = joined(inside, outside)
    order = np.random.default_rng(seed).permutation(len(y_true))
    expected = metric(y_true, y_score)
    # A sum of scores is rounded.
    tolerance = 1e-12 if metric is autc_score else 0
    assert metric(y_true[order], y_score[order]) == pytest.approx(expected, rel=0, abs=tolerance)


@pytest.mark.parametrize("metric", [m for m in METRICS if m is not autc_score])
@settings(deadline=None, max_examples=30)
@given(inside=rows, outside=rows)
def test_only_the_ranks_matter(metric, inside, outside):
    y_true, y_score = joined(inside, outside)
    ranks = np.unique(y_score, return_inverse=True)[1]
    expected = metric(y_true, y_score)
    assert metric(y_true, ranks) == expected
    assert metric(y_true, np.expm1(ranks / 10) - 3) == expected


@each_metric
@settings(deadline=None, max_examples=30)
@given(inside=rows, outside=rows)
def test_both_kinds_of_row_are_treated_alike(metric, inside, outside):
    mirrored = MIRRORED[metric](*joined(negated(outside), negated(inside)))
    assert mirrored == pytest.approx(metric(*joined(inside, outside)), abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "perfect", "constant", "worst"),
    [
        (auroc_score, 1, 0.5, 0),
        (aupr_in_score, 1, 0.75, (1 / 2 + 2 / 3 + 3 / 4) / 3),
        (aupr_out_score, 1, 0.25, 0.25),
        (fpr_at_tpr_score, 0, 1, 1),
        (fpr_out_score, 0, 1, 1),
        (detection_error_score, 0, 0.5, 0.5),
        (autc_score, 0, 0.5, 5 / 6),
    ],
)
def test_known_values(metric, perfect, constant, worst):
    y_true = [0, 1, 2, -1]
    assert metric(y_true, [3, 3, 3, 1]) == perfect
    assert metric(y_true, [2, 2, 2, 2]) == constant
    assert metric(y_true, [1, 2, 3, 4]) == pytest.approx(worst)


@each_metric
@pytest.mark.parametrize(
    "y_true",
    [
        ["cat", "dog", -1, "cat", -7],
        np.array(["cat", 3, -1, 0, -2.5], dtype=object),
        (0.0, 1.5, -0.5, 0.0, -2.0),
        torch.tensor([0, 1, -1, 0, -1]),
    ],
    ids=["strings", "objects", "floats", "tensor"],
)
@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.float32,
        lambda s: torch.tensor(s, requires_grad=True),
        lambda s: torch.tensor(s, dtype=torch.float16),
        lambda s: np.asarray(s, dtype=np.uint8),
    ],
    ids=["list", "float32", "requires_grad", "float16", "unsigned"],
)
def test_kinds_of_input(metric, y_true, kind):
    plain = [3.0, 1.0, 2.0, 1.0, 0.0]
    result = metric(y_true, kind(plain))
    assert type(result) is float
    assert result == pytest.approx(REFERENCES[metric]([3, 1, 1], [2, 0]))


@each_metric
def test_largest_scores_do_not_overflow(metric):
    largest = np.finfo(float).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = metric([0, 0, -1, -1], [largest, -largest, largest, -largest])
    assert result == pytest.approx(REFERENCES[metric]([1, 0], [1, 0]))


@each_metric
@pytest.mark.parametrize("y_true", [[0, 1, 2], [-1, -1, -2]], ids=["only_in", "only_out"])
def test_one_kind_of_row_gives_nan(metric, y_true):
    with pytest.warns(UndefinedMetricWarning, match="set to nan") as record:
        result = metric(y_true, [0.1, 0.2, 0.3])
    assert np.isnan(result) and type(result) is float
    assert record[0].filename == __file__


@each_metric
@pytest.mark.parametrize(
    ("y_score", "message"),
    [
        ([0.1, np.nan, 0.3], "y_score contains NaN"),
        ([0.1, np.inf, 0.3], "y_score contains infinity"),
        ([0.1, 0.2], "inconsistent numbers of samples"),
        (np.zeros((3, 2)), r"y_score must have shape \(n_samples,\), got \(3, 2\)"),
        (0.5, r"y_score must have shape \(n_samples,\), got \(\)"),
        ([1j, 0.2, 0.3], "Complex data not supported"),
        (["low", "high", "low"], "could not convert string"),
    ],
)
def test_bad_scores(metric, y_score, message):
    with pytest.raises(ValueError, match=message):
        metric([0, 1, -1], y_score)


@each_metric
def test_no_rows(metric):
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        metric([], [])


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, 95, np.nan])
def test_bad_tpr(tpr):
    with pytest.raises(ValueError, match="tpr must be greater than 0 and at most 1"):
        fpr_at_tpr_score([0, -1], [1, 0], tpr=tpr)


def test_bad_positive():
    with pytest.raises(ValueError, match='positive must be "in" or "out", got 1'):
        fpr_at_tpr_score([0, -1], [1, 0], positive=1)


class Near(OutlierMixin, BaseEstimator):
    """Score rows by their distance to a fixed point; keep the labels that are not OOD."""

    def __init__(self, point=0.0):
        self.point = point

    def fit(self, X, y=None):
        """Keep the in-distribution labels."""
        if y is not None:
            self.known_classes_ = np.unique([label for label in y if label >= 0])
        return self

    def score_samples(self, X):
        """Return the negated distances."""
        return -np.abs(np.asarray(X)[:, 0] - self.point)


class NearWithMore(Near):
    """Name further labels that are not OOD, as a frozen classifier knows more than a fold."""

    def _known_labels(self):
        return [0, 1, 2]


class NearWithoutLabels(Near):
    """Say that nothing is known about labels."""

    def _known_labels(self):
        return None


SIGNED = {
    "aupr_in": (aupr_in_score, 1),
    "aupr_out": (aupr_out_score, 1),
    "auroc": (auroc_score, 1),
    "autc": (autc_score, -1),
    "detection_error": (detection_error_score, -1),
    "fpr95": (fpr_at_tpr_score, -1),
}
each_name = pytest.mark.parametrize("name", SIGNED)
SPLIT = StratifiedKFold(3, shuffle=True, random_state=0)


@pytest.fixture
def data():
    """Return overlapping rows of two classes and of OOD rows."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, -1], 30)
    X = rng.normal(size=(90, 2)) + np.repeat([0.0, 1.0, 3.0], 30)[:, np.newaxis]
    return X, y


def test_scorer_names():
    assert get_scorer_names() == sorted(SIGNED)


@each_name
def test_scorer_is_the_signed_metric(name, data):
    X, y = data
    metric, sign = SIGNED[name]
    detector = Near().fit(X, y)
    result = get_scorer(name)(detector, X, y)
    assert type(result) is float
    assert 0 < abs(result) < 1
    assert result == sign * metric(y, detector.score_samples(X))


@each_name
def test_scorer_repr_and_pickle(name, data):
    X, y = data
    scorer = get_scorer(name)
    assert repr(scorer) == f"get_scorer({name!r})"
    loaded = pickle.loads(pickle.dumps(scorer))
    assert repr(loaded) == repr(scorer)
    assert loaded(Near(), X, y) == scorer(Near(), X, y)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("AUROC", "Did you mean 'auroc'"),
        ("roc_auc", "Did you mean 'autc' or 'auroc'"),
        ("fpr", "Did you mean 'fpr95'"),
        ("xyz", "no scorer 'xyz'. Known are"),
        (None, "no scorer None. Known are"),
    ],
)
def test_unknown_scorer(name, hint):
    with pytest.raises(ValueError, match=hint):
        get_scorer(name)


def wrappers():
    """Return ways to wrap a detector that is then fitted on X, y."""
    return {
        "bare": lambda detector: detector,
        "pipeline": lambda detector: make_pipeline(StandardScaler(), detector),
        "search": lambda detector: GridSearchCV(
            detector, {"point": [0.0]}, scoring=get_scorer("auroc"), cv=2
        ),
        "search_of_pipeline": lambda detector: GridSearchCV(
            make_pipeline(StandardScaler(), detector),
            {f"{type(detector).__name__.lower()}__point": [0.0]},
            scoring=get_scorer("auroc"),
            cv=2,
        ),
        "pipeline_of_search": lambda detector: make_pipeline(
            StandardScaler(), wrappers()["search"](detector)
        ),
    }


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("wrap", wrappers().values(), ids=wrappers())
@pytest.mark.parametrize(
    ("detector", "known"), [(Near, [0]), (NearWithMore, [0, 1, 2]), (NearWithoutLabels, [0, 1])]
)
def test_held_out_classes_are_ood(wrap, detector, known, frozen, data):
    X, y = data
    seen = np.tile(np.flatnonzero(y != 1), 2)
    order = np.random.default_rng(0).permutation(seen)
    estimator = wrap(detector()).fit(X[order], y[order])
    if frozen:
        estimator = FrozenEstimator(estimator)
    expected = auroc_score(np.where(np.isin(y, known), 0, -1), estimator.score_samples(X))
    assert get_scorer("auroc")(estimator, X, y) == expected
    other = [0] if 1 in known else [0, 1]
    assert expected != auroc_score(np.where(np.isin(y, other), 0, -1), estimator.score_samples(X))


def test_scorer_without_known_labels_counts_negative_labels_only(data):
    X, y = data
    detector = Near().fit(X)
    assert get_scorer("auroc")(detector, X, y) == auroc_score(y, detector.score_samples(X))


def test_scorer_falls_back_on_decision_function(data):
    X, y = data

    class OnlyDecision(BaseEstimator):
        def decision_function(self, X):
            return -X[:, 0]

    assert get_scorer("auroc")(OnlyDecision(), X, y) == auroc_score(y, -X[:, 0])


def test_scorer_of_an_estimator_without_scores(data):
    X, y = data
    with pytest.raises(TypeError, match="LinearRegression has neither score_samples nor"):
        get_scorer("auroc")(LinearRegression().fit(X, y), X, y)


@each_name
def test_search_finds_the_better_point(name, data):
    X, y = data
    # OOD rows lie to the right: a point far to the left ranks rows by their position.
    search = GridSearchCV(Near(), {"point": [3.0, -9.0, 2.0]}, scoring=get_scorer(name), cv=SPLIT)
    assert search.fit(X, y).best_params_ == {"point": -9.0}
    metric, sign = SIGNED[name]
    assert search.score(X, y) == sign * metric(y, -X[:, 0])


def test_search_over_a_pipeline_of_scikit_learn(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), OneClassSVM(nu=0.3))
    # gamma=1e4 isolates every training row: all test rows get the same score.
    search = GridSearchCV(
        pipeline, {"oneclasssvm__gamma": [1e4, 0.1]}, scoring=get_scorer("auroc"), cv=SPLIT
    )
    assert search.fit(X, y).best_params_ == {"oneclasssvm__gamma": 0.1}


def test_cross_validate_with_several_scorers(data):
    X, y = data
    forest = IsolationForest(n_estimators=10, random_state=0)
    result = cross_validate(
        forest,
        X,
        y,
        cv=SPLIT,
        scoring={name: get_scorer(name) for name in SIGNED},
        return_estimator=True,
        return_indices=True,
    )
    folds = zip(result["estimator"], result["indices"]["test"], strict=True)
    for fold, (fitted, test) in enumerate(folds):
        for name, (metric, sign) in SIGNED.items():
            expected = sign * metric(y[test], fitted.score_samples(X[test]))
            assert result[f"test_{name}"][fold] == expected


@pytest.mark.parametrize("routing", [False, True])
def test_cross_val_score(routing, data):
    X, y = data
    with config_context(enable_metadata_routing=routing):
        values = cross_val_score(Near(), X, y, cv=SPLIT, scoring=get_scorer("fpr95"))
    expected = [-fpr_at_tpr_score(y[i], Near().score_samples(X[i])) for _, i in SPLIT.split(X, y)]
    assert values.tolist() == expected


def test_fold_with_one_kind_of_row_is_nan(data):
    X, y = data
    with pytest.warns(UndefinedMetricWarning, match="set to nan"):
        # Sorted labels and no shuffling: each fold holds one label, which `fit` did not see.
        values = cross_val_score(Near(), X, y, cv=3, scoring=get_scorer("auroc"))
    assert np.isnan(values).all()


def open_set_curve(y, predicted, scores):
    """Return (FPR, CCR) at every threshold, from the strictest on."""
    inside = y >= 0
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        accepted = scores >= threshold
        ccr = (accepted & inside & (y == predicted)).sum() / inside.sum()
        points.append(((accepted & ~inside).sum() / (~inside).sum(), ccr))
    return points


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2), st.integers(0, 6)), min_size=2))
@settings(max_examples=150, deadline=None)
def test_open_set_metrics_equal_their_curves(rows):
    """Ties included: few distinct scores."""
    y, predicted, scores = np.array(rows).T
    risks = [
        np.mean([not (t >= 0 and t == p) for t, p, s in rows if s >= score]) for _, _, score in rows
    ]
    assert aurc_score(y, predicted, scores) == pytest.approx(np.mean(risks))
    assert aurra_score(y, predicted, scores) == pytest.approx(1 - np.mean(risks))
    if (y < 0).all() or (y >= 0).all():
        with pytest.warns(UndefinedMetricWarning):
            assert np.isnan(oscr_score(y, predicted, scores))
        return
    curve = open_set_curve(y, predicted, scores)
    fprs, ccrs = np.array(curve).T
    assert oscr_score(y, predicted, scores) == pytest.approx(np.trapezoid(ccrs, fprs))
    for fpr in (0.0, 0.05, 0.3, 0.5, 1.0):
        expected = max(ccr for point, ccr in curve if point <= fpr + 1e-12)
        assert ccr_at_fpr_score(y, predicted, scores, fpr=fpr) == pytest.approx(expected)


def test_open_set_metrics_of_bad_input():
    with pytest.raises(ValueError, match="fpr=1.5 must lie"):
        ccr_at_fpr_score([0, -1], [0, 0], [0.5, 0.1], fpr=1.5)
    for metric in (oscr_score, ccr_at_fpr_score, aurc_score, aurra_score):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            metric([0, -1], [0], [0.5, 0.1])
        with pytest.raises(ValueError, match="NaN"):
            metric([0, -1], [0, 0], [np.nan, 0.1])
    assert oscr_score(["a", "b", -1], ["a", "b", "a"], [3, 2, 1]) == 1


@settings(deadline=None, max_examples=30)
@given(inside=rows, outside=rows, factor=st.floats(0.1, 10), shift=st.floats(-10, 10))
def test_autc_of_scaled_scores(inside, outside, factor, shift):
    y_true, y_score = joined(inside, outside)
    if np.ptp(y_score) > 1e-6:
        expected = autc_score(y_true, y_score)
        assert autc_score(y_true, factor * y_score + shift) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def maps():
    """Return label maps and scores; the last two images hold pixels of one kind only."""
    rng = np.random.default_rng(0)
    y = rng.choice([0, 1, -1, 255], size=(5, 6, 7))
    y[3][y[3] < 0], y[4] = 1, -1
    return y, rng.normal(size=y.shape).round(1) + (y >= 0)


@pytest.mark.parametrize("dtype", [np.float32, torch.float32])
@each_name
def test_segmentation_score(name, dtype, maps):
    y, y_score = maps
    y_score = torch.tensor(y_score).float() if dtype is torch.float32 else y_score.astype(dtype)
    metric, _ = SIGNED[name]
    plain = np.asarray(y_score)
    used = y != 255
    expected = metric(y[used], plain[used])
    assert segmentation_score(name, y, y_score) == expected
    assert segmentation_score(metric, y, y_score) == expected
    images = [metric(y[i][used[i]], plain[i][used[i]]) for i in range(3)]
    assert segmentation_score(name, y, y_score, average="images") == pytest.approx(np.mean(images))


def test_segmentation_score_of_one_kind(maps):
    y, y_score = maps
    for average in ("pixels", "images"):
        with pytest.warns(UndefinedMetricWarning, match="set to nan"):
            assert np.isnan(segmentation_score("auroc", y[3:4], y_score[3:4], average=average))


def test_segmentation_score_of_bad_input(maps):
    y, y_score = maps
    with pytest.raises(ValueError, match="no scorer 'auc'. Did you mean"):
        segmentation_score("auc", y, y_score)
    with pytest.raises(ValueError, match="average must be"):
        segmentation_score("auroc", y, y_score, average="macro")
    with pytest.raises(ValueError, match="maps of one shape"):
        segmentation_score("auroc", y, y_score[:, :-1])
    with pytest.raises(ValueError, match="maps of one shape"):
        segmentation_score("auroc", y[0], y_score[0])
