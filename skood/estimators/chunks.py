"""Learning from data that comes in chunks, and bringing together what was learned from parts."""

import contextlib
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from skood._typing import Inputs, Labels
from skood._warnings import warn
from skood.data.arrays import feature_batch_rows
from skood.data.labels import check_classes, maps_at
from skood.data.lazy import is_dask
from skood.data.store import join
from skood.data.streams import is_stream
from skood.estimators.network_estimator import ROW_ATTRIBUTES, NetworkEstimator, computing
from skood.learning.accumulated import AccumulatedState
from skood.learning.keys import key_seed
from skood.learning.learning import LearningScorer, Training, unlearned
from skood.learning.pixels import Pixelwise, batches_of_pixels, by_pixel
from skood.learning.reservoir import evenly
from skood.network.model import frozen_classes

# May change from chunk to chunk of `partial_fit`, and differ between detectors that are merged.
FREE_PARAMS = {"false_alarm_rate", "batch_size", "device", "verbose", "random_state"}
# Attributes that are there from the first chunk on, if at all.
GIVEN = {*ROW_ATTRIBUTES, "model_"}


class ChunksAttributes:
    """The types of what a detector keeps: apart from the parameters, which are annotated too."""

    _learned: AccumulatedState
    _scorer: nn.Module
    _fitted_params: dict[str, Any]


