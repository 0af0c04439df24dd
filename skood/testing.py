"""The checks that every detector of skood passes, for detectors written elsewhere."""

import copy
import pickle
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest import SkipTest, TestCase

import joblib
import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError, SkipTestWarning, UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from skood._compat import get_namespace_and_device, move_estimator_to
from skood._learning import LearningScorer
from skood._testing_networks import HABITS, OddCNN, SmallCNN, seeded
from skood.features import FeatureExtractor
from skood.metrics import auroc_score

__all__ = ["check_detector", "detector_checks", "parametrize_with_detector_checks"]

KINDS = ("features", "network")
# `assertRaisesRegex` and `assertWarnsRegex`, so that pytest is not needed here.
expect = TestCase()


def check_detector(
    detector: Any,
    *,
    kinds: Sequence[str] = KINDS,
    agreement: float = 1.0,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:
    """Check that a detector keeps what those of skood promise.

    Scikit-learn's own `check_estimator` is part of it. Beyond: kinds of input and of labels, dtypes
    and array libraries; out-of-distribution rows are left out by ``fit`` and score lower; scores
    are finite and each row's its own; X and the network are left as they were; pickles, clones,
    Pipelines, threads and callbacks; and clear errors.

    Parameters
    ----------
    detector : estimator
        An instance, best of a subclass of `skood.base.BaseDetector`. Its `model` is replaced where
        a check needs a network.
    kinds : sequence of {"features", "network"}, default=("features", "network")
        Which checks: those on features, with ``model=None`` or a linear head, and those in front
        of a small network of images (n, 1, 8, 8) with the layers "conv1", "bn", "conv2", "relu",
        "avgpool" and "fc".
    agreement : float, default=1.0
        The share of rows whose scores in a narrow dtype must agree with float64. Less than 1 is
        for scores that jump, as those of bins do.
    expected_failed_checks : dict, default=None
        ``{name of a check: reason}`` of checks that may fail, as for scikit-learn's
        `check_estimator`.

    Returns
    -------
    results : list of tuple (str, str)
        For each check its name and "passed", "skipped" or "xfail".

    Raises
    ------
    Exception
        That of the first check that fails, with the check's name as a note.

    See Also
    --------
    parametrize_with_detector_checks : The same as tests of pytest.

    Examples
    --------
    >>> from skood import GMMDetector
    >>> from skood.testing import check_detector
    >>> results = check_detector(GMMDetector(), kinds=["network"])
    >>> ("check_network_is_untouched", "passed") in results
    True
    """
    results = []
    expected_failed_checks = expected_failed_checks or {}
    for instance, check in detector_checks(detector, kinds=kinds, agreement=agreement):
        name, status = name_of(check), "passed"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(instance)
        except SkipTest as skipped:
            status = "skipped"
            warnings.warn(f"{name} is skipped: {skipped}", SkipTestWarning, stacklevel=2)
        except Exception as error:
            if not {name, name.partition("(")[0]} & set(expected_failed_checks):
                error.add_note(f"{name} fails for {name_of(detector)}.")
                raise
            status = "xfail"
        results.append((name, status))
    return results


def detector_checks(
    detector: Any, *, kinds: Sequence[str] = KINDS, agreement: float = 1.0
) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """Yield the checks of `check_detector`, as scikit-learn's `estimator_checks_generator` does.

    Parameters
    ----------
    detector : estimator
        See `check_detector`.
    kinds : sequence of {"features", "network"}, default=("features", "network")
        See `check_detector`.
    agreement : float, default=1.0
        See `check_detector`.

    Yields
    ------
    detector : estimator
        The detector.
    check : callable
        Called with the detector; raises if the check fails.
    """
    if isinstance(detector, type):
        raise TypeError(f"Pass an instance, {detector.__name__}(), not the class.")
    checks: list[Callable] = []
    if "features" in kinds:
        for estimator, check in estimator_checks_generator(detector):
            yield estimator, _skip_without_gpu(check) if needs_gpu(check) else check
        checks += FEATURE_CHECKS
        checks += [partial(check_dtypes, dtype=dtype, agreement=agreement) for dtype in DTYPES]
    if "network" in kinds:
        checks += NETWORK_CHECKS
        if not getattr(detector, "looks_inside", False):
            checks += HEAD_CHECKS
    for check in checks:
        yield detector, check


def needs_gpu(check):
    """Tell whether a check of scikit-learn's takes arrays on "cuda".

    Parameters
    ----------
    check : callable
        As `estimator_checks_generator` yields it.
    """
    given = getattr(check, "keywords", {}).values()
    return any("cuda" in (value, getattr(value, "device", None)) for value in given)


def _skip_without_gpu(check):
    """Return a check that skips without a GPU: scikit-learn asks only how torch was built."""

    @wraps(check.func)
    def check_on_gpu(*args, **given):
        if not torch.cuda.is_available():
            raise SkipTest("needs a GPU")
        check.func(*args, **given)

    return partial(check_on_gpu, *check.args, **check.keywords)


def parametrize_with_detector_checks(
    detectors: Iterable[Any],
    *,
    kinds: Sequence[str] = KINDS,
    agreement: float | Callable[[Any], float] = 1.0,
) -> Any:
    """Return a decorator that makes each check of each detector a test of pytest.

    Parameters
    ----------
    detectors : list of estimators
        Instances.
    kinds : sequence of {"features", "network"}, default=("features", "network")
        See `check_detector`.
    agreement : float or callable, default=1.0
        See `check_detector`; or a function of the detector.

    Returns
    -------
    decorator : pytest.MarkDecorator
        For a test with the arguments `detector` and `check`.

    Examples
    --------
    >>> from skood import GMMDetector
    >>> from skood.testing import parametrize_with_detector_checks
    >>> @parametrize_with_detector_checks([GMMDetector(), GMMDetector(covariance_type="tied")])
    ... def test_my_detectors(detector, check):
    ...     check(detector)
    """
    import pytest

    pairs = [
        pair
        for detector in detectors
        for pair in detector_checks(
            detector,
            kinds=kinds,
            agreement=agreement(detector) if callable(agreement) else agreement,
        )
    ]
    return pytest.mark.parametrize(("detector", "check"), pairs, ids=name_of)


def name_of(value):
    """Return a test's id: a check with its keywords, or an estimator; the same in every process.

    Parameters
    ----------
    value : callable or estimator
        The check or the estimator.
    """
    if isinstance(value, partial):
        given = ",".join(f"{k}={v}" for k, v in value.keywords.items() if k != "agreement")
        return f"{value.func.__name__}({given})" if given else value.func.__name__
    return getattr(value, "__name__", None) or re.sub(r" at 0x\w+|\s", "", str(value))


def _put(detector, model):
    """Return a clone of a detector with a model."""
    return clone(detector).set_params(model=model)


def _iris():
    """Return 150 rows of 4 positive float64 features and their 3 classes."""
    return load_iris(return_X_y=True)


def _images():
    """Return 24 random images (24, 1, 8, 8), float32, and labels of 4 classes."""
    X = np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype(np.float32)
    return X, np.arange(24) % 4


def _optional(name):
    """Import a library that a check is about, or skip the check."""
    try:
        return __import__(name)
    except ImportError as error:
        raise SkipTest(f"{name} is not installed") from error


# Input


def _read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


INPUTS = {
    "fortran": np.asfortranarray,
    "read-only": _read_only,
    "negative stride": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "big endian": lambda X: X.astype(">f8"),
    "list": lambda X: X.tolist(),
    "pandas": lambda X: _optional("pandas").DataFrame(X),
    "polars": lambda X: _optional("polars").DataFrame(X, schema=list("abcd")),
    "torch": torch.as_tensor,
    "requires grad": lambda X: torch.as_tensor(X).clone().requires_grad_(),
    "not contiguous": lambda X: torch.as_tensor(X.T.copy()).T,
    "object": lambda X: X.astype(object),
}


def check_kind_of_input(detector, kind):
    """Check that each kind of array gives the scores of a numpy array."""
    X, y = _iris()
    converted = INPUTS[kind](X)
    fitted = clone(detector).fit(X, y)
    expected = fitted.score_samples(X)
    told = f"A {kind} array gives other scores than X as numpy float64, "
    np.testing.assert_allclose(
        fitted.score_samples(converted), expected, rtol=1e-10, err_msg=told + "in score_samples."
    )
    scores = clone(detector).fit(converted, y).score_samples(converted)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float64, "Scores must be float64."
    np.testing.assert_allclose(scores, expected, rtol=1e-10, err_msg=told + "in fit.")


def check_memmap(detector):
    """Check that a read-only memmap gives the scores of an array in memory."""
    X, y = _iris()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        np.save(Path(folder) / "X.npy", X)
        memmap = np.load(Path(folder) / "X.npy", mmap_mode="r")
        scores = clone(detector).fit(memmap, y).score_samples(memmap)
    expected = clone(detector).fit(X, y).score_samples(X)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


DTYPES = ["float32", "float16", "bfloat16", "int64", "uint8", "uint16"]


def check_dtypes(detector, dtype, agreement=1.0):
    """Check that other dtypes score as float64, and that float32 stays float32."""
    X, y = _iris()
    tensor = torch.as_tensor(10 * X).to(getattr(torch, dtype))
    # The head is given, since logistic regression itself differs in float32.
    head = FrozenEstimator(LogisticRegression(max_iter=1000).fit(tensor.double().numpy(), y))
    exact = _put(detector, head).fit(tensor.double().numpy(), y)
    exact = exact.score_samples(tensor.double().numpy())
    found = _put(detector, head).fit(tensor, y).score_samples(tensor)
    expected = np.float32 if dtype == "float32" else np.float64
    assert found.dtype == expected, f"Scores of {dtype} rows are {found.dtype}, not {expected}."
    rtol = 1e-3 if dtype == "float32" else 1e-10
    if agreement < 1:
        agreeing = np.isclose(found, exact).mean()
        assert agreeing > agreement, f"Only {agreeing:.1%} of the {dtype} rows score as in float64."
    else:
        np.testing.assert_allclose(found, exact, rtol=rtol, atol=rtol)
    if dtype != "bfloat16":
        again = _put(detector, head).fit(tensor.numpy(), y).score_samples(tensor.numpy())
        np.testing.assert_array_equal(again, found)


def check_results_follow_torch_under_dispatch(detector):
    """Check that tensors give tensors under ``array_api_dispatch``."""
    X, y = (torch.as_tensor(a) for a in _iris())
    with config_context(array_api_dispatch=True):
        detector = clone(detector).fit(X, y)
        scores, labels = detector.score_samples(X), detector.predict(X)
    assert isinstance(scores, torch.Tensor) and labels.dtype == torch.int64
    assert isinstance(detector.known_classes_, torch.Tensor)


def check_moves_to_another_array_library(detector):
    """Check that tensors after numpy are refused until scikit-learn has moved the detector."""
    X, y = _iris()
    detector = clone(detector).fit(X, y)
    tensor = torch.as_tensor(X)
    with config_context(array_api_dispatch=True):
        xp, _, device = get_namespace_and_device(tensor)
        with expect.assertRaisesRegex(ValueError, "must use the same namespace"):
            detector.predict(tensor)
        moved = move_estimator_to(detector, xp, device)
        found = moved.score_samples(tensor)
    assert isinstance(moved.known_classes_, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), detector.score_samples(X), rtol=1e-12)


