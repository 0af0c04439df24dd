"""Running the checks: at once, one by one, as tests of pytest."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any
from unittest import SkipTest

import torch
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

from skood.estimators.kinds import LogitsDetector
from skood.testing.in_network import (
    check_autocast_does_not_matter,
    check_callbacks_are_told_of_every_batch,
    check_logits_that_are_written_to_are_refused,
    check_network_is_untouched,
    check_network_is_untouched_when_fit_fails,
    check_network_with_habit,
    check_pickle_with_a_network,
    check_pipeline_with_features_of_a_network,
    check_state_of_the_network_does_not_matter,
    check_threads_share_a_detector,
)
from skood.testing.inputs import (
    DTYPES,
    INPUTS,
    check_bad_X_after_fit,
    check_bad_X_and_y,
    check_dtypes,
    check_kind_of_input,
    check_memmap,
    check_moves_to_another_array_library,
    check_results_follow_torch_under_dispatch,
    check_X_and_y_are_not_modified,
)
from skood.testing.networks import HABITS
from skood.testing.scores import (
    RELABEL,
    check_clone_and_set_params,
    check_fit_predict_uses_y,
    check_linear_classifier,
    check_ood_rows_are_left_out_and_counted,
    check_ood_rows_score_lower,
    check_pickles,
    check_pipeline,
    check_positions_are_averaged,
    check_rows_are_scored_each_on_its_own,
    check_scores_are_finite,
    check_two_rows_are_enough,
    check_unseen_classes_count_as_ood,
)

KINDS = ("features", "network")


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
            checks.append(check_pipeline_with_features_of_a_network)
            if not isinstance(detector, LogitsDetector):
                checks.append(check_logits_that_are_written_to_are_refused)
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
