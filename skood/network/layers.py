"""Reading, editing and differentiating the layers of a private copy by hooks."""

import contextlib
import difflib
import threading
from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_map

from skood.functional import at_least_float32, pool
from skood.network.modules import split_call


def closest_names(name, names):
    """Return the end of an error message that lists the names closest to a wrong one."""
    names = [n for n in names if n]
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    shown = ", ".join(repr(n) for n in names[:20])
    return f"There are: {shown}{', ...' if len(names) > 20 else ''}."


def check_called(layer, owner, names, calls):
    """Raise unless a pass gives one output of a layer, or of one call of it such as "relu:1".

    Parameters
    ----------
    layer : str
        The layer.
    owner : str
        What the network is called.
    names : list of str
        Its submodules.
    calls : Counter or None
        How often a pass calls each; None where that is not known.

    Returns
    -------
    name : str
        The submodule.
    """
    name, call = split_call(layer, names)
    if name not in names:
        raise ValueError(f"{owner} has no layer {name!r}. {closest_names(name, names)}")
    if calls is None:
        return name
    if calls[name] == 0:
        inside = [n for n in names if n.startswith(f"{name}.") and calls[n] == 1]
        raise ValueError(
            f"The forward pass of {owner} never calls the layer {name!r}; a container such as "
            f"nn.ModuleList has no forward of its own. Name a layer that is called. "
            f"{closest_names(name, inside or [n for n in names if calls[n] == 1])}"
        )
    if calls[name] > 1 if call is None else call >= calls[name]:
        numbered = ", ".join(repr(f"{name}:{i}") for i in range(min(calls[name], 5)))
        raise ValueError(
            f"The forward pass of {owner} calls the layer {name!r} {calls[name]} times, so "
            f"{layer!r} is not one activation. Name the call: {numbered}."
        )
    return name


class _Reached(BaseException):
    """Ends a forward pass at the layer that was asked for."""


class _Hooked(nn.Module):
    """A network with hooks; what they see belongs to the thread that runs the pass."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self._calls = threading.local()

    @contextlib.contextmanager
    def _recording(self, x):
        self._calls.seen, self._calls.counts = {}, Counter()
        self._calls.mask = x.get("attention_mask") if isinstance(x, dict) else None
        try:
            yield self._calls.seen
        finally:
            del self._calls.seen, self._calls.counts, self._calls.mask

    def _on_input(self, name, react):
        """Let ``react(x)`` see what enters a layer, and replace it unless it gives None."""

        def hook(_, args, kwargs):
            new = react(first_argument(args, kwargs))
            return None if new is None else ((new,), {})

        self.network.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    def _on_output(self, layer, react):
        """Let ``react(output)`` see what a layer, or one call of it, gives, and replace it.

        A layer "" is the network itself.
        """
        name, call = split_call(layer, dict(self.network.named_modules()))

        def hook(_, args, output):
            count = self._calls.counts[layer]
            self._calls.counts[layer] += 1
            return react(output) if call in (None, count) else None

        self.network.get_submodule(name).register_forward_hook(hook)

    def _record(self, name, value):
        """Keep what a layer gave; which layers are called may depend on the data."""
        if name in self._calls.seen:
            raise ValueError(f"The layer {name!r} was called twice in a pass. Name another layer.")
        self._calls.seen[name] = value

    def _end(self, name, value):
        """Keep what a layer gave, and end the pass."""
        if torch.compiler.is_exporting():
            # torch.export loses track of an ended pass. What follows it leaves out of the graph,
            # but for what overwrites the value.
            self._record(name, value.clone())
        else:
            self._record(name, value)
            raise _Reached

    def _require(self, names):
        for name in names:
            if name not in self._calls.seen:
                raise ValueError(
                    f"The layer {name!r} was not called in a pass. Name another layer."
                )


def paired(x):
    """Return one row twice, and more rows as they are.

    For gradients: those of one row alone through an eval-mode BatchNorm2d are wrong on the CPU
    where its output is read in another order, as after ``flatten(2).transpose(1, 2)`` (torch 2.13).
    """
    return tree_map(lambda part: part.repeat_interleave(2, 0) if len(part) == 1 else part, x)


def first_argument(args, kwargs):
    """Return what a layer was called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


