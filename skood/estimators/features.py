"""Features of a network as a scikit-learn transformer."""

from typing import Self

import joblib
import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import nn

from skood._compat import HasMethods, StrOptions, _fit_context
from skood._typing import ClassNamePrefixFeaturesOutMixin, Inputs, Labels, TransformerMixin
from skood.data.arrays import move
from skood.data.lazy import is_dask, lazy, load_distributed
from skood.data.store import join
from skood.data.streams import Stream
from skood.estimators.base import BaseDetector
from skood.estimators.network_estimator import NetworkEstimator, PoolsLayer, computing
from skood.estimators.parameters import param
from skood.network.modules import Pool

__all__ = ["FeatureExtractor"]


class FeatureExtractor(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, PoolsLayer, NetworkEstimator
):
    """Map inputs of a network to its features, in front of a detector in a Pipeline.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn classifier or None, default=None
        The network. A trained module or a `FrozenEstimator` is used as it is, another estimator
        is cloned and fitted on the in-distribution rows. None: X holds features already.
    layer : str, default=None
        The submodule whose output is taken. None: what enters the last linear layer.
    channel_axis : int, default=None
        The axis of the layer's output, or of X without a network, that holds the channels, where
        it has positions too: 1 for (n, C, H, W) and (n, C, L), -1 for (n, H, W, C) and (n, T, C).
        None: what the layers of torch inside of the layer or before it tell; a warning says where
        it was guessed. In X the last axis of three, else the second.
    pool : {"avg", "max", "token"} or None, default="avg"
        How maps (n, C, H, W) and tokens (n, T, D) become one vector a row: average or maximum
        over positions, the first token, or not at all. Tokens of a layer that are 0 in
        ``X["attention_mask"]`` are padding and do not count.
    memory : str or joblib.Memory, default=None
        Where to remember features, by the content of weights and rows, so that a search over a
        Pipeline passes each block of rows through the network once. A change of the code of a
        network's ``forward`` alone is not noticed. None: they are not kept.

    See Also
    --------
    GMMDetector : A detector on features.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from skood import FeatureExtractor, GMMDetector
    >>> X, y = load_iris(return_X_y=True)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> FeatureExtractor(net).fit_transform(X).shape
    (150, 8)
    >>> make_pipeline(FeatureExtractor(net), GMMDetector()).fit(X, y).predict(X[:2]).shape
    (2,)
    """

    pool: str | None = param(StrOptions({"avg", "max", "token"}), None, default="avg")
    memory: str | joblib.Memory | None = param(str, HasMethods("cache"), None, default=None)

    _needs_logits = False

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Inputs, y: Labels | None = None) -> Self:
        """Check the network on the first rows; fit it where it is not trained yet.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            Inputs of the network.
        y : array-like of shape (n_samples,), default=None
            Class labels, negative for out-of-distribution; used only by a network to be fitted.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        y = y if self._fits_model else None
        if is_dask(X):
            distributed = load_distributed()
            X, y = distributed.first_rows(self, distributed.Blocks(X, y))
        with self._fitting(X, y) as (draft, source):
            network, model_ = draft._take_network(source)
            body = draft._make_body(network)
            first = move(source.head(2), network.device, network.input_dtype, copy=True)
            draft._keep(source, network, body, model_, _n_features_out=body(first).shape[1])
        return self

    def _make_body(self, network):
        if self.layer is None:
            if network.takes_features:
                return Pool(self.pool, self.channel_axis)
            if network.map_head is not None:
                # They would be maps.
                network.require_logits()
            return network.features(self.pool, self.channel_axis)
        return network.layer(self.layer, how=self.pool, channel_axis=self.channel_axis)

    @property
    def head(self) -> nn.Linear:
        """The network's last linear layer, a frozen ``nn.Linear`` that takes the features."""
        check_is_fitted(self)
        return self._network.head

    @lazy
    def transform(self, X: Inputs) -> np.ndarray:
        """Return the features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        features : array of shape (n_samples, n_features_out)
            In the dtype of the network, or X's without one.
        """
        rows = self._check_rows(X, "transform")
        if self.memory is None or self._network.takes_features or isinstance(rows, Stream):
            return rows.like(self._features(rows))
        remembered = check_memory(self.memory).cache(
            _remembered_features, ignore=["extractor", "rows"]
        )
        # Keyed by numpy: how torch pickles a tensor differs from process to process.
        X_key = rows.hash()
        axes = self._network.channel_axes
        key = joblib.hash((self._network.describe(), self.layer, self.pool, axes))
        # A copy: what a memory mapped from its file gives must not be written to.
        return rows.like(torch.from_numpy(np.array(remembered(key, X_key, self, rows))))

    def _features(self, rows):
        """Return the features of all rows, as a tensor of its own."""
        with computing():
            return join((features for (features,) in self._inputs(rows)), rows.n_samples)

    def _rebuild(self, saved):
        super()._rebuild(saved)
        self._body = self._as_fitted()._make_body(self._network)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def attach(detector, extractor):
    """Return a clone of a detector that works behind an extractor, and whether on its features.

    A skood detector without a network gets the last layer of the extractor's as its head, or,
    where it names layers or parameters inside of it, the whole network; that one takes X, as does
    a detector that has a network of its own.

    Parameters
    ----------
    detector : outlier detector
        Not written to.
    extractor : FeatureExtractor or None
        Fitted; None where X is features.
    """
    detector = clone(detector)
    if not isinstance(detector, BaseDetector):
        return detector, True
    if detector._given_model is not None:
        return detector, False
    if extractor is None or extractor.model is None:
        return detector, True
    if not (detector._needs_logits or detector.looks_inside):
        return detector, True
    if not detector.looks_inside:
        return detector.set_params(model=extractor.head), True
    fitted = hasattr(extractor, "model_")
    whole = FrozenEstimator(extractor.model_) if fitted else extractor.model
    return detector.set_params(model=whole), False


def _remembered_features(key, X_key, extractor, rows):
    """Return features as numpy; a function of its own so that joblib can key it."""
    return extractor._features(rows).cpu().numpy()
