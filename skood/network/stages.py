"""Which layers stand for a network where none is named: the ends of its stages."""

from collections import Counter
from functools import partial

import torch
from torch import nn

from skood.functional import at_least_float32, pool
from skood.network.layers import first_argument
from skood.network.modules import is_pointwise
from skood.network.outputs import is_same


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
        # (name, number of the call, size of maps or None for tokens, their mean over positions).
        self._given, self._calls, self._entered = [], Counter(), {}
        for name, part in network.named_modules():
            if isinstance(part, nn.Linear) or is_pointwise(part):
                part.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            part.register_forward_hook(partial(self._leave, name))

    def _enter(self, name, part, args, kwargs):
        features = at_least_float32(pool(first_argument(args, kwargs))).clone()
        self._entered[name] = len(self._given), features

    def _leave(self, name, part, args, output):
        call = self._calls[name]
        self._calls[name] += 1
        if not name or not isinstance(output, torch.Tensor) or output.ndim < 3:
            return
        if not output.is_floating_point():
            return
        axis, shape = self._axes.axes.get(f"{name}:{call}"), output.shape
        if len(shape) == 3 and axis is None:
            axis = 2
        axis = axis or 1
        size = tuple(n for i, n in enumerate(shape) if i not in (0, axis))
        if shape[0] != self._n_rows or torch.Size(size).numel() == 1:
            return
        is_tokens = len(shape) == 3 and axis == 2
        mean = at_least_float32(pool(output, channel_axis=axis))
        self._given.append((name, call, None if is_tokens else size, mean))

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
        if not given or given[-1][2] is None:
            # Tokens to the end: the maps before, of patches, are no stage.
            return (None,)
        # The last module of a size is the one around the others.
        last = {}
        for name, call, size, mean in given:
            if size is not None:
                last.pop(size, None)
                last[size] = name, call, mean
        layers = [
            name if self._calls[name] == 1 else f"{name}:{call}" for name, call, _ in last.values()
        ]
        *_, (_, _, mean) = last.values()
        if features is not None and not is_same(mean, features):
            layers.append(None)
        return tuple(layers)