class LogitsReader(nn.Module):
    """Map X to logits, in float32 at least.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        """Return logits."""
        return at_least_float32(self.network(x))


class LayersReader(_Hooked):
    """Map X to what is kept of the outputs of several layers, and to the logits if asked.

    Outputs are reduced where they are made, so that no more of them is held than what is kept. The
    pass ends at the last layer that was asked for, unless the logits are wanted.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    names : sequence of str or None
        The layers, or single calls of them; None is what enters the head.
    how : {"avg", "max", "sum", "token"}, callable or None
        See `skood.functional.pool`. A callable maps an output, in float32 at least, to a tensor
        (n_samples, ...); it is told `channel_axis` and `mask`, as `pool` is.
    channel_axes : sequence of int or None
        Those of the layers. What is padding is in ``x["attention_mask"]``.
    head_name : str, default=""
        The last linear layer; "" where the network has none, so that None is what it returns.
    with_logits : bool, default=False
        Let the pass go on to the logits.
    """

    def __init__(self, network, names, how, channel_axes, head_name="", with_logits=False):
        super().__init__(network)
        self.names, self.with_logits = tuple(names), with_logits
        for name, axis in dict(zip(names, channel_axes, strict=True)).items():
            react = partial(self._keep, name, partial(reduced, how=how, channel_axis=axis))
            if name is None and head_name:
                self._on_input(head_name, react)
            else:
                self._on_output(name or "", react)

    def _keep(self, name, reduce, output):
        kept = reduce(output, mask=self._calls.mask)
        if not self.with_logits and self._calls.seen.keys() | {name} == set(self.names):
            self._end(name, kept)
        else:
            # An in-place operation may follow, and a part of an output would hold all of it.
            shares = kept is output or kept._base is not None
            self._record(name, kept.clone() if shares else kept)
            # So that it changes nothing that the way back needs.
            return output.clone() if kept.requires_grad else None
        return None

    def forward(self, x):
        """Return a tuple of what is kept of each layer, in the order of `names`, and logits."""
        logits = None
        with self._recording(x) as seen:
            with contextlib.suppress(_Reached):
                logits = self.network(x)
            self._require(self.names)
            kept = tuple(seen[name] for name in self.names)
        return (*kept, at_least_float32(logits)) if self.with_logits else kept


def reduced(output, how, channel_axis, mask):
    """Return what is kept of the output of a layer, in float32 at least."""
    if callable(how):
        return how(at_least_float32(output), channel_axis=channel_axis, mask=mask)
    return at_least_float32(pool(output, how, channel_axis=channel_axis, mask=mask))


class LayerReader(LayersReader):
    """Map X to what is kept of the output of one layer, and to the logits if asked."""

    def __init__(self, network, name, how, channel_axis=None, head_name="", with_logits=False):
        super().__init__(network, [name], how, [channel_axis], head_name, with_logits)

    def forward(self, x):
        """Return a tensor, or ``(tensor, logits)``."""
        kept, *logits = super().forward(x)
        return (kept, *logits) if logits else kept


class LayerTransformer(_Hooked):
    """A network in which a module transforms the output of a layer.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    name : str or None
        The layer, or one call of it; None is what enters the head.
    head_name : str or None
        The last linear layer.
    transform : nn.Module
        Maps the layer's output to a new tensor of the same shape.
    """

    def __init__(self, network, name, head_name, transform):
        super().__init__(network)
        if name is None:
            self._on_input(head_name, transform)
        else:
            self._on_output(name, transform)

    def forward(self, x):
        """Map X to logits."""
        with self._recording(x):
            return at_least_float32(self.network(x))
