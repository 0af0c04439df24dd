"""An estimator around a network: parameters, devices, cloning and pickling."""

import contextlib
import functools
import inspect
import logging
import threading
import weakref
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar, cast

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skood._compat import Interval
from skood._typing import Device, Model
from skood._warnings import warn
from skood.data.arrays import Rows
from skood.data.labelled_rows import LabelledRows
from skood.data.streams import Stream, is_stream
from skood.estimators.parameters import DeclaresParameters, param
from skood.estimators.printing import PrintsNetworks
from skood.learning.agreement import check_has_logits, check_is_classifier
from skood.learning.learning import batch_rows, read
from skood.network.model import (
    fit_head,
    fit_model,
    fitted_module,
    frozen_classes,
    is_trained,
    require_array,
)
from skood.network.modules import linear_head, module_device
from skood.network.network import Network

logger = logging.getLogger("skood")
# What validation sets before anything is fitted.
ROW_ATTRIBUTES = ("n_features_in_", "feature_names_in_")
# Of each estimator, held while it learns. Not among its attributes: those are pickled and compared.
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

Method = TypeVar("Method", bound=Callable[..., Any])


@contextlib.contextmanager
def computing():
    """Compute without gradients, and in full precision whatever surrounds the call."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class OneState:
    """Mixin, in front of ``BaseEstimator``: a call works on what is fitted when it starts.

    All attributes are replaced at once when a fit is complete, and a call that scores takes them
    all at its start: what other threads fit meanwhile reaches the next call.
    """

    @property
    def _lock(self):
        return _LOCKS.setdefault(self, threading.RLock())

    def _snapshot(self):
        """Return an estimator with the present attributes."""
        twin = object.__new__(type(self))
        # A copy of a dict is one step, which no other thread comes between.
        twin.__dict__ = vars(self).copy()
        return twin

    @contextlib.contextmanager
    def _drafting(self):
        """Yield an estimator to fit, whose attributes become this one's unless that fails."""
        with self._lock:
            draft = OneState._snapshot(self)
            yield draft
            # Parameters that were set meanwhile stay set.
            now = vars(self).copy()
            params = {n: v for n, v in now.items() if n in self._get_param_names()}
            self.__dict__ = {**vars(draft), **params}


