"""The base of all detectors: validation, passes over batches, the threshold, ±1 and AUROC."""

import copy
from functools import partial
from itertools import chain
from numbers import Real
from typing import Self

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import nn

from skood._compat import Interval, _fit_context, move_to_numpy
from skood._typing import CallbackSupportMixin, Inputs, Labels, OutlierMixin
from skood._warnings import silent
from skood.data.arrays import namespace_of
from skood.data.labels import is_numeric
from skood.data.lazy import is_dask, load_distributed
from skood.data.store import join
from skood.data.streams import Stream
from skood.estimators.chunks import LearnsFromChunks
from skood.estimators.explaining import ExplainsRows
from skood.estimators.network_estimator import NetworkEstimator, computing, logger
from skood.estimators.parameters import param
from skood.estimators.scoring import ScoresRows, apply
from skood.estimators.threshold import MovesThreshold
from skood.functional import all_finite, clip_to
from skood.learning.accumulated import AccumulatedState
from skood.learning.keys import key_seed
from skood.learning.learning import (
    LearningScorer,
    learn,
    learned_buffers,
    learned_parts,
    threshold_rows,
    unlearned,
)
from skood.learning.pixels import Pixelwise
from skood.learning.thresholds import interpolate, rounding_of
from skood.network.model import cross_fitted_heads, frozen_classes
from skood.network.network import Network

__all__ = ["BaseDetector"]

# Of more values in X a head is not fitted again: see docs/guide/thresholds.md.
CROSS_FITTED_VALUES = 2**21


class FittedAttributes:
    """The types of what ``fit`` sets: apart from the parameters, which are annotated too."""

    offset_: float
    scorer_: nn.Module
    known_classes_: np.ndarray
    accuracy_: float
    n_features_in_: int
    n_samples_seen_: int


