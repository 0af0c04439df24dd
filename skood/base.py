"""What all estimators share: validation, passes over batches, the threshold, ±1 and AUROC."""

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skood._arrays import NETWORK_BATCH_ROWS, Rows, TensorStore, feature_batch_rows
from skood._compat import Interval, _fit_context, move_to_numpy
from skood._labels import encode_labels, is_ood
from skood._model import fit_head, fit_model, fitted_module, frozen_classes
from skood.functional import clip_to
from skood.metrics import auroc_score
from skood.network import Network, linear_head, module_device

__all__ = ["BaseDetector", "LearningScorer", "NetworkEstimator", "Training"]


class LearningScorer(nn.Module):
    """A scorer that learns from rows, as a fold over batches.

    Subclasses keep what they learn in buffers, registered as None in ``__init__``. ``inputs`` is
    the tuple that ``forward`` takes, what the detector's method consumes.
    """

    def start(self, training):
        """Prepare to learn from a `Training`."""
        raise NotImplementedError

    def update(self, inputs, codes, positions):
        """Learn from a batch: its inputs, class codes and positions among the training rows."""
        raise NotImplementedError

    def finish(self):
        """Turn the state into what ``forward`` needs."""

    def leave_one_out(self, inputs, codes, positions):
        """Score training rows, each as if it had not been learned from."""
        raise NotImplementedError

    def forget(self):
        """Drop what only learning needs."""


class Training:
    """The in-distribution rows as a method consumes them, from one pass through the network.

    Parameters
    ----------
    rows : Rows
        All rows.
    index : ndarray of shape (n_samples,)
        Which of them are in-distribution.
    classes : ndarray of shape (n_classes,) or None
        The labels.
    codes : ndarray of shape (n_samples,)
        Each row's position in `classes`.
    body : nn.Module
        Maps a batch of X to what the method consumes.
    network : Network
        The network inside of the body.
    batch_size : int or None
        Rows a batch.
    random_state : RandomState
        For methods that draw.
    """

    def __init__(self, rows, index, classes, codes, body, network, batch_size, random_state):
        self.n_samples = len(index)
        self.n_classes = 1 if classes is None else len(classes)
        self.device = network.device
        self.random_state = random_state
        self._rows, self._index, self._body, self._network = rows, index, body, network
        self._batch_size = batch_size
        self._classes, self._codes = classes, torch.as_tensor(codes)
        self._store = None

    def class_name(self, k):
        """Return how to call a class in a message."""
        return "all rows" if self._classes is None else f"class {self._classes[k]!s}"

    def run(self):
        """Run the network over the rows and keep what the method consumes.

        X that holds features already is not kept but read again.
        """
        if not self._network.takes_features:
            store = TensorStore(self.n_samples)
            for _, inputs in self._read():
                store.append(inputs)
            self._store = store

    def _read(self):
        yield from read(self._rows, self._body, self._network, self._batch_size, self._index)

    def batches(self):
        """Yield ``(inputs, codes, positions)``."""
        if self._store is None:
            pairs = self._read()
        else:
            size = self._batch_size or feature_batch_rows(self._store.row_bytes)
            pairs = self._store.batches(size, self.device)
        for start, inputs in pairs:
            positions = slice(start, start + len(inputs[0]))
            yield inputs, self._codes[positions].to(self.device), positions

    def sample(self, n_rows):
        """Return the inputs of a random sample of rows, all of them if there are fewer."""
        chosen = np.arange(self.n_samples)
        if n_rows < self.n_samples:
            chosen = np.sort(self.random_state.choice(self.n_samples, n_rows, replace=False))
        if self._store is not None:
            return self._store.take(chosen, self.device)
        X = self._rows.take(self._index[chosen])
        return as_inputs(self._body(X.to(self.device, self._network.dtype)))


def as_inputs(output):
    """Return what a body gives as the tuple of a scorer's inputs."""
    return output if isinstance(output, tuple) else (output,)


