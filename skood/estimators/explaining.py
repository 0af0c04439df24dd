"""Explaining scores: what a scorer says of its rows, put together."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from skood._compat import move_to_numpy
from skood._typing import Inputs
from skood.estimators.explanation import Explanation
from skood.estimators.network_estimator import NetworkEstimator, computing, consistent
from skood.estimators.scoring import apply
from skood.functional import clip_to
from skood.learning.learning import as_inputs
from skood.network.gradients import InputGradient, NotDifferentiable

# A row of the bank is one of X_train if it is this near, in units of its length.
SAME = 1e-3


class WithGradient(nn.Module):
    """X → the gradients of scores, of no columns where there are none, and what a scorer takes.

    Parameters
    ----------
    body : nn.Module
        Maps X to what the scorer takes.
    gradient : InputGradient
        Of a body of its own, which it changes.
    """

    def __init__(self, body, gradient):
        super().__init__()
        self.body, self.gradient = body, gradient

    def forward(self, x):
        """Return a tuple."""
        try:
            # First: a network may write to what it is given.
            gradient = self.gradient(x)
        except NotDifferentiable:
            gradient = torch.empty(len(tree_leaves(x)[0]), 0)
        # Where a length is divided by that is 0 there is none.
        gradient = clip_to(gradient.nan_to_num(nan=0.0), gradient.dtype)
        return gradient, *as_inputs(self.body(x))


class ExplainsRows(NetworkEstimator):
    """The part of a detector that says why rows score as they do."""

    @consistent
    def explain(self, X: Inputs, X_train: Inputs | None = None) -> Explanation:
        r"""Say why rows score as they do, where the method can.

        - `GMMDetector`, `MahalanobisDetector`: the nearest class, and what each feature adds: with
          the difference :math:`\delta` from its mean and the inverse covariance :math:`A` it is
          :math:`-\delta_j (A \delta)_j` times what the score multiplies distances with.
        - `KNNDetector`, `NNGuideDetector`: distances to the nearest training rows, and what each
          feature adds.
        - `LayersDetector`: what each layer adds; with ``combine="concat"`` what its detector says.
        - `GramDetector`: what each layer adds.
        - `NACDetector`: what each neuron takes from 1, the score of rows that are covered in full.
        - All whose scores depend on X by what torch can differentiate: the gradient of the score
          with respect to X, by one more pass through the network and back.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``: the few rows that are asked about.
        X_train : array-like of shape (n_train, ...), default=None
            The rows of ``fit``, where the nearest are to be named and shown. A detector keeps
            features, and not which row they are of: the network runs over these rows again.

        Returns
        -------
        explanation : skood.explanations.Explanation
            Contributions that add up to the score, the nearest class, neighbours.

        Raises
        ------
        TypeError
            If the method has nothing to say, or scores are maps.
        ValueError
            If X_train is given to a method without neighbours, or faiss finds them.

        Notes
        -----
        Features are what the method works on: columns of X, or units of a layer; of methods that
        scale rows to length 1 the scaled ones. Of a relative `MahalanobisDetector` contributions
        are those of the differences from the center of all rows, and the base is what a row there
        would score, by the class that is nearest to X.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skood import GMMDetector
        >>> X, y = load_iris(return_X_y=True, as_frame=True)
        >>> detector = GMMDetector().fit(X, y)
        >>> odd = X[:1].assign(**{"petal width (cm)": 0.9})
        >>> explanation = detector.explain(odd)
        >>> int(explanation.nearest_class[0]), explanation.top(0, 1)[0][0]
        (0, 'petal width (cm)')
        >>> total = explanation.base + explanation.contributions.sum(axis=1)
        >>> bool(abs(total - detector.score_samples(odd)) < 1e-9)
        True
        """
        rows = self._check_rows(X, "explain")
        scorer = self.scorer_
        says: Any = getattr(scorer, "explain", None) or (lambda *inputs: {})
        scores, parts = [], []
        with computing():
            for gradient, *inputs in self._inputs(rows, self._with_gradient()):
                scores.append(self._finish_scores(apply(scorer, inputs, self._network), rows.dtype))
                if scores[0].ndim > 1:
                    raise TypeError("explain takes methods that give one score a row, not maps.")
                parts.append({"gradient": gradient, **says(*inputs)})
            joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            # The square of a row of 1e200 overflows.
            found: dict[str, Any] = {
                name: (clip_to(v, v.dtype) if v.is_floating_point() else v).cpu().numpy()
                for name, v in joined.items()
            }
        if not found["gradient"].size:
            del found["gradient"]
        if not found:
            raise TypeError(
                f"{type(self).__name__} does not say what its scores are made of, and they do not "
                "depend on X\nby what torch can differentiate. Ask another detector, such as "
                "GMMDetector or KNNDetector."
            )
        in_bank, nearest = (found.pop(name, None) for name in ("in_bank", "nearest_class"))
        known = getattr(self, "known_classes_", None)
        if nearest is not None and known is not None:
            found["nearest_class"] = move_to_numpy(known)[nearest]
        if "contributions" in found:
            found["names"] = self._names_of_parts(found["contributions"].shape[1])
        if "gradient" in found and found["gradient"].ndim == 2:
            columns = getattr(self, "feature_names_in_", range(found["gradient"].shape[1]))
            found["columns"] = list(columns)
        explanation = Explanation(
            torch.cat(scores).cpu().numpy(), self.offset_, **found, rows=images_of(X)
        )
        if X_train is not None:
            self._name_neighbors(explanation, in_bank, X_train)
        return explanation

    def _with_gradient(self):
        """Return a body that gives the gradients of scores too."""
        body, _ = self._as_fitted()._parts(self._network)
        return WithGradient(self._body, InputGradient(body, self.scorer_))

    def _names_of_parts(self, n_parts):
        """Return what contributions are those of."""
        names = getattr(self.scorer_, "part_names", None)
        columns = getattr(self, "feature_names_in_", ())
        if names is None and self._network.takes_features and len(columns) == n_parts:
            names = columns
        return list(range(n_parts) if names is None else names)

    def _name_neighbors(self, explanation, in_bank, X_train):
        """Say which rows of X_train neighbours are."""
        if in_bank is None:
            raise ValueError(f"{type(self).__name__} has no neighbours among rows of X_train.")
        scorer, start = self.scorer_, 0
        wanted, inverse = np.unique(in_bank, return_inverse=True)
        with computing():
            bank = scorer.bank[torch.from_numpy(wanted).to(scorer.bank.device)].double()
            nearest = bank.new_full((len(wanted),), torch.inf)
            at = torch.full_like(nearest, -1, dtype=torch.int64)
            for inputs in self._inputs(self._check_rows(X_train, "explain")):
                rows = scorer.as_in_bank(*inputs).double()
                least, place = torch.cdist(bank[:, : rows.shape[1]], rows).min(1)
                at = torch.where(least < nearest, start + place, at)
                nearest, start = torch.minimum(least, nearest), start + len(rows)
            same = nearest <= SAME * torch.linalg.vector_norm(bank, dim=1).amax()
            at = torch.where(same, at, -1).cpu().numpy()
        explanation.neighbors = at[inverse].reshape(in_bank.shape)
        images = images_of(X_train)
        if images is not None:
            explanation.neighbor_rows = images[np.maximum(explanation.neighbors, 0)]


def images_of(X):
    """Return rows that may be images as an array; None for others, which are not shown."""
    return move_to_numpy(X) if isinstance(X, (np.ndarray, torch.Tensor)) and X.ndim == 4 else None
