"""Estimators around others, as text, arrays and the estimators inside of them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skood.decisions.conformal import ConformalDetector
from skood.decisions.ensemble import EnsembleDetector
from skood.decisions.fit_on_inliers import FitOnInliers
from skood.decisions.open_set import OpenSetClassifier
from skood.estimators.base import BaseDetector
from skood.estimators.features import FeatureExtractor
from skood.estimators.network_estimator import OneState
from skood.files.foreign import describe_foreign, is_of_scikit_learn, restore_foreign
from skood.files.single import describe_one, restore_one
from skood.files.storage import part_of
from skood.files.values import CLASSES, decoded, encode

ROWS = ("n_features_in_", "feature_names_in_")


class Content(NamedTuple):
    """What an estimator holds: parameters, fitted values, arrays by name, estimators."""

    params: dict[str, Any]
    fitted: dict[str, Any]
    arrays: dict[str, np.ndarray]
    parts: list[Any]


def plain(estimator, *names):
    """Return those attributes of an estimator that it has."""
    return {name: vars(estimator)[name] for name in names if name in vars(estimator)}


def as_given(detector, extractor, on_features):
    """Return a fitted detector as a parameter, without the model that the extractor gave it."""
    detector = clone(detector)
    if isinstance(detector, BaseDetector):
        model = detector.model
        if on_features or (isinstance(extractor, FeatureExtractor) and model is extractor.model):
            detector.set_params(model=None)
    return detector


def take_pipeline(pipeline):
    """Return the steps of a Pipeline."""
    if pipeline.memory is not None:
        raise TypeError(
            "A Pipeline with memory cannot be saved: what it remembers is pickled. Use "
            "set_params(memory=None)."
        )
    params = {"names": [name for name, _ in pipeline.steps], "passes": []}
    params["passes"] = [step in ("passthrough", None) for _, step in pipeline.steps]
    params |= {"transform_input": pipeline.transform_input, "verbose": pipeline.verbose}
    parts = [step for _, step in pipeline.steps if step not in ("passthrough", None)]
    return Content(params, {}, {}, parts)


def give_pipeline(content):
    """Return a fitted Pipeline."""
    names, passes = content.params.pop("names"), content.params.pop("passes")
    parts = iter(content.parts)
    steps = ["passthrough" if is_passed else next(parts) for is_passed in passes]
    return Pipeline(list(zip(names, steps, strict=True)), **content.params)


def take_conformal(detector):
    """Return the detectors of a ConformalDetector, and the scores that calibrate."""
    names = ("method", "calibration_size", "alpha", "tail", "fdr", "random_state")
    params = plain(detector, *names)
    fitted = plain(detector, "offset_", "n_calibration_", "known_classes_")
    fitted["groups"] = np.array([name for name, _ in detector._calibration])
    arrays = {
        f"calibration.{i}.{j}": scores
        for i, (_, folds) in enumerate(detector._calibration)
        for j, scores in enumerate(folds)
    }
    parts = list(detector.detectors_)
    if detector._within_predicted:
        parts.append(detector.class_conditional)
    params["class_conditional"] = None if detector._within_predicted else detector._within_labels
    return Content(params, fitted, arrays, parts)


def give_conformal(content):
    """Return a fitted ConformalDetector."""
    parts, params = content.parts, content.params
    if params["class_conditional"] is None:
        *parts, params["class_conditional"] = parts
    detector = ConformalDetector(clone(parts[0]), **params)
    groups = content.fitted.pop("groups")
    detector._calibration = [
        (name, [scores(content, f"calibration.{i}.{j}") for j in range(len(parts))])
        for i, name in enumerate(groups)
    ]
    vars(detector).update(content.fitted, detectors_=parts)
    return detector


def scores(content, name):
    """Return scores that calibrate; a ValueError unless they are ascending numbers."""
    array = content.arrays[name]
    if array.ndim != 1 or array.dtype != np.float64 or not (np.diff(array) >= 0).all():
        raise ValueError(f"{name} are no scores in order")
    return array


def take_ensemble(ensemble):
    """Return the detectors of an ensemble, and the scores that calibrate."""
    params = plain(ensemble, "method", "false_alarm_rate", "n_jobs", "random_state")
    params["names"] = list(ensemble.named_detectors_)
    fitted = plain(ensemble, "offset_", "known_classes_")
    fitted["on_features"] = list(ensemble._on_features)
    arrays = {f"calibration.{i}": scores for i, scores in enumerate(ensemble._calibration)}
    kept = vars(ensemble).get("_kept_scores", {})
    arrays |= {f"kept.{name}": value for name, value in kept.items()}
    return Content(params, fitted, arrays, [ensemble.extractor_, *ensemble.detectors_])


def give_ensemble(content):
    """Return a fitted ensemble."""
    extractor, *detectors = content.parts
    names, on_features = content.params.pop("names"), content.fitted.pop("on_features")
    named = dict(zip(names, detectors, strict=True))
    given = [
        (name, as_given(detector, extractor, on))
        for (name, detector), on in zip(named.items(), on_features, strict=True)
    ]
    ensemble = EnsembleDetector(given, extractor.model, **content.params)
    ensemble._check_detectors()
    kept = part_of(content.arrays, "kept")
    vars(ensemble).update(
        content.fitted,
        extractor_=extractor,
        detectors_=detectors,
        named_detectors_=Bunch(**named),
        _on_features=tuple(on_features),
        _calibration=[scores(content, f"calibration.{i}") for i in range(len(detectors))],
        **({"_kept_scores": kept} if kept else {}),
    )
    return ensemble


def take_open_set(classifier):
    """Return the classifier and the detector of an OpenSetClassifier."""
    fitted = plain(classifier, "classes_", *ROWS)
    fitted["on_features"] = classifier._on_features
    params = {"unknown_label": classifier.unknown_label}
    return Content(params, fitted, {}, [classifier.classifier_, classifier.detector_])


def give_open_set(content):
    """Return a fitted OpenSetClassifier."""
    classifier, detector = content.parts
    is_network = isinstance(classifier, FeatureExtractor)
    given = classifier.model if is_network else clone(classifier)
    on_features = content.fitted.pop("on_features")
    detector_ = as_given(detector, classifier, on_features)
    fitted = OpenSetClassifier(given, detector_, **content.params)
    vars(fitted).update(
        content.fitted, classifier_=classifier, detector_=detector, _on_features=on_features
    )
    return fitted


def take_inliers(estimator):
    """Return the estimator inside of FitOnInliers."""
    fitted = plain(estimator, "known_classes_", "support_", *ROWS)
    params = plain(estimator, "higher_is_outlier", "trim")
    return Content(params, fitted, {}, [estimator.estimator_])


def give_inliers(content):
    """Return a fitted FitOnInliers."""
    (inside,) = content.parts
    estimator = FitOnInliers(clone(inside), **content.params)
    vars(estimator).update(content.fitted, estimator_=inside)
    return estimator


NESTED = {
    Pipeline: (take_pipeline, give_pipeline),
    ConformalDetector: (take_conformal, give_conformal),
    EnsembleDetector: (take_ensemble, give_ensemble),
    OpenSetClassifier: (take_open_set, give_open_set),
    FitOnInliers: (take_inliers, give_inliers),
    FrozenEstimator: (
        lambda frozen: Content({}, {}, {}, [frozen.estimator]),
        lambda content: FrozenEstimator(*content.parts),
    ),
}
# What files may set.
FITTED = {
    *("offset_", "n_calibration_", "known_classes_", "support_", "classes_", "groups"),
    "on_features",
    *ROWS,
}


def describe(estimator, include_model):
    """Return values for JSON, and tensors by name: those of an estimator inside by its number."""
    cls = type(estimator)
    if CLASSES.get(cls.__name__) is cls:
        return describe_one(estimator, include_model)
    if cls not in NESTED and is_of_scikit_learn(cls):
        return describe_foreign(estimator)
    if cls not in NESTED:
        raise TypeError(
            f"{cls.__name__} cannot be saved: skood.save takes skood's detectors, "
            f"{', '.join(kind.__name__ for kind in NESTED)}, FeatureExtractor, and scikit-learn's "
            "estimators inside of these. Use pickle or joblib."
        )
    check_is_fitted(estimator)
    take, _ = NESTED[cls]
    # Other threads may go on fitting it.
    content = take(estimator._snapshot() if isinstance(estimator, OneState) else estimator)
    meta = {"class": cls.__name__, "parts": []}
    for kind in ("params", "fitted"):
        values = getattr(content, kind).items()
        meta[kind] = {k: encode(f"The {k} of {cls.__name__}", v) for k, v in values}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in content.arrays.items()}
    for number, part in enumerate(content.parts):
        inside, own = describe(part, include_model)
        meta["parts"].append(inside)
        tensors.update({f"{number}.{name}": tensor for name, tensor in own.items()})
    return meta, tensors


def restore(meta, tensors, modules):
    """Return the estimator.

    Parameters
    ----------
    meta, tensors : dict
        What `describe` has given.
    modules : dict
        The networks, by the ids of their layouts.
    """
    name = meta["class"]
    if name == "scikit-learn":
        return restore_foreign(meta, tensors)
    if name in CLASSES:
        return restore_one(meta, tensors, modules.get(id(meta["model"])))
    cls = next(cls for cls in NESTED if cls.__name__ == name)
    _, give = NESTED[cls]
    parts = [
        restore(part, part_of(tensors, str(number)), modules)
        for number, part in enumerate(meta["parts"])
    ]
    fitted, own = decoded(meta["fitted"]), {n: t for n, t in tensors.items() if n[0].isalpha()}
    if not FITTED >= fitted.keys():
        raise ValueError("it has other fitted attributes")
    arrays = {name: tensor.numpy() for name, tensor in own.items()}
    estimator = give(Content(decoded(meta["params"]), fitted, arrays, parts))
    if cls is not FrozenEstimator:
        estimator._validate_params()
    return estimator