def read(rows, body, network, batch_size, index=None):
    """Yield ``(start, inputs)`` for the rows of X, passed through the body."""
    if batch_size is None:
        batch_size = NETWORK_BATCH_ROWS
        if network.takes_features:
            itemsize = torch.finfo(network.dtype).bits // 8
            batch_size = feature_batch_rows(int(np.prod(rows.shape[1:])) * itemsize)
    # A network may write to its input; our own modules do not.
    batches = rows.batches(
        batch_size,
        device=network.device,
        dtype=network.dtype,
        rows=index,
        own=not network.takes_features,
    )
    for start, batch in batches:
        inputs = as_inputs(body(batch))
        for tensor in inputs:
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    "The network gives NaN or infinity for finite rows of X (the first of them "
                    f"lies in rows {start} to {start + len(batch) - 1}). Are the rows scaled as "
                    "in its training?"
                )
        yield start, inputs


class NetworkEstimator(BaseEstimator):
    """An estimator around a network: parameters, devices, cloning and pickling."""

    _parameter_constraints = {
        "model": "no_validation",
        "layer": [str, None],
        "device": [str, torch.device],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
    }
    # What `model=None` needs a head for; a method on features alone needs none.
    _needs_logits = True

    def __sklearn_clone__(self):
        # A deep copy of every module a clone costs 45 ms and 112 MiB for 29 M weights. We never
        # change a module, so clones share it.
        template = object.__new__(type(self))
        template.__dict__.update(self.__dict__)
        parameters = self.get_params(deep=False)
        shared = {name: p for name, p in parameters.items() if isinstance(p, nn.Module)}
        template.__dict__.update(dict.fromkeys(shared))
        return super(NetworkEstimator, template).__sklearn_clone__().set_params(**shared)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        tags.input_tags.three_d_array = True
        return tags

    def _choose_device(self, automatic):
        """Return the device to compute on."""
        if self.device == "auto":
            return torch.device(automatic)
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={self.device!r} cannot be used here: {error}") from error
        return device

    def _check_rows(self, X, method):
        """Validate the rows of X in another public method."""
        check_is_fitted(self)
        rows = Rows(self, X, reset=False)
        if (rows.namespace, rows.native_device) != (self._namespace, self._native_device):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace "
                "and the same device as those passed to fit(): "
                f"{self._namespace} on {self._native_device}, got {rows.namespace} on "
                f"{rows.native_device}."
            )
        if rows.shape[1:] != self._row_shape:
            raise ValueError(
                f"X has rows of shape {rows.shape[1:]}, but {type(self).__name__} is expecting "
                f"{self._row_shape}, as in fit."
            )
        if self._network.weights_changed:
            warnings.warn(
                f"The network was trained further after {type(self).__name__}.fit: what was "
                "fitted no longer goes with its weights. Fit again.",
                UserWarning,
                stacklevel=3,
            )
        return rows

    def _take_network(self, rows, index, classes, codes, random_state=None):
        """Return the network to cut and the fitted clone of `model`, if one was fitted."""
        model, model_, head_name = self.model, None, None
        if model is None:
            device = self._choose_device(rows.device)
            module = None
            if self._needs_logits:
                module = fit_head(rows, index, classes, codes, device, random_state)
        else:
            if isinstance(model, FrozenEstimator):
                model = model.estimator
            elif not isinstance(model, nn.Module):
                model = model_ = fit_model(model, rows, index, classes, codes)
            module = fitted_module(model, rows.device, rows.dtype)
            device = self._choose_device(module_device(module))

        def sample(device, dtype):
            return rows.take(index[:2]).to(device, dtype, copy=True)

        return Network(module, device, rows.dtype, sample=sample, head_name=head_name), model_

    def _keep(self, rows, network, body, model_):
        """Set the fitted attributes that do not depend on the method."""
        self._row_shape = rows.shape[1:]
        self._namespace, self._native_device = rows.namespace, rows.native_device
        self._network, self._body = network, body
        self.device_ = str(network.device)
        self.__dict__.pop("model_", None)
        if model_ is not None:
            self.model_ = model_

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_body")

    def __getstate__(self):
        # Networks are rebuilt from `model`; what skood fitted travels as numpy, so that a pickle
        # loads without the GPU it was fitted on.
        state = dict(super().__getstate__())
        network = state.pop("_network", None)
        state.pop("_body", None)
        if network is not None:
            head = network.module if self.model is None else None
            state["_saved_network"] = {
                "dtype": str(network.dtype).removeprefix("torch."),
                "head_name": network.head_name if network.has_head else None,
                "head": head and [p.cpu().numpy() for p in (head.weight, head.bias)],
            }
        return state

    def __setstate__(self, state):
        state = dict(state)
        saved = state.pop("_saved_network", None)
        super().__setstate__(state)
        if saved is not None:
            if not _is_usable(self.device_):
                self.device_ = "cpu"
            self._rebuild(saved)

    def _rebuild(self, saved):
        """Build again what pickling dropped; return the module that it belongs to."""
        device, dtype = torch.device(self.device_), getattr(torch, saved["dtype"])
        if self.model is None:
            module = saved["head"] and linear_head(*saved["head"], device, dtype)
        else:
            model = getattr(self, "model_", self.model)
            if isinstance(model, FrozenEstimator):
                model = model.estimator
            module = fitted_module(model, device, dtype)
        self._network = Network(module, device, dtype, head_name=saved["head_name"])


