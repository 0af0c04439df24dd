"""What methods are given of a network: modules that map X to features, layers, logits and more."""

from torch import nn

from skood.network.layers import (
    GradientTaps,
    HeadReader,
    LayerEditor,
    LayerReader,
    LogitsReader,
    OutputReader,
    check_called,
)
from skood.network.modules import Pool, differentiable_copy, private_copy


class NetworkServices:
    """Mixin of `Network`: each module that is returned has a private copy of the network."""

    def features(self, how="avg", channel_axis=None):
        """Return a module that maps X to what enters the last linear layer.

        Parameters
        ----------
        how : {"avg", "max", "token"} or None, default="avg"
            How what a network without a head returns is pooled.
        channel_axis : int, default=None
            The axis of that which holds its channels; see `skood.functional.pool`.
        """
        if self.returns_features:
            return OutputReader(private_copy(self.module), how, channel_axis)
        if self.takes_features:
            body = Pool("avg")
        else:
            body = HeadReader(private_copy(self.module), self.head_name, "avg")
        if self.module is not None:
            # The pass ends in front of the head.
            head = self.head
            body.register_forward_hook(lambda *call: self.largest_logits.note(call[2], head))
        return body

    def logits(self):
        """Return a module that maps X to logits, (n_samples, n_classes), or to maps of them."""
        self.require_logits(maps=True)
        shape = self._logits_shape
        if shape is not None and (len(shape) == 3 or self.returns_features):
            raise self._no_head
        if not self.takes_features:
            return LogitsReader(private_copy(self.module))
        body = nn.Sequential(Pool("avg"), self.head)
        body.register_forward_hook(lambda *call: self.largest_logits.note(call[2]))
        return body

    def pixels(self):
        """Return a module that maps X to what enters the 1×1 convolution that gives the logits."""
        return HeadReader(private_copy(self.module), self.map_head, None)

    def layer(self, name, *, how="avg", with_logits=False, channel_axis=None):
        """Return a module that maps X to the pooled output of a named layer.

        Parameters
        ----------
        name : str
            A submodule.
        how : {"avg", "max", "token"} or None, default="avg"
            See `skood.functional.pool`.
        with_logits : bool, default=False
            Return ``(features, logits)``. Otherwise the pass ends at the layer.
        channel_axis : int, default=None
            The axis of the layer's output that holds its channels; None is to find it.
        """
        self.check_layer(name)
        axis = None if how is None else self._channel_axis(name, channel_axis)
        return LayerReader(private_copy(self.module), name, how, with_logits, axis)

    def _channel_axis(self, name, given):
        """Return the axis that holds the channels of a layer, and note it."""
        if self._found_axes is not None:
            self.channel_axes[name] = self._found_axes.of(name, given)
        return self.channel_axes.get(name)

    def edited(self, name, edit):
        """Return a copy in which the output of a named layer passes through a module.

        None is what enters the 1×1 convolution behind logits that are maps.
        """
        if name is not None:
            self.check_layer(name)
        return LayerEditor(private_copy(self.module), name, self.map_head, edit)

    def taps(self, names, combine, channel_axes):
        """Return a module that maps X to a combination of layers' outputs and KL gradients.

        Parameters
        ----------
        names : list of str or None
            Submodules; None is what enters the last linear layer.
        combine : callable
            Maps (output, gradient) of a layer to (n_samples, n_neurons). See `GradientTaps`.
        channel_axes : list of int or None
            As in `layer`, one a name.
        """
        axes = [None] * len(names)
        for i, (name, given) in enumerate(zip(names, channel_axes, strict=True)):
            if name is not None:
                self.check_layer(name)
                axes[i] = self._channel_axis(name, given)
        head_name = self.head_name if None in names else None
        return GradientTaps(differentiable_copy(self.module), names, head_name, combine, axes)

    def check_layer(self, name):
        """Raise unless the network has a layer or call of this name that gives a tensor."""
        if self.takes_features:
            raise ValueError(
                f"layer={name!r} names a submodule, but there is no network to look in: X holds "
                "features already. Pass the whole trained network as `model`, or name no layer."
            )
        name = check_called(name, self._owner, self.layer_names, self._calls)
        if name in self._not_tensor:
            raise TypeError(
                f"The layer {name!r} of {self._owner} gives a {self._not_tensor[name]}, not a "
                "tensor. Name a layer inside of it, or put it into a module whose forward returns "
                "one tensor."
            )
