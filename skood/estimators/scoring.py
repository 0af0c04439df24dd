"""What a fitted detector makes of rows: scores, decisions, AUROC."""

import numpy as np
import torch

from skood._compat import move_to_numpy
from skood._typing import Inputs, Labels
from skood.data.arrays import CHUNK_BYTES, feature_batch_rows
from skood.data.labels import is_label_map, is_ood, map_kinds, maps_at, warn_of_class_scorer
from skood.data.lazy import is_dask, lazy, load_distributed
from skood.data.store import join
from skood.data.streams import is_stream
from skood.estimators.network_estimator import computing, consistent
from skood.functional import clip_to
from skood.learning.keys import entry_keys
from skood.metrics.ranking import auroc_score
from skood.metrics.scorers import warn_of_unseen
from skood.network.model import frozen_classes


class ScoresRows:
    """The part of a detector that scores rows."""

    _row_shape: tuple[int, ...]

    def _score(self, X, method, y=None):
        """Return the validated rows of X and their scores as a tensor."""
        rows = self._check_rows(X, method, y)
        with computing():
            scores = (
                self._finish_scores(apply(self.scorer_, inputs, self._network), rows.dtype)
                for inputs in self._inputs(rows)
            )
            return rows, join(scores, rows.n_samples)

    def _decide(self, X, method):
        """Return the validated rows of X and score minus threshold."""
        rows, scores = self._score(X, method)
        return rows, clip_to(scores.double() - self.offset_, scores.dtype)

    @lazy
    def score_samples(self, X: Inputs) -> np.ndarray:
        """Score rows; higher means more in-distribution.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        scores : array of shape (n_samples,)
            float32 for float32 X, else float64; always finite. In the array library of X under
            ``array_api_dispatch``, else numpy.
        """
        rows, scores = self._score(X, "score_samples")
        return rows.like(scores)

    @lazy
    def decision_function(self, X: Inputs) -> np.ndarray:
        """Score rows relative to the threshold: ``score_samples(X) - offset_``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        decision : array of shape (n_samples,)
            Negative for rows that ``predict`` calls out-of-distribution.
        """
        warn_of_class_scorer()
        rows, decision = self._decide(X, "decision_function")
        return rows.like(decision)

    @lazy
    def predict(self, X: Inputs) -> np.ndarray:
        """Tell in-distribution from out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.

        Returns
        -------
        labels : array of shape (n_samples,), dtype int64
            +1 for in-distribution, -1 for out-of-distribution.
        """
        rows, decision = self._decide(X, "predict")
        return rows.like(torch.where(decision >= 0, 1, -1))

    @consistent
    def score(self, X: Inputs, y: Labels | None = None) -> float:
        """Area under the ROC curve of in-distribution against out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, H, W)
            Labels. A row is out-of-distribution if its label is negative, or if ``fit`` was given
            labels and this is a class that it did not see. Where scores are maps, labels of
            pixels: negative is out-of-distribution, 255 is ignored. They may be of the size of X
            or a whole multiple of that of the scores. None: those of a ``Dataset`` or
            ``DataLoader``.

        Returns
        -------
        auroc : float
            1 is perfect, 0.5 is chance; NaN with a warning where all rows are of one kind.

        Raises
        ------
        ValueError
            Without y, or if it does not go with X.
        """
        needs = (
            "score needs y: class labels, negative for out-of-distribution rows. Without labels "
            "use score_samples."
        )
        if y is None and not is_stream(X):
            raise ValueError(needs)
        if is_dask(X):
            distributed = load_distributed()
            scores, y = distributed.compute(self.score_samples(X), y)
        else:
            rows, scores = self._score(X, "score", y)
            scores, y = scores.cpu().numpy(), rows.labels if is_stream(X) else y
        if y is None:
            raise ValueError(needs)
        if scores.ndim > 1:
            kinds = self._pixel_kinds(y, scores, self._row_shape)
            return auroc_score(kinds[kinds != 0], scores[kinds != 0])
        ood = is_ood(y, self._known_labels())
        warn_of_unseen(self, y, ood)
        return auroc_score(np.where(ood, -1, 1), scores)

    @staticmethod
    def _pixel_kinds(y, scores, row_shape):
        """Return +1, -1 or 0 for each pixel of label maps that go with maps of scores."""
        if is_label_map(y) and scores.ndim == 1:
            raise ValueError(
                f"y holds labels of pixels, of shape {tuple(y.shape)}, but this detector gives one "
                "score a row.\nPass one label for each row. Scores of pixels take a network whose "
                "logits are maps,\nin a method on logits, or on features with layer=None, such as "
                "KNNDetector(net)."
            )
        if not is_label_map(y) or len(y) != len(scores):
            raise ValueError(
                f"The scores are maps of shape {tuple(scores.shape)}, so y must hold labels of "
                f"pixels in that shape; got {tuple(np.shape(y))}."
            )
        return map_kinds(maps_at(y, scores.shape[1:], row_shape))

    def _sample_of(self, scores, training, sample):
        """Draw scores that come in batches, of rows or of pixels that count, into a sample."""
        stop, source = 0, training.source
        for part in scores:
            start, stop = stop, stop + len(part)
            keys, maps = training.keys_of(slice(start, stop)), training.maps_of(slice(start, stop))
            keys = keys.to(part.device)
            if part.ndim > 1:
                keys = entry_keys(keys, part[0].numel()).view_as(part)
            if maps is not None:
                counts = self._pixel_kinds(maps, part, source.row_shape) > 0
                part, keys = (values[torch.from_numpy(counts)] for values in (part, keys))
            part, keys = part.flatten(), keys.flatten()
            chosen = sample.choose(keys)
            sample.add([part[chosen]], keys[chosen])
        return sample

    def _known_labels(self):
        """Return the labels that are not out-of-distribution; None if only negatives are."""
        if not hasattr(self, "known_classes_"):
            return None
        known = move_to_numpy(self.known_classes_)
        more = frozen_classes(self._given_model)
        return known if more is None else np.union1d(known, more)


def apply(scorer, inputs, network):
    """Return the scores of a batch, of features in chunks that fit into a CPU's cache."""
    if not network.takes_features or network.device.type != "cpu":
        return scorer(*inputs)
    size = feature_batch_rows(sum(tensor[:1].nbytes for tensor in inputs), CHUNK_BYTES)
    chunks = zip(*(tensor.split(size) for tensor in inputs), strict=True)
    return torch.cat([scorer(*chunk) for chunk in chunks])
