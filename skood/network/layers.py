"""Reading, editing and differentiating the layers of a private copy by hooks."""

import contextlib
import difflib
import threading
from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from skood.functional import at_least_float32, kl_to_uniform_grad, pool
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
        """Let ``react(x)`` see what enters a layer, and replace it."""
        self.network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs: ((react(first_argument(args, kwargs)),), {}), with_kwargs=True
        )

    def _on_output(self, layer, react):
        """Let ``react(output)`` see what a layer, or one call of it, gives, and replace it."""
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

    def _read(self, x, name):
        """Run a pass that a hook may end; return what was recorded, and the logits or None."""
        logits = None
        with self._recording(x) as seen:
            with contextlib.suppress(_Reached):
                logits = self.network(x)
            self._require([name])
            return seen[name], logits


def paired(x):
    """Return one row twice, and more rows as they are.

    For gradients: those of one row alone through an eval-mode BatchNorm2d are wrong on the CPU
    where its output is read in another order, as after ``flatten(2).transpose(1, 2)`` (torch 2.13).
    """
    return tree_map(lambda part: part.repeat_interleave(2, 0) if len(part) == 1 else part, x)


def first_argument(args, kwargs):
    """Return what a layer was called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


class HeadReader(_Hooked):
    """Map X to what enters the last linear layer, where the pass ends.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    name : str
        The last linear layer.
    how : {"avg"} or None
        Whether the maps that enter a 1×1 convolution are averaged.
    """

    def __init__(self, network, name, how):
        super().__init__(network)
        self.name, self.how = name, how
        self._on_input(name, self._hook)

    def _hook(self, features):
        self._end(self.name, features)
        return features

    def forward(self, x):
        """Return features."""
        features, _ = self._read(x, self.name)
        return at_least_float32(pool(features, self.how))


class OutputReader(nn.Module):
    """Map X to what a network without a head returns, pooled.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    how : {"avg", "max", "token"} or None
        See `skood.functional.pool`.
    channel_axis : int or None
        See there. What is padding is in ``x["attention_mask"]``.
    """

    def __init__(self, network, how, channel_axis):
        super().__init__()
        self.network, self.how, self.channel_axis = network, how, channel_axis

    def forward(self, x):
        """Return features."""
        mask = x.get("attention_mask") if isinstance(x, dict) else None
        output = self.network(x)
        return at_least_float32(pool(output, self.how, channel_axis=self.channel_axis, mask=mask))


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


class LayerReader(_Hooked):
    """Map X to the pooled output of a layer, and to the logits if asked.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    name : str
        The layer, or one call of it.
    how : {"avg", "max", "token"} or None
        See `skood.functional.pool`.
    with_logits : bool
        Otherwise the pass ends at the layer.
    channel_axis : int or None
        See `skood.functional.pool`. What is padding is in ``x["attention_mask"]``.
    """

    def __init__(self, network, name, how, with_logits, channel_axis):
        super().__init__(network)
        self.name, self.how, self.with_logits = name, how, with_logits
        self.channel_axis = channel_axis
        self._on_output(name, self._hook)

    def _hook(self, output):
        features = at_least_float32(
            pool(output, self.how, channel_axis=self.channel_axis, mask=self._calls.mask)
        )
        if not self.with_logits:
            return self._end(self.name, features)
        # An in-place operation may follow and overwrite what was not reduced.
        self._record(self.name, features.clone() if features is output else features)

    def forward(self, x):
        """Return features, or ``(features, logits)``."""
        features, logits = self._read(x, self.name)
        return (features, at_least_float32(logits)) if self.with_logits else features


class LayerEditor(_Hooked):
    """A network in which the output of a layer passes through another module first.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    name : str or None
        The layer, or one call of it; None is what enters the head.
    head_name : str or None
        The last linear layer.
    edit : nn.Module
        Maps the layer's output to a new tensor of the same shape.
    """

    def __init__(self, network, name, head_name, edit):
        super().__init__(network)
        if name is None:
            self._on_input(head_name, edit)
        else:
            self._on_output(name, edit)

    def forward(self, x):
        """Map X to logits."""
        with self._recording(x):
            return at_least_float32(self.network(x))


class GradientTaps(_Hooked):
    """Outputs of layers and gradients of KL(u‖p) there, from one forward and one backward pass.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    names : list of str or None
        The layers; None is what enters the last linear layer.
    head_name : str
        The last linear layer.
    combine : callable
        Maps (output, gradient) of a layer to a tensor of shape (n_samples, n_neurons); it is told
        `channel_axis` and `mask`, as `skood.functional.pool` is.
    channel_axes : list of int or None
        Those of the layers.
    """

    not_exportable = "it differentiates the network. Without `layers` NACDetector does not."

    def __init__(self, network, names, head_name, combine, channel_axes):
        super().__init__(network)
        self.names, self.combine, self.channel_axes = names, combine, channel_axes
        for name in names:
            if name is None:
                self._on_input(head_name, partial(self._tap, None))
            else:
                self._on_output(name, partial(self._tap, name))

    def _tap(self, name, output):
        if not output.requires_grad:
            # The graph starts at the first tapped layer: nothing before it is kept.
            output = output.detach().requires_grad_()
        # An in-place operation that follows would replace both the value and its gradient; so we
        # hold the edge and hand on a clone.
        self._record(name, (output, torch.autograd.graph.get_gradient_edge(output)))
        return output.clone()

    def forward(self, x):
        """Return the combined tensor of each layer, in the order of `names`."""
        n_samples = len(tree_leaves(x)[0])
        x = paired(x)
        with torch.enable_grad(), self._recording(x) as seen:
            mask, logits = self._calls.mask, self.network(x)
            self._require(self.names)
            outputs, edges = zip(*(seen[name] for name in self.names), strict=True)
            grad = kl_to_uniform_grad(at_least_float32(logits.detach())).to(logits.dtype)
            grads = [None] * len(edges)
            if logits.requires_grad:
                grads = torch.autograd.grad(logits, edges, grad, allow_unused=True)
        for name, grad in zip(self.names, grads, strict=True):
            if grad is None:
                raise ValueError(f"The logits do not depend on the layer {name!r}: name another.")
        with torch.no_grad():
            return tuple(
                self.combine(
                    at_least_float32(output.detach()),
                    at_least_float32(grad),
                    channel_axis=channel_axis,
                    mask=mask,
                )[:n_samples]
                for output, grad, channel_axis in zip(
                    outputs, grads, self.channel_axes, strict=True
                )
            )