class BaseDetector(
    FittedAttributes,
    ScoresRows,
    MovesThreshold,
    ExplainsRows,
    LearnsFromChunks,
    CallbackSupportMixin,
    OutlierMixin,
    NetworkEstimator,
):
    """Base of all detectors.

    A subclass says how a network is cut and what scores the result: ``_build(network)`` returns
    ``(body, scorer)``, two modules: X → what the method consumes → scores. A scorer that learns
    from rows is a `LearningScorer`.

    Parameters
    ----------
    false_alarm_rate : float, default=0.05
        The share of in-distribution rows that ``predict`` may call out-of-distribution; it sets
        ``offset_``.

    Attributes
    ----------
    offset_ : float
        The threshold: ``predict`` calls rows with a lower score out-of-distribution.
    scorer_ : nn.Module
        Maps what the method consumes to scores; its buffers hold what was learned. Where pixels of
        maps are scored as rows are, its ``scorer`` does that.
    known_classes_ : array of shape (n_classes,)
        The in-distribution labels, where y was given.
    accuracy_ : float
        The share of the in-distribution rows of ``fit`` whose largest logit is that of their
        label, as the method sees the logits. Set where a trained network gives them and labels
        tell which logit is theirs, by being its number or a class of a frozen classifier.
    n_samples_seen_ : int
        How many in-distribution rows ``partial_fit`` has learned from; not set by ``fit``.
    """

    false_alarm_rate: float = param(Interval(Real, 0, 0.5, closed="right"), default=0.05)

    _min_samples = 2
    # Whether rows of X are moved or transformed before the network sees them.
    _changes_inputs = False
    # The end of the message when a score is not finite.
    _non_finite_hint = "Are the rows scaled as those of fit?"

    def _build(self, network):
        """Return the modules that map X to what the method consumes, and that to scores."""
        raise NotImplementedError

    @property
    def looks_inside(self) -> bool:
        """True when features in front of the last linear layer are not all that is needed."""
        return self._changes_inputs or any(
            getattr(self, name, None) not in (None, "head")
            for name in ("layer", "layers", "params")
        )

    def _inspect(self, scorer, inputs):
        """Warn of what the first batch shows to be unfit for the method."""

    def _fitted_attributes(self, scorer):
        """Return more fitted attributes, as a dict."""
        return {}

    def _random_state(self):
        """Return what draws."""
        return check_random_state(getattr(self, "random_state", None))

    def fit(self, X: Inputs, y: Labels | None = None, *, X_val: Inputs | None = None) -> Self:
        """Learn from the in-distribution rows and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            Features where `model` is None or a linear layer, else inputs of the network. A dict
            of arrays is passed to the network by name. Or a ``Dataset`` or ``DataLoader`` of torch,
            or a ``Dataset`` of Hugging Face: its items or batches are (X, y), X alone, or dicts,
            perhaps with "labels".
        y : array-like of shape (n_samples,) or (n_samples, H, W), default=None
            Class labels of any kind. Rows whose label is a negative number are
            out-of-distribution and are left out. Where scores are maps, labels of pixels, of
            the size of the maps, a whole multiple of it, or that of X; those that are negative
            or 255 are neither learned from nor count for the threshold. Given beside a
            ``Dataset`` or ``DataLoader``, used in place of its own labels.
        X_val : array-like of shape (n_held_out, ...), default=None
            In-distribution rows that neither X nor the training of the network holds, to see
            whether the threshold keeps its promise on them. Nothing is learned from them:
            ``set_threshold(X_val)`` moves the threshold by them. A Pipeline hands them over as
            they are, not transformed by its steps before: it does transform them with
            ``set_config(enable_metadata_routing=True)``, ``set_fit_request(X_val=True)`` of the
            detector and ``Pipeline(steps, transform_input=["X_val"])``.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            If X holds NaN, fewer than two rows are in-distribution, the network cannot be cut
            where the method needs it, or a method on logits gets none, or fewer than y has
            classes. If `X_val` are no such rows, or scores are maps, whose pixels are not as many
            independent rows: the detector is fitted by then.

        Warns
        -----
        UserWarning
            If more of `X_val` than `false_alarm_rate` is called out-of-distribution, more than
            the draw of the rows explains, as where the network has seen the rows of X.
            If the largest logits agree with y less often than chance and one half: see
            ``accuracy_``. If the network returns one number a row and there is no y: it is taken
            for the logit :math:`l` of two classes, which stands for :math:`(-l/2, l/2)`, as it is
            with y.

        Notes
        -----
        The network runs once over the rows. What the method consumes is kept in memory up to
        scikit-learn's ``working_memory`` and in a temporary file beyond. Where pixels are scored
        as rows are, nothing but sums and samples is, and a random 20 000 of them set the threshold.
        """
        if is_dask(X):
            distributed = load_distributed()
            self._validate_params()
            distributed.fit(self, X, y)
        else:
            self._fit(X, y)
        if X_val is not None:
            self._check_false_alarms(X_val)
        return self

    def fit_predict(self, X: Inputs, y: Labels | None = None) -> np.ndarray:
        """Fit on X and y, and predict X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            See ``fit``.
        y : array-like of shape (n_samples,), default=None
            See ``fit``.

        Returns
        -------
        labels : array of shape (n_samples,), dtype int64
            +1 for in-distribution, -1 for out-of-distribution.
        """
        # OutlierMixin's own drops y.
        return self.fit(X, y).predict(X)

    def _fit(self, X, y):
        """Fit; return the scores of the in-distribution rows, left out one at a time.

        They are not kept: they are n numbers that only the threshold and calibration need.
        """
        # scikit-learn keeps what callbacks need among the attributes, until the fit ends.
        with self._lock:
            return self._fit_alone(X, y)

    @_fit_context(prefer_skip_nested_validation=False)
    def _fit_alone(self, X, y):
        context = self._init_callback_context(max_subtasks=None)
        context.call_on_fit_task_begin(estimator=self)
        with self._fitting(X, y) as (draft, source):
            scores = draft._fit_source(source, partial(self._watch, context))
            logger.info(
                "%s: fitted to %d rows, layers=%s, threshold %g",
                type(self).__name__,
                len(source),
                getattr(draft, "layers_", getattr(draft, "layer", None)),
                draft.offset_,
            )
        context.call_on_fit_task_end(estimator=self)
        return scores

    def _fit_source(self, source, watch):
        """Learn from rows; return their scores."""
        random_state = self._random_state()
        network, model_ = self._take_network(source, random_state)
        if not isinstance(source, Stream):
            # Before the network runs; the labels of a stream are known after.
            self._check_classes(network, source.classes, source.maps is not None)
        body, scorer, training = self._prepare(source, network, random_state, watch)
        if isinstance(scorer, Pixelwise):
            return self._fit_pixels(source, network, body, model_, scorer, training)
        scores = self._fit_scorer(scorer, training, network, source.dtype)
        if self._given_model is None and self._needs_logits:
            if len(source) * network.head.in_features <= CROSS_FITTED_VALUES:
                scores = self._cross_fit(scores, source, network, random_state)
        if not scores.numel():
            raise ValueError("y holds no in-distribution pixel: all are negative or 255.")
        if isinstance(source, Stream):
            self._check_classes(network, source.classes, source.maps is not None)
        self._warn_of_one_logit(network, source)
        classes, agreement = source.classes, training.agreement(frozen_classes(self._given_model))
        agreement.warn(self._needs_logits)
        fitted = {
            **self._fitted_attributes(scorer),
            **agreement.attributes(),
            "scorer_": scorer,
            **self._cut(scores, network.dtype, scorer.rounding),
        }
        if classes is not None:
            fitted["known_classes_"] = (
                source.like(torch.as_tensor(classes)) if is_numeric(classes) else classes
            )
        self._keep(source, network, body, model_, **fitted)
        return scores

    def _fit_pixels(self, source, network, body, model_, scorer, training):
        """Learn from pixels, batch by batch as from chunks; return the scores of a sample."""
        learned = AccumulatedState(training.seed, learns=True)
        self._keep(source, network, body, model_, _scorer=scorer, _learned=learned)
        self._learn(learned, training, source)
        scores = self._finalize()
        self._drop_accumulated()
        # These are not one a row.
        return scores[None]

    def _prepare(self, source, network, random_state, watch=None):
        """Return the parts of a network and the rows as the method consumes them."""
        body, scorer = self._parts(network)
        needs_keys = getattr(scorer, "needs_row_keys", False) or not network.returns_vectors
        seed = key_seed(scorer, random_state) if needs_keys else None
        how = {"seed": seed, "watch": watch}
        training = self._make_training(source, body, network, random_state, **how)
        return body, scorer, training

    def _watch(self, context, name, n_batches, batches):
        """Yield batches, and tell scikit-learn's callbacks of each."""
        task = context.subcontext(name, max_subtasks=n_batches)
        task.call_on_fit_task_begin(estimator=self)
        for batch in self._progress(f"fit: {name}", n_batches, batches):
            step = task.subcontext("batch").call_on_fit_task_begin(estimator=self)
            yield batch
            step.call_on_fit_task_end(estimator=self)
        task.call_on_fit_task_end(estimator=self)

    def _fit_scorer(self, scorer, training, network, dtype):
        """Let the scorer learn; return the scores of the training rows, left out one at a time."""
        if isinstance(scorer, LearningScorer):
            learn(scorer, training)
            score, training = scorer.leave_one_out, training.as_scored()
            batches = training.batches("score", scorer.n_threshold_rows)
        else:
            score, batches = self._plain_score(scorer, network), training.passes("score")
        scores = self._training_scores(scorer, score, batches, network, dtype)
        first = next(scores, torch.empty(0))
        scores = chain([first], scores)
        if first.ndim > 2:
            # Of all maps no more is kept. These are not one a row.
            sample = AccumulatedState(training.seed, learns=False).sample
            joined = self._sample_of(scores, training, sample).sample()[1][0][None]
        else:
            joined = join(scores, training.n_rows)
            if training.source.maps is not None:
                self._pixel_kinds(training.source.maps, joined, training.source.row_shape)
        if isinstance(scorer, LearningScorer):
            # Those of pixels are compared with no others.
            joined = joined if first.ndim > 2 else scorer.calibrate(joined)
            scorer.clear_cache()
        return joined

    def _cross_fit(self, scores, source, network, random_state):
        """Return the scores of training rows as if the head had not seen them.

        Logits of a head of fewer rows are smaller: of scores of rows that it has not seen it counts
        where they lie among those of rows that it has. What else is learned, such as a bank, is
        learned from all rows, and each is left out of it as ever.
        """
        rows = threshold_rows(len(source), len(scores))
        seen, fresh = scores.double().cpu().numpy(), np.empty(len(rows))
        for held_out, head, present in cross_fitted_heads(source, network.head, rows):
            fold = Network(head, network.device, source.dtype)
            fold.classes = network.classes[present] if len(network.classes) else network.classes
            _, scorer, training = self._prepare(source, fold, random_state)
            # The fit of all rows has warned.
            with silent():
                under = self._fit_scorer(scorer, training, fold, source.dtype)
            under = under.double().cpu().numpy()
            inside = np.sort(np.delete(under, held_out))
            like = np.quantile(seen, np.linspace(0, 1, len(inside)))
            fresh[held_out] = interpolate(under[held_out], inside, like)
        return torch.from_numpy(fresh).to(scores)

    @staticmethod
    def _plain_score(scorer, network):
        """Return what scores training rows where nothing is learned from them."""
        return lambda inputs, *where: apply(scorer, inputs, network)

    def _training_scores(self, scorer, score, batches, network, dtype, inspect=True):
        """Yield the scores of batches of training rows; note by how much rounding changes them."""
        for number, (inputs, *where) in enumerate(batches):
            if inspect and number == 0:
                self._inspect(scorer, inputs)
                scorer.rounding = rounding_of(scorer, inputs, network)
            yield self._finish_scores(score(inputs, *where), dtype)

    def _finish_scores(self, scores, dtype):
        """Return finite scores in the dtype of X."""
        if not all_finite(scores):
            raise ValueError(
                f"{type(self).__name__} gives a score that is not finite. {self._non_finite_hint}"
            )
        return clip_to(scores, dtype)

    def __sklearn_is_fitted__(self):
        # Not hasattr, which would compute the threshold.
        return not {"offset_", "_learned"}.isdisjoint(vars(self))

    def __getstate__(self):
        state = super().__getstate__()
        started = state.pop("_scorer", None)
        scorer = state.pop("scorer_", started)
        if scorer is not None:
            state["_saved_scorer"] = {
                name: tensor.cpu().numpy() for name, tensor in learned_buffers(scorer).items()
            }
        return state

    def __setstate__(self, state):
        buffers = state.get("_saved_scorer")
        state = {k: v for k, v in state.items() if k != "_saved_scorer"}
        if "_concluded" in state:
            # So it was called in version 0.1.0.
            state["_finalized"] = state.pop("_concluded")
        super().__setstate__(state)
        if buffers is not None:
            with computing():
                self._load(buffers)

    def _load(self, buffers):
        """Build the scorer again and give it what it had learned."""
        self._body, scorer = self._as_fitted()._parts(self._network)
        parts = learned_parts(scorer)
        for name, array in buffers.items():
            part, _, buffer = name.rpartition(".")
            # np.array: what skops or a memmap gives may be read-only.
            parts[part].register_buffer(buffer, torch.from_numpy(np.array(array)))
        scorer = scorer.to(self._network.device)
        if "_learned" in vars(self):
            self._scorer = unlearned(scorer)
        if "offset_" in vars(self):
            self.scorer_ = scorer

    def __sklearn_array_api_convert__(self, converter):
        """Return a copy that takes X of another array library or device."""
        classes = getattr(self, "known_classes_", None)
        moved = type(self).__new__(type(self))
        moved.__setstate__(self.__getstate__())
        if "_learned" in vars(self):
            moved._learned = copy.deepcopy(self._learned)
        if classes is not None and is_numeric(move_to_numpy(classes)):
            moved.known_classes_ = converter(classes)
        moved._namespace, moved._native_device = namespace_of(converter(np.empty(0)))
        return moved
