"""Which layers stand for a network where none is named: the ends of its stages."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from skood.functional import at_least_float32, pool
from skood.network.layers import first_argument
from skood.network.modules import is_pointwise
from skood.network.outputs import is_same


@dataclass
class Given:
    """What a call of a module gave: size of maps or None for tokens, mean over positions."""

    name: str
    call: int
    size: tuple | None
    shape: tuple
    mean: torch.Tensor
    ends_stage: bool = True


class Stages:
    """Watches a pass for the last module that gives each size of maps.

    Parameters
    ----------
    network : nn.Module
        A copy that is run once.
    axes : ChannelAxes
        Watches the same pass, from before.
    n_rows : int
        Of the pass.
    """

    def __init__(self, network, axes, n_rows):
        self._axes, self._n_rows = axes, n_rows
        self._given, self._calls, self._entered, self._starts = [], Counter(), {}, []
        for name, part in network.named_modules():
            part.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            part.register_forward_hook(partial(self._leave, name))

    def _enter(self, name, part, args, kwargs):
        entering = first_argument(args, kwargs) if args or kwargs else None
        self._starts.append((part, len(self._given), getattr(entering, "shape", None)))
        if isinstance(part, nn.Linear) or is_pointwise(part):
            self._entered[name] = len(self._given), at_least_float32(pool(entering)).clone()

    def _leave(self, name, part, args, output):
        entered, start, came = self._starts.pop()
        while entered is not part:  # It failed, and the network caught that.
            entered, start, came = self._starts.pop()
        call = self._calls[name]
        self._calls[name] += 1
        if not name or not isinstance(output, torch.Tensor) or output.ndim < 3:
            return
        if not output.is_floating_point():
            return
        axis, shape = self._axes.axes.get(f"{name}:{call}"), output.shape
        if len(shape) == 3 and axis is None:
            axis = 2
        if axis is None:
            # Attention, (n, heads, T, T), is no map: what leads to one tells where channels are.
            return
        size = tuple(n for i, n in enumerate(shape) if i not in (0, axis))
        if shape[0] != self._n_rows or torch.Size(size).numel() == 1:
            return
        is_tokens = len(shape) == 3 and axis == 2
        mean = at_least_float32(pool(output, channel_axis=axis))
        given = Given(name, call, None if is_tokens else size, shape, mean)
        self._pass_over(start, came, given.size)
        self._given.append(given)

    def _pass_over(self, start, came, size):
        """Mark the maps of the old size in a block that shrinks them: it begins the next stage."""
        before = [given.size for given in self._given[:start] if given.shape == came]
        if not before or before[-1] is None or size is None:
            return
        old, new = torch.Size(before[-1]).numel(), torch.Size(size).numel()
        inside = [given for given in self._given[start:] if given.size is not None]
        n_positions = [torch.Size(given.size).numel() for given in inside]
        # Sizes in between are the stages of a container.
        if new < old and not any(new < n < old for n in n_positions):
            for given, n in zip(inside, n_positions, strict=True):
                given.ends_stage &= n < old

    def names(self, head_name, map_head, returned=None):
        """Return the layers, in the order in which they are called; None stands for the features.

        Parameters
        ----------
        head_name, map_head : str or None
            The last linear layer, and the 1×1 convolution that gives maps of logits.
        returned : Tensor, default=None
            What the network returns, where that is features.
        """
        features = None if returned is None else at_least_float32(pool(returned))
        n_given, features = self._entered.get(head_name or map_head, (len(self._given), features))
        given = self._given[:n_given]
        if not given or given[-1].size is None:
            # Tokens to the end: the maps before, of patches, are no stage.
            return (None,)
        # The last module of a size is the one around the others.
        last = {}
        for layer in given:
            if layer.size is not None and layer.ends_stage:
                last.pop(layer.size, None)
                last[layer.size] = layer
        layers = [
            layer.name if self._calls[layer.name] == 1 else f"{layer.name}:{layer.call}"
            for layer in last.values()
        ]
        *_, end = last.values()
        if features is not None and not is_same(end.mean, features):
            layers.append(None)
        return tuple(layers)