def check_X_and_y_are_not_modified(detector):
    """Check that nothing is written to the arrays and tensors of the user."""
    X, y = _iris()
    tensor = torch.as_tensor(X.copy())
    detector = clone(detector).fit(X, y)
    detector.score_samples(tensor)
    clone(detector).fit(tensor, y).predict(tensor)
    before = _iris()
    np.testing.assert_array_equal(X, before[0], err_msg="X was written to.")
    np.testing.assert_array_equal(tensor, before[0], err_msg="The tensor X was written to.")
    np.testing.assert_array_equal(y, before[1], err_msg="y was written to.")


def check_two_rows_are_enough(detector):
    """Check that two rows of one class, of two, or without labels are fitted."""
    X = np.array([[0.0, 1.0], [2.0, 0.5]])
    for y in (None, [0, 0], [0, 1]):
        scores = clone(detector).fit(X, y).score_samples([[0.0, 1.0], [50.0, 50.0]])
        assert np.isfinite(scores).all(), f"Scores after fit on two rows: {scores}."


def check_positions_are_averaged(detector, shape):
    """Check that maps and tokens without a network are averaged over positions."""
    X, y = np.random.default_rng(0).normal(size=shape), np.arange(30) % 3
    pooled = X.mean((2, 3)) if len(shape) == 4 else X.mean(1)
    detector = clone(detector).fit(X, y)
    if getattr(detector.scorer_, "samples_by_key", False):
        # Samples are drawn by what rows hold: of their means others.
        return
    np.testing.assert_allclose(
        detector.score_samples(X),
        clone(detector).fit(pooled, y).score_samples(pooled),
        rtol=1e-8,
    )