class LearnsFromChunks(ChunksAttributes, NetworkEstimator):
    """The part of a detector that learns in chunks; what follows from them waits until asked for.

    Between chunks a detector keeps `_scorer`, its scorer before it has learned, and `_learned`;
    `_finalized` names the attributes that were made of these.
    """

    def partial_fit(
        self, X: Inputs, y: Labels | None = None, classes: np.ndarray | None = None
    ) -> Self:
        r"""Learn from more in-distribution rows, of data that comes in chunks.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, H, W), default=None
            As in ``fit``: for all chunks or for none. Each may bring new classes, and lack others.
        classes : array-like of shape (n_classes,), default=None
            All in-distribution labels there are; any other in y, but for negative numbers, is an
            error. None: any label is a class.

        Returns
        -------
        self : object
            The detector, which has learned from this chunk and all before.

        Raises
        ------
        TypeError
            If X is a dask collection, which ``fit`` takes.
        ValueError
            If parameters changed since the first chunk, or as ``fit`` does. What was learned
            before is left as it was.

        Warns
        -----
        UserWarning
            If ``fit`` came before. It keeps nothing to go on from, so that this starts anew.

        Notes
        -----
        The first chunk decides what must be known before the first row: a head or network that
        ``fit`` would train is trained on it alone, and of `NACDetector` ``alpha="auto"`` is taken
        from it. With a trained network and numbers, what is learned is that of one ``fit``, to
        rounding, whatever the chunks and their order: a bank of ``bank_size`` rows is a random
        sample, which is drawn by what the rows hold and `random_state`.

        The threshold is the quantile of the scores, under what was learned from all chunks, of a
        random sample of 20 000 rows (of all, while there are fewer), which are kept; methods that
        compare each row with all others take 6000 of them. With :math:`\alpha` the
        `false_alarm_rate`, :math:`m` the number of these rows and :math:`f` the density of the
        scores at the threshold, its standard error is :math:`\sqrt{\alpha (1 - \alpha) / m} / f`:
        of the share of false alarms 0.15 % (0.28 %) at 5 %. It is computed when it is asked for
        first, so that small chunks cost no more than learning from them.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skood import GMMDetector
        >>> X, y = load_iris(return_X_y=True)
        >>> detector = GMMDetector()
        >>> for chunk in np.array_split(np.random.RandomState(0).permutation(150), 10):
        ...     detector = detector.partial_fit(X[chunk], y[chunk])
        >>> np.allclose(detector.score_samples(X), GMMDetector().fit(X, y).score_samples(X))
        True
        """
        if is_dask(X):
            raise TypeError(
                "partial_fit takes one chunk in memory. fit learns from all blocks of a dask "
                "collection, where they are."
            )
        self._validate_params()
        with self._drafting() as draft, computing():
            before = vars(draft).copy()
            if draft._learn_chunk(X, y, classes) == 0:
                draft.__dict__ = before
        return self

    def _learn_chunk(self, X, y, classes):
        """Learn from one chunk; return how many rows there are with it."""
        first = "_learned" not in vars(self)
        if first and self.__sklearn_is_fitted__():
            warn(
                f"{type(self).__name__}.fit keeps nothing to go on from, so partial_fit starts "
                "anew. Let partial_fit learn the first chunk too."
            )
        params = self._params_now()
        if not first:
            self._check_params_are(params, self._fitted_params, "the first chunk")
        source = self._source(X, y, first=first, least=0)
        # Of a stream it is not known before it is read whether it holds rows to learn from.
        if first and not is_stream(X) and not len(source):
            return 0
        training = self._begin(source) if first else self._go_on(source)
        n_rows = self._learn(self._learned, training, source, classes)
        self._fitted_params, self.n_samples_seen_ = params, n_rows
        return n_rows

    def _begin(self, source, pilot=None):
        """Take the network, and what must be known before rows are learned from.

        That is told by these rows, or by those that `pilot` returns.
        """
        random_state = self._random_state()
        network, model_ = self._take_network(source, random_state)
        body, scorer = self._parts(network)
        learns = isinstance(scorer, LearningScorer) and not isinstance(scorer, Pixelwise)
        if pilot is not None and learns and type(scorer).start is not LearningScorer.start:
            source = self._source(*pilot(), first=False)
        seed = key_seed(scorer, random_state)
        training = self._make_training(source, body, network, random_state, seed=seed)
        if learns:
            training.note_rows = scorer.note_rows
            training.run()
            if training.n_samples:
                scorer.start(training)
        learned = AccumulatedState(seed, isinstance(scorer, LearningScorer))
        learned.scores_maps = not (network.returns_vectors or isinstance(scorer, Pixelwise))
        self._keep(source, network, body, model_, _scorer=scorer, _learned=learned)
        return training

    def _parts(self, network):
        """Return what `_build` does, with a scorer of pixels where the body gives maps."""
        body, scorer = self._build(network)
        return body, by_pixel(body, scorer).eval().to(network.device)

    def _go_on(self, source):
        """Make ready to learn from more rows."""
        self._check_fits(source)
        self._invalidate()
        self._learned.to(self._network.device)
        return self._training(source)

    def _training(self, source):
        """Return rows as the method consumes them."""
        seed = self._learned.seed
        return self._make_training(source, self._body, self._network, seed=seed)

    def _make_training(self, source, body, network, random_state=None, **how):
        # What `fit` fitted itself needs no check of its labels.
        how["compares"] = not self._fits_model
        how.setdefault("watch", self._progress)
        return Training(source, body, network, self.batch_size, random_state, **how)

    def _learn(self, learned, training, source, classes=None):
        """Add the rows to what was learned; return how many there are now."""
        scorer = self._scorer
        learns, pixels = isinstance(scorer, LearningScorer), isinstance(scorer, Pixelwise)
        if pixels:
            # Apart, for the case that a batch fails.
            part = learned.new(learned.n_expected)
            part.add_pixels(scorer, batches_of_pixels(training))
        elif learns:
            training.run()
        else:
            network = self._network
            score, batches = self._plain_score(scorer, network), training.passes("score")
            # Warns of unfit features once, not with each chunk.
            first = learned.n_rows == 0
            scores = self._training_scores(scorer, score, batches, network, source.dtype, first)
            sample = learned.new(learned.n_expected).sample
            self._sample_of(scores, training, sample)
        if classes is not None:
            found = (part.classes, None) if pixels else (source.classes, source.maps)
            check_classes(*found, classes)
        self._check_classes(self._network, source.classes, source.maps is not None, are_all=False)
        if learned.n_rows == 0:
            self._warn_of_one_logit(self._network, source)
        if pixels:
            learned.merge(part)
        elif learns:
            learned.add(scorer, training)
        else:
            learned.add_scores(sample, training)
            if first and training.n_samples:
                learned.rounding = scorer.rounding
        learned.agreement.merge(training.agreement(frozen_classes(self._given_model)))
        return learned.n_rows

    def _finalize(self):
        """Set the fitted attributes, from what was learned by now; return the scores."""
        # With the parameters of the last chunk, whatever was set since.
        learned, scorer, fitted = self._learned, unlearned(self._scorer), self._as_fitted()
        if learned.n_rows < self._min_samples:
            raise NotFittedError(
                f"This {type(self).__name__} has seen {learned.n_rows} in-distribution rows; it "
                f"needs {self._min_samples} at least."
            )
        has_maps = not self._network.returns_vectors
        self._check_classes(self._network, learned.classes, has_maps)
        with computing():
            learned.to(self._network.device)
            if not learned.sample.n_kept:
                raise NotFittedError("y held no in-distribution pixel: all are negative or 255.")
            keys, rows = learned.sample.sample()
            if isinstance(scorer, LearningScorer):
                scorer.finalize(learned.state, learned.classes)
                counts = rows.pop(-2) if learned.has_maps else None
                keys, *rows = evenly(scorer.n_threshold_rows, keys, *rows)
                # Of pixels a batch holds those of some images.
                size = None if isinstance(scorer, Pixelwise) else self.batch_size
                size = size or feature_batch_rows(sum(t[:1].nbytes for t in rows))
                chunks = zip(*(t.split(size) for t in (*rows, keys)), strict=True)
                batches = (
                    (tuple(inputs), class_indices, some) for *inputs, class_indices, some in chunks
                )
                dtype = torch.promote_types(self._network.dtype, torch.float32)
                scores = self._training_scores(
                    scorer, scorer.leave_one_out, batches, self._network, dtype
                )
                scores = scorer.calibrate(join(scores, len(keys)))
                rounding = scorer.rounding
                if counts is not None:
                    scores = self._at_counting(scores, counts)
                scorer.clear_cache()
            else:
                scores, rounding = rows[0], learned.rounding
            if not len(scores):
                raise NotFittedError("y held no in-distribution pixel: all are negative or 255.")
            attributes = {
                **fitted._fitted_attributes(scorer),
                **learned.agreement.attributes(),
                "scorer_": scorer,
                **fitted._cut(scores, self._network.dtype, rounding),
            }
            if learned.classes is not None:
                attributes["known_classes_"] = learned.classes
            learned.agreement.warn(self._needs_logits)
        vars(self).update(attributes, _finalized=tuple(attributes))
        return scores

    def _at_counting(self, scores, counts):
        """Return the scores of pixels that count, which is known at the size of their labels."""
        if scores.ndim == 1:
            self._pixel_kinds(counts, scores, self._row_shape)
        counts = maps_at(counts, scores.shape[1:], self._row_shape)
        return scores[torch.from_numpy(counts)]

    def __getattr__(self, name):
        # After partial_fit, what follows from what was learned waits until it is asked for.
        # scikit-learn asks for feature names with each chunk.
        waits = name.endswith("_") and not name.startswith("_") and name not in GIVEN
        if waits and "_learned" in vars(self):
            now = vars(self._snapshot())
            if name in now:
                return now[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _snapshot(self):
        now = super()._snapshot()
        if "_learned" in vars(now) and "_finalized" not in vars(now):
            with self._lock:
                if "_learned" in vars(self) and "_finalized" not in vars(self):
                    self._finalize()
                now = super()._snapshot()
        return now

    def _invalidate(self):
        """Drop what follows from what was learned."""
        if vars(self).get("_kept_scores", {}).get("set_aside"):
            warn(
                "The threshold was that of rows set aside, under what was learned before. Now it "
                "is that of the training rows again: call set_threshold once all is learned."
            )
        for name in vars(self).pop("_finalized", ()):
            delattr(self, name)

    def _drop_accumulated(self):
        """Drop what learning could go on from."""
        for name in ("_learned", "_scorer", "_finalized"):
            vars(self).pop(name, None)

    def merge(self, other: Self) -> Self:
        """Take in what another detector has learned by `partial_fit` from other rows.

        Parameters
        ----------
        other : detector
            Of the same class, parameters and network. It stays as it is.

        Returns
        -------
        self : object
            The detector, as if it had learned from the rows of both.

        Raises
        ------
        TypeError
            If `other` is of another class.
        ValueError
            If one of them has not learned by `partial_fit`, or they differ in what must be the
            same: the columns, a parameter, the network or a head that was fitted to the first
            rows, or the ``alpha`` of `NACDetector` where that is "auto".

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skood import GMMDetector
        >>> X, y = load_iris(return_X_y=True)
        >>> parts = [GMMDetector().partial_fit(X[i::3], y[i::3]) for i in range(3)]
        >>> whole = parts[0].merge(parts[1]).merge(parts[2])
        >>> np.allclose(whole.score_samples(X), GMMDetector().fit(X, y).score_samples(X))
        True
        """
        with contextlib.ExitStack() as stack:
            # In one order, whichever is merged into which.
            for detector in sorted({self, other}, key=id):
                stack.enter_context(detector._lock)
            self._check_mergeable(other)
            draft = stack.enter_context(self._drafting())
            draft._invalidate()
            with computing():
                draft._learned.to(draft._network.device)
                draft._learned.merge(other._learned)
            draft.n_samples_seen_ = draft._learned.n_rows
        return self

    def _check_mergeable(self, other):
        """Raise unless what another detector has learned goes with what this one has."""
        if type(other) is not type(self):
            raise TypeError(
                f"{type(self).__name__} merges with another {type(self).__name__}, got "
                f"{type(other).__name__}."
            )
        if other is self:
            raise ValueError("A detector cannot be merged with itself: its rows would count twice.")
        if "_learned" not in vars(self) or "_learned" not in vars(other):
            raise ValueError("merge takes what partial_fit has learned: call that on both first.")
        names = [list(vars(d).get("feature_names_in_", ())) for d in (self, other)]
        if all(names) and names[0] != names[1]:
            one, two = next(pair for pair in zip_longest(*names) if pair[0] != pair[1])
            raise ValueError(
                f"The detectors learned from other columns, or in another order: {two!r:.50} comes "
                f"where this one has {one!r:.50}. Give both the same columns in the same order."
            )
        params = self._fitted_params
        self._check_params_are(params, other._fitted_params, "the other detector", {"model"})
        one, two = ((d._row_shape, d._network.dtype) for d in (self, other))
        if one != two:
            raise ValueError(
                f"The detectors learned from rows of shape {one[0]} as {one[1]} and of shape "
                f"{two[0]} as {two[1]}."
            )
        if not self._network.equals(other._network):
            fitted = (
                " Each was fitted to its own first rows: give both a trained one as `model`."
                if self._fits_model
                else ""
            )
            raise ValueError(f"The detectors have networks with other weights.{fitted}")
        for name in getattr(self._scorer, "settings", ()):
            one, two = getattr(self._scorer, name), getattr(other._scorer, name)
            if not torch.equal(one, two.to(one.device)):
                raise ValueError(
                    f"The detectors took other {name} from their first rows: give numbers in "
                    'place of "auto".'
                )

    @staticmethod
    def _check_params_are(params, expected, whose, but=()):
        """Raise if a parameter that decides what is learned has another value."""
        for name, value in params.items():
            there = expected[name]
            if name in FREE_PARAMS or name in but or value is there:
                continue
            if isinstance(value, NetworkEstimator) and type(value) is type(there):
                of = (part.get_params(deep=False) for part in (value, there))
                LearnsFromChunks._check_params_are(*of, whose, but)
                continue
            if isinstance(value, nn.Module) or not np.array_equal(value, there):
                raise ValueError(
                    f"{name}={value!r:.100} is another value than that of {whose}, {there!r:.100}: "
                    "what was learned does not go together. Start with a clone."
                )

    def _keep(self, *args, **fitted):
        self._drop_accumulated()
        vars(self).pop("_kept_scores", None)
        super()._keep(*args, **fitted)