def _is_usable(device):
    """Tell whether a device of this name is here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


class BaseDetector(OutlierMixin, NetworkEstimator):
    """Base of all detectors.

    A subclass says how a network is cut and what scores the result: ``_build(network)`` returns
    ``(body, scorer)``, two modules: X → what the method consumes → scores. A scorer that learns
    from rows is a `LearningScorer`.
    """

    _parameter_constraints = {
        **NetworkEstimator._parameter_constraints,
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
    }
    # The end of the message when a score is not finite.
    _non_finite_hint = "Are the rows scaled as those of fit?"

    def _build(self, network):
        """Return the modules that map X to what the method consumes, and that to scores."""
        raise NotImplementedError

    def _inspect(self, inputs):
        """Warn of what the first batch shows to be unfit for the method."""

    def _finish_fit(self, scorer):
        """Set the fitted attributes of the method."""

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Learn from the in-distribution rows and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            Features where `model` is None or a linear layer, else inputs of the network.
        y : array-like of shape (n_samples,), default=None
            Class labels of any kind. Rows whose label is a negative number are
            out-of-distribution and are left out.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            If X holds NaN, fewer than two rows are in-distribution, or the network cannot be cut
            where the method needs it.
        """
        rows = Rows(self, X, reset=True, min_samples=2)
        index, classes, codes = encode_labels(y, len(rows))
        random_state = check_random_state(getattr(self, "random_state", None))
        with torch.inference_mode(False), torch.no_grad():
            network, model_ = self._take_network(rows, index, classes, codes, random_state)
            body, scorer = self._build(network)
            scorer = scorer.eval()
            training = Training(
                rows, index, classes, codes, body, network, self.batch_size, random_state
            )
            scores = self._fit_scorer(scorer, training, rows.dtype)
        self._keep(rows, network, body, model_)
        self._finish_fit(scorer)
        self.scorer_ = scorer
        self.offset_ = self._threshold(scores, network.dtype)
        self.__dict__.pop("known_classes_", None)
        if classes is not None:
            numeric = classes.dtype.kind not in "OU"
            self.known_classes_ = rows.like(torch.as_tensor(classes)) if numeric else classes
        return self

    def _fit_scorer(self, scorer, training, dtype):
        """Let the scorer learn; return the scores of the training rows, left out one at a time."""
        scores = []
        learns = isinstance(scorer, LearningScorer)
        if learns:
            training.run()
            scorer.start(training)
            for inputs, codes, positions in training.batches():
                scorer.update(inputs, codes, positions)
            scorer.finish()
        for inputs, codes, positions in training.batches():
            if positions.start == 0:
                self._inspect(inputs)
            out = scorer.leave_one_out(inputs, codes, positions) if learns else scorer(*inputs)
            scores.append(self._finish_scores(out, dtype))
        if learns:
            scorer.forget()
        return torch.cat(scores)

    def _finish_scores(self, scores, dtype):
        """Return finite scores in the dtype of X."""
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"{type(self).__name__} gives a score that is not finite. {self._non_finite_hint}"
            )
        return clip_to(scores, dtype)

    def _threshold(self, scores, dtype):
        """Return the quantile of the scores, a little lower so that equal rows fall together."""
        scores = scores.double().cpu().numpy().ravel()
        quantile = np.quantile(scores, self.false_alarm_rate)
        # A row on the quantile would flip between batch sizes. The scale is that of the scores,
        # not 1: gradient norms of features of size 1e-6 are as small.
        scale = max(abs(quantile), np.median(np.abs(scores)))
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        return float(quantile - 16 * eps * scale)

    def _score(self, X, method):
        """Return the validated rows of X and their scores as a tensor."""
        rows = self._check_rows(X, method)
        with torch.inference_mode(False), torch.no_grad():
            scores = [
                self._finish_scores(self.scorer_(*inputs), rows.dtype)
                for _, inputs in read(rows, self._body, self._network, self.batch_size)
            ]
        return rows, torch.cat(scores)

    def _decide(self, X, method):
        """Return the validated rows of X and score minus threshold."""
        rows, scores = self._score(X, method)
        return rows, clip_to(scores.double() - self.offset_, scores.dtype)

    def score_samples(self, X):
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

    def decision_function(self, X):
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
        rows, decision = self._decide(X, "decision_function")
        return rows.like(decision)

    def predict(self, X):
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

    def fit_predict(self, X, y=None):
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

    def score(self, X, y):
        """Area under the ROC curve of in-distribution against out-of-distribution rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, C, H, W)
            As in ``fit``.
        y : array-like of shape (n_samples,)
            Labels. A row is out-of-distribution if its label is negative, or if ``fit`` was given
            labels and this is a class that it did not see.

        Returns
        -------
        auroc : float
            1 is perfect, 0.5 is chance; NaN with a warning where all rows are of one kind.
        """
        if y is None:
            raise ValueError(
                "score needs y: class labels, negative for out-of-distribution rows. Without "
                "labels use score_samples."
            )
        _, scores = self._score(X, "score")
        ood = is_ood(y, self._known_labels())
        self._warn_of_unseen(y, ood)
        return auroc_score(np.where(ood, -1, 1), scores.cpu().numpy())

    def _known_labels(self):
        """Return the labels that are not out-of-distribution; None if only negatives are."""
        if not hasattr(self, "known_classes_"):
            return None
        known = move_to_numpy(self.known_classes_)
        more = frozen_classes(self.model)
        return known if more is None else np.union1d(known, more)

    def _warn_of_unseen(self, y, ood):
        """Warn when a network that may know a class has its rows counted as OOD."""
        if not isinstance(self.model, nn.Module):
            return
        unseen = ood & ~is_ood(y)
        if unseen.any():
            labels = sorted({str(label) for label in np.asarray(y, dtype=object)[unseen]})
            warnings.warn(
                f"{unseen.sum()} rows of the classes {', '.join(labels)}, which fit did not see, "
                "are counted as out-of-distribution. The network given as `model` may know these "
                "classes; if it does, fit with rows of them too.",
                UserWarning,
                stacklevel=3,
            )

    def __sklearn_is_fitted__(self):
        return hasattr(self, "offset_")

    def __getstate__(self):
        state = super().__getstate__()
        scorer = state.pop("scorer_", None)
        if scorer is not None:
            state["_saved_scorer"] = {
                name: tensor.cpu().numpy() for name, tensor in scorer.named_buffers(recurse=False)
            }
        return state

    def __setstate__(self, state):
        buffers = state.get("_saved_scorer")
        super().__setstate__({k: v for k, v in state.items() if k != "_saved_scorer"})
        if buffers is not None:
            self._body, self.scorer_ = self._build(self._network)
            for name, array in buffers.items():
                # np.array: what skops or a memmap gives may be read-only.
                tensor = torch.from_numpy(np.array(array)).to(self._network.device)
                self.scorer_.register_buffer(name, tensor)
            self.scorer_.eval()

    def __sklearn_array_api_convert__(self, converter):
        """Return a copy that takes X of another array library or device."""
        from skood._arrays import namespace_of

        moved = type(self).__new__(type(self))
        moved.__setstate__(self.__getstate__())
        if hasattr(self, "known_classes_"):
            moved.known_classes_ = converter(self.known_classes_)
        moved._namespace, moved._native_device = namespace_of(converter(np.empty(0)))
        return moved
