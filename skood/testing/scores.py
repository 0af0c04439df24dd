"""Checks of scores, labels and parameters."""

import copy
import pickle
import tempfile
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skood.metrics.ranking import auroc_score
from skood.testing.common import (
    depends_on_keys,
    expect,
    load_iris_float,
    optional,
    random_blobs,
    with_model,
)


def check_two_rows_are_enough(detector):
    """Check that two rows of one class, of two, or without labels are fitted."""
    X = np.array([[0.0, 1.0], [2.0, 0.5]])
    for y in (None, [0, 0], [0, 1]):
        scores = clone(detector).fit(X, y).score_samples([[0.0, 1.0], [50.0, 50.0]])
        assert np.isfinite(scores).all(), f"Scores after fit on two rows: {scores}."


def check_positions_are_averaged(detector, shape):
    """Check that maps and tokens without a network are averaged over positions.

    Not of what transforms them before.
    """
    X, y = np.random.default_rng(0).normal(size=shape), np.arange(30) % 3
    pooled = X.mean((2, 3)) if len(shape) == 4 else X.mean(1)
    detector = clone(detector).fit(X, y)
    if depends_on_keys(detector) or hasattr(detector, "transforms"):
        return
    np.testing.assert_allclose(
        detector.score_samples(X),
        clone(detector).fit(pooled, y).score_samples(pooled),
        rtol=1e-8,
    )


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
    X, y = random_blobs(rng)
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
    X, y = random_blobs(np.random.default_rng(0))
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


RELABEL = {
    "int": lambda y: y,
    "str": lambda y: np.array(["cat", "dog", "emu"])[y],
    "series": lambda y: optional("pandas").Series(y),
    "tensor": torch.as_tensor,
    "float": lambda y: y.astype(float),
    "list": lambda y: [int(label) for label in y],
}


def check_ood_rows_are_left_out_and_counted(detector, labels):
    """Check that ``fit`` leaves out rows with a negative label, OOD rows for ``score``."""
    X, y = load_iris_float()
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
    X, y = load_iris_float()
    labelled = clone(detector).fit(X[y < 2], y[y < 2])
    np.testing.assert_allclose(
        labelled.score(X, y), labelled.score(X, np.where(y < 2, y, -1)), rtol=1e-6
    )
    unlabelled = clone(detector).fit(X[y < 2])
    with expect.assertWarns(UndefinedMetricWarning):
        assert np.isnan(unlabelled.score(X, y))


def check_fit_predict_uses_y(detector):
    """Check that ``fit_predict`` hands y on, which `OutlierMixin` does not."""
    X, y = load_iris_float()
    y = np.where(y == 2, -1, y)
    expected = clone(detector).fit(X, y).predict(X)
    found = clone(detector).fit_predict(X, y)
    np.testing.assert_array_equal(found, expected, err_msg="fit_predict drops y.")


def check_clone_and_set_params(detector):
    """Check that a clone of a fitted detector is not fitted, and fits the same."""
    X, y = load_iris_float()
    fitted = clone(detector).fit(X, y)
    twin = clone(fitted)
    assert repr(twin) == repr(detector) and not hasattr(twin, "offset_")
    np.testing.assert_array_equal(twin.fit(X, y).predict(X), fitted.predict(X))


def check_pickles(detector):
    """Check that pickles, joblib files and deep copies decide as the detector does."""
    X, y = load_iris_float()
    detector = clone(detector).fit(X, y)
    with tempfile.TemporaryDirectory() as folder:
        joblib.dump(detector, Path(folder) / "detector.joblib")
        loaded = joblib.load(Path(folder) / "detector.joblib")
    for twin in (pickle.loads(pickle.dumps(detector)), loaded, copy.deepcopy(detector)):
        np.testing.assert_array_equal(twin.decision_function(X), detector.decision_function(X))
        assert twin.offset_ == detector.offset_


def check_pipeline(detector):
    """Check that a Pipeline hands rows and labels on."""
    X, y = load_iris_float()
    pipeline = make_pipeline(PCA(3), clone(detector)).fit(X, y)
    Z = pipeline[0].transform(X)
    np.testing.assert_array_equal(pipeline.predict(X), clone(detector).fit(Z, y).predict(Z))
    assert pipeline.score(X, np.where(y == 1, -1, y)) >= 0


def check_linear_classifier(detector, n_classes):
    """Check that a logistic regression as `model` is the head that None stands for."""
    X, y = load_iris_float()
    X, y = X[y < n_classes], y[y < n_classes]
    classifier = LogisticRegression(max_iter=1000)
    expected = clone(detector).fit(X, y).score_samples(X)
    for model in (classifier, FrozenEstimator(clone(classifier).fit(X, y))):
        found = with_model(detector, model).fit(X, y).score_samples(X)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
