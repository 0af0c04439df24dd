"""Which axis of the output of a layer holds its channels."""

from collections import Counter
from functools import partial
from numbers import Integral

import torch
from torch import nn

from skood._warnings import warn

CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.Upsample,
    nn.PixelShuffle,
)
CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
OVER_LAST_AXES = (nn.LayerNorm, nn.RMSNorm)


class ChannelAxes:
    """Watches a pass: the layers of torch tell their axis, others take over what went before.

    Attributes
    ----------
    shapes : dict of tuple
        What each layer, and each call of it such as "relu:1", gives; without vectors, whose
        channels need no telling.
    axes : dict of int or None
        The axes of the channels, counted from the front; None where no layer tells.
    """

    def __init__(self, network):
        self.shapes, self.axes = {}, {}
        self._calls, self._told, self._starts = Counter(), [], []
        for name, part in network.named_modules():
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(partial(self._leave, name))

    def _enter(self, part, args):
        self._starts.append((part, len(self._told)))

    def _leave(self, name, part, args, output):
        entered, start = self._starts.pop()
        while entered is not part:  # It failed, and the network caught that.
            entered, start = self._starts.pop()
        call = f"{name}:{self._calls[name]}"
        self._calls[name] += 1
        # Recurrent layers and attention give their states and weights too.
        output = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(output, torch.Tensor) or output.ndim < 3:
            return
        shape = tuple(output.shape)
        own = own_axis(part, shape)
        axis = inherited_axis(shape, self._told, start) if own is None else own
        self.shapes[name] = self.shapes[call] = shape
        self.axes[name] = self.axes[call] = axis
        self._told.append((shape, axis))

    def of(self, layer, given=None):
        """Return the axis of a layer, `given` or told; a guess with a warning where neither is.

        Parameters
        ----------
        layer : str
            A layer, or one call of it.
        given : int, default=None
            What the user says.
        """
        shape = self.shapes.get(layer)
        if shape is None:
            return given
        if given is not None:
            inside = isinstance(given, Integral) and -len(shape) <= given < len(shape)
            if not inside or given % len(shape) == 0:
                raise ValueError(
                    f"channel_axis={given!r} is no axis of channels of the layer {layer!r}, which "
                    f"gives shape {shape} for two rows. Name one from 1 to {len(shape) - 1}, or -1."
                )
            return int(given)
        axis = self.axes[layer]
        if axis is None:
            axis = 2 if len(shape) == 3 else 1
            warn(
                f"It was guessed that axis {axis} of the layer {layer!r}, which gives shape "
                f"{shape} for two rows, holds the channels: no layer of torch before it tells. "
                f"Say so by channel_axis={axis}, or name another axis."
            )
        return axis


def own_axis(part, shape):
    """Return the axis of the channels that a layer of torch gives; None where it does not tell."""
    if isinstance(part, CHANNELS_FIRST):
        return 1
    last = len(shape) - 1
    if isinstance(part, CHANNELS_LAST):
        return last
    if isinstance(part, OVER_LAST_AXES) and len(part.normalized_shape) == 1:
        width = part.normalized_shape[0]
        if type(part) in OVER_LAST_AXES or shape[1] != width:
            return last
        # Derived classes such as torchvision's LayerNorm2d turn the axes around it.
        return 1 if shape[last] != width else None
    return None


def inherited_axis(shape, told_before, start):
    """Return the axis of channels in a shape by what layers told before it; None if they do not.

    Parameters
    ----------
    shape : tuple of int
        What a layer gives.
    told_before : list of (tuple of int, int or None)
        Shapes and axes up to its end.
    start : int
        How many there were when it was called.
    """
    known = [told for told in told_before if told[1] is not None]
    if not known or told_before[-1] == (shape, None):
        return None
    (told, axis), last = known[-1], len(shape) - 1
    if shape == told:
        # A block of both kinds, such as ConvNeXt's, turns its axes, which may be of one size.
        kinds = {of == 1 for _, of in told_before[start:] if of is not None}
        return None if len(kinds) == 2 and shape[1] == shape[last] else axis
    width = told[axis]
    if len(shape) == len(told):
        joined = shape == (*told[:axis], shape[axis], *told[axis + 1 :])
        pooled = shape[axis] == width and sorted(shape) != sorted(told)
        if joined or pooled:
            return axis
    found = {place for place in (1, last) if shape[place] == width}
    return found.pop() if len(found) == 1 else None