def consistent(method: Method) -> Method:
    """Let a method work on what is fitted when it is called."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        return method(self._snapshot(), *args, **kwargs)

    return cast(Method, wrapper)


def drafted(fit: Method) -> Method:
    """Let ``fit`` set attributes one by one, of which none is seen before all are."""

    @functools.wraps(fit)
    def wrapper(self, *args, **kwargs):
        with self._drafting() as draft:
            fit(draft, *args, **kwargs)
        return self

    return cast(Method, wrapper)


class ModuleSharing:
    """Mixin, in front of ``BaseEstimator``: clones share the modules among their parameters."""

    def __sklearn_clone__(self):
        # A deep copy of every module a clone costs 45 ms and 112 MiB for 29 M weights. We never
        # change a module, so clones share it.
        template = object.__new__(type(self))
        template.__dict__.update(self.__dict__)
        parameters = self.get_params(deep=False)
        shared = {name: p for name, p in parameters.items() if isinstance(p, nn.Module)}
        template.__dict__.update(dict.fromkeys(shared))
        return super(ModuleSharing, template).__sklearn_clone__().set_params(**shared)


class PoolsLayer(DeclaresParameters):
    """Mixin of estimators whose features may be what a layer gives, one vector a row.

    Parameters
    ----------
    layer : str, default=None
        The submodule whose output is the feature vector, maps and tokens averaged over their
        positions; tokens that are 0 in ``X["attention_mask"]`` do not count. None: what enters the
        last linear layer.
    channel_axis : int, default=None
        The axis of the layer's output that holds the channels, where it has positions too: 1 for
        (n, C, H, W) and (n, C, L), -1 for (n, H, W, C) and (n, T, C). None: what the layers of
        torch inside of it or before it tell; a warning says where it was guessed.
    """

    layer: str | None = param(str, None, default=None, kw_only=False)
    channel_axis: int | None = param(Integral, None, default=None)


class NetworkEstimator(DeclaresParameters, OneState, ModuleSharing, PrintsNetworks):
    """Base of the detectors and of the feature extractor.

    Parameters
    ----------
    model : nn.Module, skorch net, scikit-learn classifier or None, default=None
        Maps X to logits. A trained module or a `FrozenEstimator` is used as it is, another
        estimator is cloned and fitted. None: X holds features.
    device : str or torch.device, default="auto"
        Where to compute, such as "cpu" or "cuda". "auto": on the network's device, or, without a
        network, on X's.
    batch_size : int, default=None
        How many rows to compute at once. None: 128 through a network, fewer where its
        logits are maps of more than 256 MiB, and without a network as many as fill 32 MiB.
        A DataLoader has batches of its own.
    verbose : bool or int, default=False
        Show progress bars of fitting and scoring, on a terminal.

    Attributes
    ----------
    model_ : object
        The fitted clone of `model`, where there was one to fit.
    n_features_in_ : int
        The size of X's second axis.
    """

    model: Model = param(default=None, kw_only=False)
    device: Device = param(str, torch.device, default="auto")
    batch_size: int | None = param(Interval(Integral, 1, None, closed="left"), None, default=None)
    verbose: bool | int = param("verbose", default=False)

    # What `model=None` needs a head for; a method on features alone needs none.
    _needs_logits = True
    _min_samples = 1

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
        if device.type == "meta":
            raise ValueError("device='meta' holds no numbers. Use 'cpu', 'cuda' or 'auto'.")
        return device

    def _source(self, X, y, first=True, least=None):
        """Return the rows and labels to learn from; of the first also what later ones are held to.

        A method needs at least two of them, or in later chunks `least`.
        """
        if first and self._fits_model:
            least = None
        if not is_stream(X):
            n_least = self._min_samples if least is None else 1
            rows = Rows(self, X, reset=first, min_samples=n_least)
            return LabelledRows(rows, y, 2 if least is None else least)
        least = self._min_samples if least is None else least
        stream = Stream(self, X, y, batch_size=self.batch_size, reset=first, least=least)
        return stream.gather() if first and self._fits_model else stream

    @property
    def _given_model(self):
        """The network that parameters name; None where X holds features."""
        return self.model

    @property
    def _fits_model(self):
        """True when ``fit`` fits a network, or a head for ``model=None``."""
        model = self._given_model
        return self._needs_logits if model is None else not is_trained(model)

    def _check_rows(self, X, method, y=None):
        """Validate the rows of X in another public method."""
        check_is_fitted(self)
        if is_stream(X):
            ordered = method not in ("score", "set_threshold")
            rows = Stream(self, X, y, batch_size=self.batch_size, reset=False, ordered=ordered)
        else:
            rows = Rows(self, X, reset=False)
        if None not in (rows.namespace, self._namespace) and (
            rows.namespace,
            rows.native_device,
        ) != (self._namespace, self._native_device):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace "
                "and the same device as those passed to fit(): "
                f"{self._namespace} on {self._native_device}, got {rows.namespace} on "
                f"{rows.native_device}."
            )
        self._check_fits(rows)
        return rows

    def _check_fits(self, rows):
        """Raise unless rows have the shape of those of ``fit``; warn of changed weights."""
        if rows.row_shape != self._row_shape:
            raise ValueError(
                f"X has rows of shape {rows.row_shape}, but {type(self).__name__} is expecting "
                f"{self._row_shape}, as in fit."
            )
        if self._network.weights_changed:
            warn(
                f"The network was trained further, or its weights were replaced, after "
                f"{type(self).__name__}.fit: what was fitted no longer goes with them. Fit again."
            )

    def _inputs(self, rows, body=None):
        """Yield what the scorer takes, batch by batch, with a progress bar where `verbose`.

        Or what another body gives, which the network lies in.
        """
        size = batch_rows(rows, self._network, self.batch_size)
        batches = read(rows, body or self._body, self._network, size)
        for _, inputs in self._progress("", rows.n_batches(size), batches):
            yield inputs

    def _progress(self, name, n_batches, batches):
        """Return batches, with a progress bar of this name where `verbose`."""
        if not self.verbose:
            return batches
        from tqdm import tqdm

        name = f"{type(self).__name__} {name}".rstrip()
        # None: only on a terminal.
        return tqdm(batches, desc=name, total=n_batches, unit="batch", disable=None)

    def _take_network(self, source, random_state=None):
        """Return the network to cut and the fitted clone of `model`, if one was fitted."""
        model, model_ = self._given_model, None
        if model is None:
            device = self._choose_device(source.device)
            module = None
            require_array(source)
            if self._needs_logits:
                module = fit_head(source, device, random_state)
        else:
            if not is_trained(model):
                model = model_ = fit_model(model, source)
            module = fitted_module(model, source.device, source.dtype)
            device = self._choose_device(module_device(module))
        network = Network(module, device, source.dtype, sample=source.head(2))
        network.classes = self._classes_of_logits(source)
        logger.info("%s: %s", type(self).__name__, network)
        return network, model_

    def _classes_of_logits(self, source):
        """Return the label of each logit; None where it is not known."""
        if not self._fits_model:
            known = frozen_classes(self._given_model)
            return None if known is None else np.array(np.asarray(known).tolist())
        # Without two classes those of the head are clusters, which have no labels.
        has_classes = source.classes is not None and len(source.classes) > 1
        return source.classes if has_classes else np.empty(0)

    def _check_classes(self, network, classes, has_maps, are_all=True):
        """Raise where labels show that what a network returns cannot be their logits."""
        if self._needs_logits and not self._fits_model:
            check_has_logits(network, classes)
            if are_all and frozen_classes(self._given_model) is None:
                check_is_classifier(network, classes, has_maps)

    def _warn_of_one_logit(self, network, source):
        """Warn where only the shape of its output tells that a network is a classifier."""
        unlabelled = source.classes is None and source.maps is None
        if self._needs_logits and network.one_logit and unlabelled:
            warn(
                "The network returns one number a row or pixel. It is taken for the logit l of two "
                "classes,\nwhose logits are then -l/2 and l/2.\nIf it is a classifier, pass y; for "
                "a regressor use a method on features, such as GMMDetector(net)."
            )

    @contextlib.contextmanager
    def _fitting(self, X, y, **how):
        """Yield an estimator to fit, as `_drafting` does, and the validated rows."""
        with self._drafting() as draft, computing():
            yield draft, draft._source(X, y, **how)

    def _keep(self, source, network, body, model_, **fitted):
        """Set the fitted attributes."""
        for name in [n for n in vars(self) if n.endswith("_") and n not in ROW_ATTRIBUTES]:
            delattr(self, name)
        if model_ is not None:
            fitted["model_"] = model_
        vars(self).update(
            fitted,
            device_=str(network.device),
            _row_shape=source.row_shape,
            _namespace=source.namespace,
            _native_device=source.native_device,
            # What was fitted stays what it is when parameters are set, also in a pickle.
            _fitted_params=self._params_now(),
            _network=network,
            _body=body,
        )

    def __sklearn_is_fitted__(self):
        return hasattr(self, "_body")

    def __getstate__(self):
        # Networks are rebuilt from `model`; what skood fitted travels as numpy, so that a pickle
        # loads without the GPU it was fitted on.
        state = dict(super().__getstate__())
        network = state.pop("_network", None)
        state.pop("_body", None)
        if network is not None:
            state["_saved_network"] = network.get_state(with_weights=self._fitted_head)
        return state

    @property
    def _fitted_head(self):
        """True when the network is a head that ``fit`` made for ``model=None``."""
        return self._as_fitted()._given_model is None

    def __setstate__(self, state):
        # Pickles of earlier versions lack the parameters that have been added since.
        parameters = inspect.signature(type(self)).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        state = {**defaults, **vars(self), **state}
        if "_fitted_params" in state:
            state["_fitted_params"] = {**defaults, **state["_fitted_params"]}
        saved = state.pop("_saved_network", None)
        super().__setstate__(state)
        if saved is not None:
            if not _is_usable(self.device_):
                self.device_ = "cpu"
            with computing():
                self._rebuild(saved)

    def _rebuild(self, saved):
        """Build again what pickling dropped."""
        device, dtype = torch.device(self.device_), getattr(torch, saved["dtype"])
        if self._fitted_head:
            module = saved["weights"] and linear_head(*saved["weights"], device, dtype)
        else:
            model = getattr(self, "model_", self._as_fitted()._given_model)
            module = fitted_module(model, device, dtype)
        self._network = Network(module, device, dtype, state=saved)

    def _params_now(self):
        """Return the parameters, those of estimators among them as they are now."""
        params = self.get_params(deep=False)
        return {n: clone(v) if isinstance(v, NetworkEstimator) else v for n, v in params.items()}

    def _as_fitted(self):
        """Return an estimator with the parameters of ``fit``."""
        return type(self)(**self._fitted_params)


def _is_usable(device):
    """Tell whether a device of this name is here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True