# Scores


def check_ood_rows_score_lower(detector):
    """Check that strong features of one class score higher than weak ones of none."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.uniform(0, 0.5, size=(90, 6))
    X[np.arange(90), 2 * y] += 5
    X[np.arange(90), 2 * y + 1] += 5
    X_ood = rng.uniform(0, 0.5, size=(90, 6))
    detector = clone(detector).fit(X[:60], y[:60])
    scores = detector.score_samples(np.vstack([X[60:], X_ood]))
    assert np.isfinite(scores).all(), "score_samples gives NaN or infinity."
    auroc = auroc_score(np.r_[np.ones(30), -np.ones(90)], scores)
    # Not 0.9: a bank of five rows, drawn at random, may miss a class.
    assert auroc > 0.6, (
        f"The AUROC of rows of known classes against rows of none is {auroc:.2f}: higher scores "
        "must mean in-distribution. Are they inverted?"
    )


def check_rows_are_scored_each_on_its_own(detector, seed=0):
    """Check that no score depends on the rows beside its own, or on the batch size."""
    rng = np.random.default_rng(seed)
    X, y = _blobs(rng)
    detector = clone(detector)
    if "random_state" in detector.get_params():
        detector.set_params(random_state=0)
    detector.fit(X, y)
    new = rng.normal(size=(20, 4)) * 4
    scores = detector.score_samples(new)
    order = rng.permutation(20)
    close = {"rtol": 1e-9, "atol": 1e-9, "err_msg": "A score depends on the rows beside its own."}
    np.testing.assert_allclose(detector.score_samples(new[order]), scores[order], **close)
    np.testing.assert_allclose(detector.score_samples(new[:7]), scores[:7], **close)
    for batch_size in (1, 3, 100):
        detector.set_params(batch_size=batch_size)
        np.testing.assert_allclose(detector.score_samples(new), scores, **close)


def check_scores_are_finite(detector, dtype, scale):
    """Check that scores of rows up to 1e30 are finite, in the dtype of X."""
    X, y = _blobs(np.random.default_rng(0))
    X *= scale
    X[:, 1] = scale
    X = X.astype(dtype)
    detector = clone(detector).fit(X, y)
    assert np.isfinite(detector.offset_), f"offset_ is {detector.offset_} at the scale {scale:g}."
    for factor in (0, 1e-30, 1, 1e30):
        with np.errstate(over="ignore"):
            new = np.clip(X.astype(np.float64) * factor, -1e30, 1e30).astype(dtype)
        scores = detector.score_samples(new)
        assert np.isfinite(scores).all(), (
            f"score_samples gives NaN or infinity for {dtype} rows of size {scale * factor:g} "
            f"after fit on rows of size {scale:g}."
        )
        assert scores.dtype == dtype, f"Scores of {dtype} rows are {scores.dtype}."
    if scale == 0:
        assert (detector.predict(X) == 1).all(), "Rows that are all equal are in-distribution."


def _blobs(rng):
    """Return 30 rows around 3 class means, positive mostly, and their labels."""
    y = np.arange(30) % 3
    return rng.normal(size=(30, 4)) + 3 * rng.uniform(size=(3, 4))[y] + 3, y


# Labels


RELABEL = {
    "int": lambda y: y,
    "str": lambda y: np.array(["cat", "dog", "emu"])[y],
    "series": lambda y: _optional("pandas").Series(y),
    "tensor": torch.as_tensor,
    "float": lambda y: y.astype(float),
    "list": lambda y: [int(label) for label in y],
}


def check_ood_rows_are_left_out_and_counted(detector, labels):
    """Check that ``fit`` leaves out rows with a negative label, OOD rows for ``score``."""
    X, y = _iris()
    X_all = np.vstack([X, X[:20] * 3 + 5])
    given = RELABEL[labels](y)
    mixed = (
        torch.cat([given, -torch.ones(20, dtype=torch.int64)])
        if isinstance(given, torch.Tensor)
        else [*given, *[-1] * 20]
    )
    without = clone(detector).fit(X, y)
    detector = clone(detector).fit(X_all, mixed)
    np.testing.assert_allclose(
        detector.score_samples(X),
        without.score_samples(X),
        rtol=1e-7,
        err_msg="fit learns from rows whose label is negative; they are out-of-distribution.",
    )
    assert detector.known_classes_.tolist() == sorted(set(np.asarray(given).tolist()))
    assert not hasattr(detector, "classes_"), "Call it known_classes_: predict returns +1 and -1."
    scores = detector.score_samples(X_all)
    inside, outside = scores[:150, None], scores[150:]
    auroc = ((inside > outside) + 0.5 * (inside == outside)).mean()
    np.testing.assert_allclose(
        detector.score(X_all, mixed),
        auroc,
        rtol=1e-6,
        err_msg="score is not the AUROC of the scores with negative labels as OOD.",
    )


def check_unseen_classes_count_as_ood(detector):
    """Check that classes which a labelled ``fit`` did not see count as OOD in ``score``."""
    X, y = _iris()
    labelled = clone(detector).fit(X[y < 2], y[y < 2])
    np.testing.assert_allclose(
        labelled.score(X, y), labelled.score(X, np.where(y < 2, y, -1)), rtol=1e-6
    )
    unlabelled = clone(detector).fit(X[y < 2])
    with expect.assertWarns(UndefinedMetricWarning):
        assert np.isnan(unlabelled.score(X, y))


def check_fit_predict_uses_y(detector):
    """Check that ``fit_predict`` hands y on, which `OutlierMixin` does not."""
    X, y = _iris()
    y = np.where(y == 2, -1, y)
    expected = clone(detector).fit(X, y).predict(X)
    found = clone(detector).fit_predict(X, y)
    np.testing.assert_array_equal(found, expected, err_msg="fit_predict drops y.")


# Composition


def check_clone_and_set_params(detector):
    """Check that a clone of a fitted detector is not fitted, and fits the same."""
    X, y = _iris()
    fitted = clone(detector).fit(X, y)
    twin = clone(fitted)
    assert repr(twin) == repr(detector) and not hasattr(twin, "offset_")
    np.testing.assert_array_equal(twin.fit(X, y).predict(X), fitted.predict(X))


def check_pickles(detector):
    """Check that pickles, joblib files and deep copies decide as the detector does."""
    X, y = _iris()
    detector = clone(detector).fit(X, y)
    with tempfile.TemporaryDirectory() as folder:
        joblib.dump(detector, Path(folder) / "detector.joblib")
        loaded = joblib.load(Path(folder) / "detector.joblib")
    for twin in (pickle.loads(pickle.dumps(detector)), loaded, copy.deepcopy(detector)):
        np.testing.assert_array_equal(twin.decision_function(X), detector.decision_function(X))
        assert twin.offset_ == detector.offset_


def check_pipeline(detector):
    """Check that a Pipeline hands rows and labels on."""
    X, y = _iris()
    pipeline = make_pipeline(PCA(3), clone(detector)).fit(X, y)
    Z = pipeline[0].transform(X)
    np.testing.assert_array_equal(pipeline.predict(X), clone(detector).fit(Z, y).predict(Z))
    assert pipeline.score(X, np.where(y == 1, -1, y)) >= 0


def check_linear_classifier(detector, n_classes):
    """Check that a logistic regression as `model` is the head that None stands for."""
    X, y = _iris()
    X, y = X[y < n_classes], y[y < n_classes]
    classifier = LogisticRegression(max_iter=1000)
    expected = clone(detector).fit(X, y).score_samples(X)
    for model in (classifier, FrozenEstimator(clone(classifier).fit(X, y))):
        found = _put(detector, model).fit(X, y).score_samples(X)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


# Errors


def check_bad_X_and_y(detector):
    """Check that ``fit`` tells what is wrong with its input."""
    X, y = _iris()
    with_nan, with_inf = X.copy(), X.copy()
    with_nan[100, 2], with_inf[3, 0] = np.nan, np.inf
    cases = [
        (with_nan, y, "Input X contains NaN"),
        (torch.as_tensor(with_nan), y, "Input X contains NaN"),
        (with_inf, y, "Input X contains infinity"),
        (X[:0], y[:0], "0 sample"),
        (X[:1], y[:1], "1 sample"),
        (torch.as_tensor(X[:1]), y[:1], "1 sample"),
        (X[:, 0], y, "Reshape your data"),
        (torch.as_tensor(X[:, 0]), y, "Reshape your data"),
        (X, y[:-1], "inconsistent numbers of samples"),
        (X, -np.ones(150), "0 in-distribution sample"),
        (X, np.where(np.arange(150) == 3, 1, -1), "1 in-distribution sample"),
        (X, X[:, 0], "continuous"),
        (X, np.where(y == 1, np.nan, y), "Input y contains NaN"),
        (X, ["-1"] * 150, "marked by a negative number, not by a string"),
        (X.astype(complex), y, "Complex data not supported"),
        (torch.as_tensor(X).to(torch.complex64), y, "Complex data not supported"),
    ]
    for bad_X, bad_y, message in cases:
        with expect.assertRaisesRegex(ValueError, message):
            clone(detector).fit(bad_X, bad_y)
    with expect.assertRaisesRegex(TypeError, "mix the types"):
        clone(detector).fit(X, ["a"] * 75 + [3] * 75)
    with expect.assertRaisesRegex(TypeError, "[Ss]parse"):
        clone(detector).fit(csr_array(X), y)


def check_bad_X_after_fit(detector):
    """Check that other methods tell what is wrong with their input."""
    X, y = _iris()
    with expect.assertRaises(NotFittedError):
        clone(detector).predict(X)
    fitted = clone(detector).fit(X, y)
    with expect.assertRaisesRegex(ValueError, "3 features"):
        fitted.predict(X[:, :3])
    with expect.assertRaisesRegex(ValueError, "NaN"):
        fitted.score_samples(np.full((2, 4), np.nan))
    with expect.assertRaisesRegex(ValueError, "score needs y"):
        fitted.score(X, None)


FEATURE_CHECKS: list[Callable] = [
    *(partial(check_kind_of_input, kind=kind) for kind in INPUTS),
    check_memmap,
    check_results_follow_torch_under_dispatch,
    check_moves_to_another_array_library,
    check_X_and_y_are_not_modified,
    check_two_rows_are_enough,
    *(partial(check_positions_are_averaged, shape=s) for s in [(30, 4, 3, 3), (30, 5, 4)]),
    check_ood_rows_score_lower,
    check_rows_are_scored_each_on_its_own,
    *(
        partial(check_scores_are_finite, dtype=dtype, scale=scale)
        for dtype in ("float32", "float64")
        for scale in (0.0, 1e-30, 1.0, 1e30)
    ),
    *(partial(check_ood_rows_are_left_out_and_counted, labels=labels) for labels in RELABEL),
    check_unseen_classes_count_as_ood,
    check_fit_predict_uses_y,
    check_clone_and_set_params,
    check_pickles,
    check_pipeline,
    *(partial(check_linear_classifier, n_classes=n) for n in (2, 3)),
    check_bad_X_and_y,
    check_bad_X_after_fit,
]


# The network


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
        same = len(found) == len(before[kind]) and all(map(_equal, found, before[kind]))
        assert same, f"The user's network was changed: its {kind}."


def _equal(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and b is not None else a == b


def check_network_is_untouched(detector):
    """Check that weights, buffers, flags, gradients and hooks stay as they are."""
    X, y = _images()
    net = seeded(SmallCNN).train()
    net.conv1.weight.requires_grad_(False)
    net(torch.as_tensor(X)).sum().backward()
    before = snapshot(net)
    _put(detector, net).fit(X, y).score_samples(X)
    assert_untouched(net, before)


def check_network_is_untouched_when_fit_fails(detector):
    """Check that they also stay when ``fit`` raises half way."""
    X, y = _images()
    X[-1] = np.nan
    net = seeded(SmallCNN).train()
    before = snapshot(net)
    with expect.assertRaisesRegex(ValueError, "NaN"):
        _put(detector, net).set_params(batch_size=8).fit(X, y)
    assert_untouched(net, before)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def check_state_of_the_network_does_not_matter(detector):
    """Check that train mode, frozen weights and inference mode change no score."""
    X, y = _images()
    net = seeded(SmallCNN)
    expected = _put(detector, net).fit(X, y).score_samples(X)
    frozen = copy.deepcopy(net).train().requires_grad_(False)
    with torch.inference_mode():
        found = _put(detector, frozen).fit(X, y).score_samples(torch.as_tensor(X))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def check_autocast_does_not_matter(detector):
    """Check that autocast around the call changes no score."""
    X, y = _images()
    detector = _put(detector, seeded(SmallCNN)).fit(X, y)
    expected = detector.score_samples(X)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(detector.score_samples(X), expected)


def check_network_with_habit(detector, habit):
    """Check that a network with an odd habit scores as one without, and stays as it is."""
    X, y = (a.astype(float) for a in _images())
    odd, plain = seeded(OddCNN, habit).double(), seeded(OddCNN, None).double()
    plain.load_state_dict(odd.state_dict(), strict=False)
    before = snapshot(odd)
    given = torch.as_tensor(X.copy())
    found = _put(detector, odd).fit(given, y).score_samples(given)
    np.testing.assert_array_equal(given, X, err_msg="The tensor X was written to.")
    scale = 2 if habit == "writes to its input" else 1
    expected = _put(detector, plain).fit(scale * X, y).score_samples(scale * X)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert_untouched(odd, before)
    twin = pickle.loads(pickle.dumps(_put(detector, odd).fit(X, y)))
    np.testing.assert_array_equal(twin.score_samples(X), found)
    np.testing.assert_array_equal(X, _images()[0], err_msg="X was written to.")


def check_pickle_with_a_network(detector):
    """Check that a pickle scores as the detector does, under inference mode too."""
    X, y = _images()
    detector = _put(detector, seeded(SmallCNN)).fit(X, y)
    expected = detector.score_samples(X)
    twin = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(twin.score_samples(X), expected)
    with torch.inference_mode():
        twin = copy.deepcopy(detector)
        np.testing.assert_array_equal(twin.score_samples(X), expected)


def check_threads_share_a_detector(detector):
    """Check that threads which score at once do not disturb each other."""
    X, y = _images()
    detector = _put(detector, seeded(SmallCNN)).fit(X, y)
    blocks = [X + i for i in range(4)]
    expected = [detector.score_samples(block) for block in blocks]
    wrong = []

    def work(i):
        for _ in range(5):
            if not np.array_equal(detector.score_samples(blocks[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of 20 calls in 4 threads gave other scores."


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


def check_callbacks_are_told_of_every_batch(detector):
    """Check that callbacks hear of each batch, and of the end of a fit that fails."""
    X, y = _images()
    recorder = Recorder()
    detector = _put(detector, seeded(SmallCNN)).set_params(batch_size=7)
    detector.set_callbacks(recorder).fit(X, y)
    learns = isinstance(detector.scorer_, LearningScorer)
    tasks = ["network", "learn", "score"] if learns else ["score"]
    expect.assertEqual(sorted(recorder.begun), sorted(["fit", *tasks, *["batch"] * 4 * len(tasks)]))
    expect.assertEqual(sorted(recorder.ended), sorted(recorder.begun))
    with expect.assertRaisesRegex(ValueError, "NaN"):
        detector.fit(np.full_like(X, np.nan), y)
    assert recorder.set_up == recorder.torn_down == 2


NETWORK_CHECKS: list[Callable] = [
    check_network_is_untouched,
    check_network_is_untouched_when_fit_fails,
    check_state_of_the_network_does_not_matter,
    check_autocast_does_not_matter,
    *(partial(check_network_with_habit, habit=habit) for habit in HABITS),
    check_pickle_with_a_network,
    check_threads_share_a_detector,
    check_callbacks_are_told_of_every_batch,
]


# The last linear layer


def check_pipeline_with_features_of_a_network(detector):
    """Check that behind a `FeatureExtractor` a detector scores as in front of the network."""
    X, y = _images()
    net = seeded(SmallCNN)
    head = net.fc if getattr(detector, "_needs_logits", True) else None
    pipeline = make_pipeline(FeatureExtractor(net), _put(detector, head))
    np.testing.assert_allclose(
        pipeline.fit(X, y).score_samples(X),
        _put(detector, net).fit(X, y).score_samples(X),
        rtol=1e-5,
    )


def check_logits_that_are_written_to_are_refused(detector):
    """Check that a network which changes its logits in place is refused."""
    with expect.assertRaisesRegex(ValueError, "does something after its last linear layer 'fc'"):
        _put(detector, seeded(OddCNN, "writes to its logits")).fit(*_images())


# For detectors that look at nothing but the last linear layer and what enters it.
HEAD_CHECKS: list[Callable] = [
    check_pipeline_with_features_of_a_network,
    check_logits_that_are_written_to_are_refused,
]
