"""Classification with a reject option: a class, or "unknown"."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import ClassifierMixin, MetaEstimatorMixin, clone, is_classifier
from sklearn.utils import _safe_indexing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _num_samples, check_is_fitted, validate_data

from skood._compat import HasMethods, _fit_context, move_to_numpy
from skood._typing import Inputs, Labels
from skood.data.labels import as_labels, encode_labels, is_ood
from skood.estimators.base import BaseDetector
from skood.estimators.features import FeatureExtractor, attach
from skood.estimators.network_estimator import (
    ModuleSharing,
    OneState,
    computing,
    consistent,
    drafted,
)
from skood.estimators.printing import PrintsNetworks
from skood.network.model import is_network

__all__ = ["OpenSetClassifier"]


def _classifier_has(method):
    """Tell whether the classifier, or the network, has a method."""

    def check(self):
        model = getattr(self, "classifier_", self.classifier)
        return isinstance(model, FeatureExtractor) or is_network(model) or hasattr(model, method)

    return check


class OpenSetClassifier(
    OneState, ModuleSharing, ClassifierMixin, MetaEstimatorMixin, PrintsNetworks
):
    """Classifier whose predictions are a class, or that the row belongs to none.

    A row that the detector calls out-of-distribution is predicted as unknown, any other as the
    classifier says.

    Parameters
    ----------
    classifier : nn.Module, skorch net or scikit-learn classifier
        Says the class. A trained module or a `FrozenEstimator` is used as it is, another
        estimator is cloned and fitted on the in-distribution rows.
    detector : outlier detector
        Says whether it is one; cloned and fitted. With a network as `classifier` it works on the
        network's features, from one pass that serves both; a skood detector with ``model=None``
        gets the network's last layer as its head, or, where it names layers or parameters inside
        of the network, the network itself and a pass of its own.
    unknown_label : int or str, default=-1
        What ``predict`` calls rows of no class. -1 beside classes that are strings makes the
        predictions an array of objects.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The known classes.
    classifier_ : object
        The fitted classifier; the `FeatureExtractor` of a network.
    detector_ : object
        The fitted detector.
    n_features_in_ : int
        The size of X's second axis.

    See Also
    --------
    skood.metrics.oscr_score : The area under correct classification against false acceptance.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skood import GMMDetector
    >>> from skood.open_set import OpenSetClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = OpenSetClassifier(LogisticRegression(max_iter=1000), GMMDetector()).fit(X, y)
    >>> model.predict([[5.1, 3.5, 1.4, 0.2], [0.0, 0.0, 0.0, 0.0]])
    array([ 0, -1])
    """

    _parameter_constraints = {
        "classifier": "no_validation",
        "detector": [HasMethods(["fit", "predict"])],
        "unknown_label": "no_validation",
    }

    def __init__(self, classifier: Any, detector: Any, *, unknown_label: Any = -1) -> None:
        self.classifier = classifier
        self.detector = detector
        self.unknown_label = unknown_label

    @drafted
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Inputs, y: Labels) -> Self:
        """Fit the classifier and the detector on the in-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            Inputs of the classifier.
        y : array-like of shape (n_samples,)
            Class labels; rows whose label is a negative number are left out.

        Returns
        -------
        self : object
            The fitted classifier.
        """
        if y is None:
            raise ValueError("OpenSetClassifier requires y to be passed, but the target y is None.")
        if not is_network(self.classifier) and not (
            hasattr(self.classifier, "fit") and is_classifier(self.classifier)
        ):
            raise TypeError(
                f"classifier is a {type(self.classifier).__name__}. Expected a torch module, a "
                "skorch net or a scikit-learn classifier."
            )
        if not is_network(self.classifier):
            X = self._check(X, reset=True)
        index, classes, codes = encode_labels(y, _num_samples(X))
        if self.unknown_label in classes.tolist():
            raise ValueError(
                f"unknown_label={self.unknown_label!r} is a class of y, so that predictions could "
                "not be told apart. Choose another label."
            )
        if is_network(self.classifier):
            classifier = extractor = FeatureExtractor(self.classifier).fit(X, y)
            classes = self._network_classes(classes, extractor.head.out_features)
            features = extractor.transform(X)
        else:
            classifier = clone(self.classifier).fit(_safe_indexing(X, index), classes[codes])
            classes, features, extractor = classifier.classes_, X, None
        detector, on_features = attach(self.detector, extractor)
        if isinstance(detector, BaseDetector):
            detector.fit(features if on_features else X, y)
        else:
            detector.fit(_safe_indexing(features, index))
        self.classifier_, self.detector_, self.classes_ = classifier, detector, classes
        self._on_features = on_features
        if self._is_network:
            self.n_features_in_ = classifier.n_features_in_
        return self

    def _check(self, X, reset):
        """Validate X for a scikit-learn classifier; a network's extractor does so itself."""
        return validate_data(
            self, X, reset=reset, allow_nd=True, ensure_min_samples=2 if reset else 1
        )

    def _network_classes(self, classes, n_logits):
        """Return the class of each logit."""
        known = getattr(getattr(self.classifier, "estimator", None), "classes_", None)
        if known is not None and len(known) == n_logits:
            return np.asarray(known)
        if len(classes) == n_logits:
            return classes
        codes = classes.dtype.kind in "iu" and classes.min() >= 0 and classes.max() < n_logits
        if not codes:
            raise ValueError(
                f"The network has {n_logits} logits, but y has {len(classes)} classes, "
                f"{classes[:5].tolist()}...: give rows of all classes, or labels that are the "
                "numbers of the logits."
            )
        return np.arange(n_logits)

    def _read(self, X):
        """Return what the classifier and the detector share: the features, or validated X."""
        check_is_fitted(self)
        return self.classifier_.transform(X) if self._is_network else self._check(X, reset=False)

    @property
    def _is_network(self):
        return isinstance(self.classifier_, FeatureExtractor)

    def _logits(self, features):
        """Return the logits of a network's features."""
        head = self.classifier_.head
        with computing():
            rows = torch.as_tensor(move_to_numpy(features))
            return head(rows.to(head.weight.device, head.weight.dtype)).cpu().numpy()

    def _is_outlier(self, X, features):
        return move_to_numpy(self.detector_.predict(features if self._on_features else X)) < 0

    @consistent
    def predict(self, X: Inputs) -> np.ndarray:
        """Predict a class, or `unknown_label`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Of the dtype of ``classes_``, or of objects where the unknown label is of another kind.
        """
        features = self._read(X)
        if self._is_network:
            labels = self.classes_[self._logits(features).argmax(1)]
        else:
            labels = self.classifier_.predict(features)
        unknown = np.asarray(self.unknown_label)
        if (labels.dtype.kind in "OU") != (unknown.dtype.kind in "OU"):
            labels = labels.astype(object)
        else:
            labels = labels.astype(np.result_type(labels, unknown))
        labels[self._is_outlier(X, features)] = self.unknown_label
        return labels

    @available_if(_classifier_has("predict_proba"))
    @consistent
    def predict_proba(self, X: Inputs) -> np.ndarray:
        """Probabilities of the known classes, as the classifier gives them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Of rows that are called unknown too.
        """
        features = self._read(X)
        if self._is_network:
            return softmax(self._logits(features), axis=1)
        return self.classifier_.predict_proba(features)

    @available_if(_classifier_has("decision_function"))
    @consistent
    def decision_function(self, X: Inputs) -> np.ndarray:
        """Decision values of the known classes, as the classifier gives them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        decision : ndarray of shape (n_samples, n_classes) or (n_samples,)
            The logits of a network; of two classes their difference, as scikit-learn has it.
        """
        features = self._read(X)
        if not self._is_network:
            return self.classifier_.decision_function(features)
        logits = self._logits(features)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    @consistent
    def score_samples(self, X: Inputs) -> np.ndarray:
        """Scores of the detector; higher means more in-distribution.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
            For `skood.metrics.oscr_score` and the like.
        """
        features = self._read(X)
        rows = features if self._on_features else X
        name = "score_samples" if hasattr(self.detector_, "score_samples") else "decision_function"
        return move_to_numpy(getattr(self.detector_, name)(rows))

    @consistent
    def score(
        self, X: Inputs, y: Labels, sample_weight: Sequence[float] | np.ndarray | None = None
    ) -> float:
        """Accuracy, where unknown is right for rows of no known class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.
        y : array-like of shape (n_samples,)
            Class labels; negative numbers, and classes that ``fit`` did not see, are unknown.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights.

        Returns
        -------
        accuracy : float
            Between 0 and 1.
        """
        # Not accuracy_score: it knows no labels of mixed kinds.
        unknown, found, y = is_ood(y, self.classes_), self.predict(X), as_labels(y)
        right = np.where(unknown, found == self.unknown_label, found == y)
        return float(np.average(right.astype(bool), weights=sample_weight))

    def _known_labels(self):
        """Return the labels that are not out-of-distribution, for scorers."""
        return self.classes_

    def __sklearn_is_fitted__(self):
        return hasattr(self, "classifier_")
