"""Cutting the private copy of a network at any layer, so that both parts can be run in turn."""

import torch
from torch import nn
from torch.utils._pytree import tree_map

from skood.functional import at_least_float32
from skood.network.layers import LayerReader, _Hooked
from skood.network.modules import private_copy
from skood.network.splitting import split

# Another order of the same operations, as in the fast path of nn.MultiheadAttention, rounds anew.
RTOL = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class TracedPart(nn.Module):
    """A part of a network, which takes what the network computes in.

    Parameters
    ----------
    part : nn.Module
        The body, or the rest.
    dtype : torch.dtype, default=None
        What the rest takes.
    """

    def __init__(self, part, dtype=None):
        super().__init__()
        self.part, self.dtype = part, dtype

    def forward(self, x):
        """Return activations, or logits."""
        return at_least_float32(self.part(x if self.dtype is None else x.to(self.dtype)))


def traced_cut(module, layer, sample, dtype):
    """Cut a network in two by its traced graph; None where that does not give what it gives.

    Parameters
    ----------
    module : nn.Module
        A private copy.
    layer : str
        The layer after which to cut.
    sample : Tensor or dict of Tensor, or None
        A few rows, on which both are compared.
    dtype : torch.dtype
        What the network computes in.
    """
    try:
        parts = split(module, layer)
        body, rest = TracedPart(parts[0]), TracedPart(parts[1], dtype)
        if sample is not None:
            expected = at_least_float32(private_copy(module)(tree_map(torch.clone, sample)))
            found = rest(body(tree_map(torch.clone, sample)))
            scale, rtol = expected.abs().max(), RTOL.get(dtype, 1e-4)
            if found.shape != expected.shape or (found - expected).abs().max() > rtol * scale:
                return None
    except Exception:  # Whatever a forward raises when it meets what is not a tensor.
        return None
    return body, rest


class ReadAndKeep(nn.Module):
    """Map X to (output of a layer, X); of a dict the tensors, in the order of their names."""

    def __init__(self, network, layer, head_name=""):
        super().__init__()
        self.reader = LayerReader(network, layer, None, None, head_name)

    def forward(self, x):
        """Return a tuple of tensors."""
        # A network may write to what it is given.
        activations = self.reader(tree_map(torch.clone, x))
        return activations, *([x[name] for name in sorted(x)] if isinstance(x, dict) else [x])


class Replay(_Hooked):
    """Map (activations, X) to the logits of a pass in which they stand for a layer's output.

    Parameters
    ----------
    network : nn.Module
        A private copy, for this alone.
    layer : str or None
        The layer; None is what enters the head.
    input_names : list of str or None
        The names of the tensors of X in order, where it is a dict.
    head_name : str, default=None
        The head, where it is asked for.
    """

    def __init__(self, network, layer, input_names, head_name=None):
        super().__init__(network)
        self.input_names = input_names
        if layer is None:
            self._on_input(head_name, self._given)
        else:
            self._on_output(layer, self._given)

    def _given(self, output):
        # A clone, as what follows may write to it.
        return self._calls.given.to(output.dtype).clone()

    def forward(self, activations, *x):
        """Return logits."""
        x = [part.clone() for part in x]
        x = x[0] if self.input_names is None else dict(zip(self.input_names, x, strict=True))
        with self._recording(x):
            self._calls.given = activations
            try:
                return at_least_float32(self.network(x))
            finally:
                del self._calls.given
