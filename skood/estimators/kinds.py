"""Bases of detectors by what their methods consume: features, logits, both, or a layer."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real

import torch
from torch import nn

from skood._compat import Interval, StrOptions
from skood._typing import RandomState
from skood.estimators.base import BaseDetector
from skood.estimators.network_estimator import PoolsLayer
from skood.estimators.parameters import DeclaresParameters, param
from skood.functional import energy, entropy, gen, log_odds, max_logit, msp
from skood.learning.shaping import LearnedShaping, ShapingScorer

LOGIT_SCORES = {
    "energy": energy,
    "msp": msp,
    "log_odds": log_odds,
    "max_logit": max_logit,
    "entropy": entropy,
    "gen": gen,
}


class KeepsBank(DeclaresParameters):
    """Mixin of detectors that compare rows with a bank of training rows, a `BankScorer`'s.

    Parameters
    ----------
    bank_size : int, float or None, default=None
        How many training rows the bank keeps, drawn at random; a float is a share. None: all,
        of pixels 20 000.
    random_state : int, RandomState or None, default=None
        Draws the bank.
    """

    bank_size: int | float | None = param(
        Interval(Integral, 1, None, closed="left"),
        Interval(Real, 0, 1, closed="neither"),
        None,
        default=None,
    )
    random_state: RandomState = param("random_state", default=None)


class SearchesBank(KeepsBank):
    """Mixin of detectors that search a bank for the rows nearest to a row.

    Parameters
    ----------
    index : str, default="exact"
        How to search the bank: "exact", or by faiss (``pip install faiss-cpu``) with an index
        described as for its ``index_factory``, such as ``"Flat"``, ``"IVF1024,Flat"`` or
        ``"HNSW32"``; see `NNGuideDetector` for what these find.

    Attributes
    ----------
    k_ : int
        The number of neighbours used.
    scorer_ : nn.Module
        Maps features to scores; its buffer ``bank`` is the bank, or ``index_bytes`` faiss's index.
    """

    index: str = param(str, default="exact")

    def _fitted_attributes(self, scorer):
        return {"k_": scorer.n_neighbours()}


class MeasuresResidual(DeclaresParameters):
    """Mixin of detectors that measure what of a row lies outside of a subspace, by a `Residual`.

    The scorer has it as ``residual``.

    Parameters
    ----------
    layer : str, default=None
        The submodule whose output is the feature vector, maps and tokens averaged over their
        positions; tokens that are 0 in ``X["attention_mask"]`` do not count. It takes
        ``center="mean"``. None: what enters the last linear layer.
    n_components : int, float or None, default=None
        The dimension k of the subspace, less than the number of features D. A share in (0, 1): as
        few directions as hold this share of the variance. None: the choice of ViM's authors, 1000
        from D = 2048 on and 512 from 768 on; below, where they have none, D / 2.
    center : {"origin", "mean"}, default="origin"
        The point o: :math:`-W^+ b`, where the logits vanish (the paper), or the mean training row.

    Attributes
    ----------
    n_components_ : int
        The dimension of the subspace.
    """

    n_components: int | float | None = param(
        Interval(Integral, 1, None, closed="left"),
        Interval(Real, 0, 1, closed="neither"),
        None,
        default=None,
    )
    center: str = param(StrOptions({"origin", "mean"}), default="origin")

    def _check_center(self):
        """Raise if the center is that of features which the head does not take."""
        if self.layer is not None and self.center == "origin":
            raise ValueError(
                f"layer={self.layer!r} is not what the head takes, whose zero is "
                "center='origin'.\nGive center='mean' with a layer."
            )

    def _fitted_attributes(self, scorer):
        return {"n_components_": scorer.residual.n_components_}


class ReadsLayers(DeclaresParameters):
    """Mixin of detectors that read several layers in one pass.

    Parameters
    ----------
    layers : sequence of str or None, default=None
        Names of submodules, and None for what enters the last linear layer.
    channel_axis : int, sequence of int or None, default=None
        The axis of a layer's output that holds the channels, where it has positions too: 1 for
        (n, C, H, W) and (n, C, L), -1 for (n, H, W, C) and (n, T, C); one for all layers, or one a
        layer. None: what the layers of torch inside of it or before it tell; a warning says where
        it was guessed.
    """

    layers: Sequence[str | None] | None = param(list, tuple, None, default=None, kw_only=False)
    channel_axis: int | Sequence[int | None] | None = param(
        Integral, "array-like", None, default=None
    )

    def _layers_and_axes(self, default):
        """Return the names of the layers, `default` where none are given, and an axis for each."""
        layers = list(default if self.layers is None else self.layers)
        if len(set(layers)) < len(layers) or not layers:
            raise ValueError(f"layers={layers} must name at least one layer, each once.")
        return layers, per_layer(self.channel_axis, len(layers), "channel_axis")


def per_layer(value, n_layers, name="value"):
    """Return a parameter as a list of one value a layer, or raise if it has another number."""
    if value is None or isinstance(value, (str, Real)):
        return [value] * n_layers
    if len(value) != n_layers:
        raise ValueError(
            f"{name} has {len(value)} entries for {n_layers} layers: give one value, or one a "
            "layer in the order of `layers`."
        )
    return list(value)


class ReadsStages(ReadsLayers):
    """Mixin of detectors that read several layers, those that stand for the network without names.

    Parameters
    ----------
    layers : sequence of str or None, default=None
        Names of submodules, and None for what enters the last linear layer. Without a sequence the
        last layer of each size of maps, such as layer1, layer2, layer3 and layer4 of a ResNet; the
        features alone where there are no maps, as in transformers and without a network.

    Attributes
    ----------
    layers_ : list of str or None
        The layers in use.
    """

    @property
    def looks_inside(self) -> bool:
        """True unless `layers` name no other than what enters the last linear layer."""
        return self.layers is None or list(self.layers) != [None]

    def _fitted_attributes(self, scorer):
        return {"layers_": scorer.layers}


class FeatureDetector(PoolsLayer, BaseDetector):
    """Base of detectors that score features. A subclass defines ``_make_scorer()``.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn classifier or None, default=None
        Maps X to logits, or to features where it has no head. A trained module or a
        `FrozenEstimator` is used as it is, another estimator is cloned and fitted. None: X holds
        features.
    """

    _needs_logits = False

    def _make_scorer(self):
        """Return the module that maps features to scores."""
        raise NotImplementedError

    def _build(self, network):
        if self.layer is None:
            body = network.features()
        else:
            body = network.layer(self.layer, channel_axis=self.channel_axis)
        return body, self._make_scorer()


class ClassifierDetector(BaseDetector):
    """Base of detectors that need logits. Without a network a head is fitted to the features.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn classifier or None, default=None
        Maps X to logits. A trained module or a `FrozenEstimator` is used as it is, another
        estimator is cloned and fitted. None: X holds features, and a logistic regression on
        (X, y) is the head.
    random_state : int, RandomState or None, default=None
        For the k-means clusters that stand in for classes where ``model=None`` gets no y.
    """

    random_state: RandomState = param("random_state", default=None)


class LogitsDetector(ClassifierDetector):
    """Base of detectors that score logits. A subclass defines ``_make_score()``.

    One that learns from logits defines ``_make_scorer(network)`` instead, or both.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps logits (n_samples, n_classes, ...) to scores (n_samples, ...): where logits are maps
        there is one score a pixel.
    """

    def _make_score(self):
        """Return the function that maps logits (n_samples, n_classes, ...) to scores."""
        raise NotImplementedError

    def _make_scorer(self, network):
        """Return the module that maps logits to scores."""
        return LogitScorer(nn.Identity(), self._make_score())

    def _build(self, network):
        return network.logits(), self._make_scorer(network)


class HeadDetector(ClassifierDetector):
    """Base of detectors that score features and logits. A subclass defines ``_make_scorer(head)``.

    The head is the last linear layer, by which the scorer computes logits from features. A subclass
    that is also a `PoolsLayer` takes the features of a named layer too: then the head is None, and
    the scorer takes (features, logits).
    """

    def _make_scorer(self, head):
        """Return the module that maps features, or features and logits, to scores."""
        raise NotImplementedError

    def _build(self, network):
        if not isinstance(self, PoolsLayer) or self.layer is None:
            return network.features(), self._make_scorer(network.head)
        body = network.require_logits().layer(
            self.layer, with_logits=True, channel_axis=self.channel_axis
        )
        return body, self._make_scorer(None)


class ScoresLogits(DeclaresParameters):
    """Mixin of detectors that score logits after they have changed what these are made of.

    Parameters
    ----------
    logit_score : str or callable, default="energy"
        What the score is of the logits: "energy", "max_logit", "entropy", "gen", "msp" or
        "log_odds", the functions of `skood.functional`, or a function that maps logits
        (n_samples, n_classes, ...) to scores, higher = more in-distribution. "msp" ties where the
        network is confident; "log_odds" ranks as it does, without ties.
    """

    logit_score: str | Callable[[torch.Tensor], torch.Tensor] = param(
        StrOptions(set(LOGIT_SCORES)), callable, default="energy"
    )


class ShapingDetector(ScoresLogits, ClassifierDetector):
    """Base of detectors that shape the activations of a layer and score the logits that follow.

    A subclass defines ``_make_shaping()``, which returns a module that maps activations to a tensor
    of the same shape, a `LearnedShaping` if it learns from training rows. It may override
    ``_make_head_scorer`` where features in front of a head can be scored faster.

    Parameters
    ----------
    layer : str, default=None
        The submodule whose output is shaped. None: what enters the last linear layer.

    Attributes
    ----------
    scorer_ : nn.Module
        Maps what is shaped, features or inputs of the network, to scores.
    """

    layer: str | None = param(str, None, default=None, kw_only=False)

    def _make_shaping(self):
        """Return the module that shapes activations."""
        raise NotImplementedError

    def _make_head_scorer(self, head, shaping, logit_score):
        """Return the module that maps features in front of a head to scores."""
        return LogitScorer(nn.Sequential(shaping, head), logit_score)

    def _build(self, network):
        score, shaping = logit_scorer(self.logit_score), self._make_shaping()
        if isinstance(shaping, LearnedShaping):
            if self.layer is not None and shaping.per_channel:
                shaping.channel_axis = network.channel_axis(self.layer)
            body, rest = network.require_logits(maps=True).cut(self.layer)
            return body, ShapingScorer(shaping, rest, score)
        if self.layer is None and network.map_head is None:
            return network.features(), self._make_head_scorer(network.head, shaping, score)
        to_logits = network.require_logits(maps=True).with_layer_transform(self.layer, shaping)
        return nn.Identity(), LogitScorer(to_logits, score)


def logit_scorer(logit_score):
    """Return the function that the parameter `logit_score` names, with a check of its results."""
    chosen = LOGIT_SCORES.get(logit_score) if isinstance(logit_score, str) else logit_score

    def score(logits):
        scores = chosen(logits)
        # torch.export would take len for a constant.
        expected = (logits.shape[0], *logits.shape[2:])
        is_floating = isinstance(scores, torch.Tensor) and scores.is_floating_point()
        if not is_floating or scores.shape != expected:
            shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else None
            raise ValueError(
                f"logit_score must map logits of shape {tuple(logits.shape)} to a floating tensor "
                f"of shape {expected}, one score a row, got {shape or type(scores).__name__}."
            )
        return scores

    return score


class LogitScorer(nn.Module):
    """What a module maps to logits → scores of these logits; maps of logits give maps of scores."""

    def __init__(self, to_logits, logit_score):
        super().__init__()
        # A function, even around a module of the user's: as a submodule, that one would be put into
        # eval mode.
        self.to_logits, self.logit_score = to_logits, logit_score

    def forward(self, x):
        """Score features or inputs of a network."""
        return self.logit_score(self.to_logits(x))
