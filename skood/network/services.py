"""What methods are given of a network: modules that map X to features, layers, logits and more."""

from torch import nn

from skood.data.arrays import move
from skood.network.cutting import ReadAndKeep, Replay, traced_cut
from skood.network.gradients import FEATURES, InputGradient, LayerGradients, Moved
from skood.network.layers import (
    LayerReader,
    LayersReader,
    LayerTransformer,
    LogitsReader,
    check_called,
    reduced,
)
from skood.network.modules import Pool, as_linear, differentiable_copy, private_copy
from skood.network.passes import DropoutPasses, HeadPasses, dropout_layers


class NetworkServices:
    """Mixin of `Network`: modules for methods, each with a private copy of the network.

    They may be called from several threads at once, hold no more than a batch needs, and end a
    pass at the last thing that is needed of it.
    """

    def features(self, how="avg", channel_axis=None):
        """Return a module that maps X to what enters the last linear layer.

        Where logits are maps these are maps too, what enters the 1×1 convolution that gives them. A
        scorer of rows (n_samples, n_features) then is one of pixels.

        Parameters
        ----------
        how : {"avg", "max", "token"} or None, default="avg"
            How what a network without a head returns is pooled.
        channel_axis : int, default=None
            The axis of that which holds its channels; see `skood.functional.pool`.
        """
        if self.returns_features:
            return LayerReader(private_copy(self.module), None, how, channel_axis)
        if self.map_head is not None:
            body = self.pixels()
            body.gives_maps = "features"
            return body
        if self.takes_features:
            body = Pool("avg")
        else:
            body = LayerReader(private_copy(self.module), None, "avg", None, self.head_name)
        if self.module is not None:
            # The pass ends in front of the head.
            head = self.head
            body.register_forward_hook(lambda *call: self.largest_logits.note(call[2], head))
        return body

    def pixels(self):
        """Return a module that maps X to what enters the 1×1 convolution that gives the logits."""
        return LayerReader(private_copy(self.module), None, None, None, self.map_head)

    def logits(self):
        """Return a module that maps X to logits, (n_samples, n_classes), or to maps of them."""
        self.require_logits(maps=True)
        shape = self._logits_shape
        if shape is not None and (len(shape) == 3 or self.returns_features):
            raise self._no_head
        if not self.takes_features:
            body = LogitsReader(private_copy(self.module))
            body.gives_maps = None if shape is None else "logits"
            return body
        body = nn.Sequential(Pool("avg"), self.head)
        body.register_forward_hook(lambda *call: self.largest_logits.note(call[2]))
        return body

    def layer(self, name, *, how="avg", with_logits=False, channel_axis=None):
        """Return a module that maps X to the pooled output of a named layer.

        Parameters
        ----------
        name : str
            A submodule.
        how : {"avg", "max", "token"}, callable or None, default="avg"
            See `layers`.
        with_logits : bool, default=False
            Return ``(features, logits)``. Otherwise the pass ends at the layer.
        channel_axis : int, default=None
            The axis of the layer's output that holds its channels; None is to find it.
        """
        (axis,) = self._channel_axes([name], [channel_axis], how)
        return LayerReader(private_copy(self.module), name, how, axis, with_logits=with_logits)

    def layers(self, names, how="avg", *, with_logits=False, channel_axes=None):
        """Return a module that maps X to a tuple of what is kept of several layers, in one pass.

        Parameters
        ----------
        names : sequence of str or None
            Submodules; None is what enters the last linear layer.
        how : {"avg", "max", "token"}, callable or None, default="avg"
            What is kept of each. A string: see `skood.functional.pool`. A callable maps an output,
            in float32 at least, to a tensor (n_samples, ...), and is told `channel_axis` and
            `mask` as `pool` is. It is called when the layer is: its output is not held. None: the
            output itself.
        with_logits : bool, default=False
            Give the logits as the last entry. Otherwise the pass ends at the last of the layers.
        channel_axes : sequence of int or None, default=None
            As in `layer`, one a name.
        """
        if with_logits:
            self.require_logits(maps=True)
        axes = self._channel_axes(names, channel_axes, how)
        if self.takes_features:
            body = KeptOfFeatures(len(names), how, self.head if with_logits else None)
            if with_logits:
                body.register_forward_hook(lambda *call: self.largest_logits.note(call[2][-1]))
            return body
        head_name = self._place_of_features(names)
        return LayersReader(private_copy(self.module), names, how, axes, head_name, with_logits)

    def _place_of_features(self, names):
        """Return the layer that features enter, where a name is None; "" where they are returned.

        Of maps of logits it is the 1×1 convolution that gives them.
        """
        if None not in names or self.returns_features:
            return ""
        return self.head_name if self.map_head is None else self.map_head

    def _channel_axes(self, names, given=None, how="avg"):
        """Return the axes that hold the channels of layers, and note them."""
        given = [None] * len(names) if given is None else given
        axes = []
        for name, axis in zip(names, given, strict=True):
            if name is not None:
                self.check_layer(name)
                axis = None if how is None else self.channel_axis(name, axis)
            axes.append(axis)
        return axes

    def channel_axis(self, name, given=None):
        """Return the axis that holds the channels of a layer, and note it."""
        if self._found_axes is not None:
            self.channel_axes[name] = self._found_axes.of(name, given)
        return self.channel_axes.get(name)

    def stages(self):
        """Return the names of the layers that stand for the network where a method names none.

        For each size of maps the last module that gives it, but for those at the beginning of a
        block that shrinks them, such as ``("layer1", "layer2", "layer3", "layer4")``, and None
        for the features unless these are the mean of the last one. ``(None,)`` where there are no
        maps, as for vectors, where tokens follow them, as in a vision transformer, and where
        there is no network.
        """
        return self._stages

    def norms(self):
        """Return the names of the normalisation layers, or of their calls, in their order."""
        return self._norms

    def of_sample(self, body):
        """Return what a module gives for a few rows of X; None where a file brought the network."""
        if self._sample is None:
            return None
        return body(move(self._sample, self.device, self.input_dtype, copy=True))

    def with_layer_transform(self, name, transform):
        """Return a module that maps X to logits, with a layer's output replaced on the way.

        Parameters
        ----------
        name : str or None
            A submodule. None is what enters the 1×1 convolution behind logits that are maps.
        transform : nn.Module
            Maps the layer's output to what takes its place, of the same shape.
        """
        if name is not None:
            self.check_layer(name)
        return LayerTransformer(private_copy(self.module), name, self.map_head, transform)

    def cut(self, name=None):
        """Cut the network in two at a layer, for values that are learned inside of it.

        Parameters
        ----------
        name : str, default=None
            The submodule after which to cut. None: in front of the head.

        Returns
        -------
        body : nn.Module
            Maps X to the layer's output, or to a tuple of it and what else the rest takes.
        rest : nn.Module
            ``rest(activations, *others)`` gives logits.

        Notes
        -----
        Where the network cannot be traced, or what is computed before the layer is used after it,
        the others are X: `rest` runs the whole network with the activations in their place.
        """
        if name is None and self.map_head is not None and not self.map_head_is_last:
            body, rest = (private_copy(self.module) for _ in range(2))
            head = self.map_head
            return ReadAndKeep(body, None, head), Replay(rest, None, self.input_names, head)
        if name is None:
            if self.map_head_is_last:
                return self.pixels(), PixelHead(self.head)
            return self.features(), self.head
        self.check_layer(name)
        sample = self._sample
        if sample is not None:
            sample = move(sample, self.device, self.input_dtype, copy=True)
        parts = None
        if self._cuts.get(name, True):
            parts = traced_cut(self.module, name, sample, self.dtype)
        self._cuts[name] = parts is not None
        if parts is None:
            body, rest = (private_copy(self.module) for _ in range(2))
            return ReadAndKeep(body, name), Replay(rest, name, self.input_names)
        parts[1].register_forward_hook(lambda *call: self.largest_logits.note(call[2]))
        return parts

    def gradients(self, names, seed, combine, *, of=None, channel_axes=None):
        """Return a module that maps X to a combination of layers' outputs and gradients there.

        Parameters
        ----------
        names : list of str or None
            Submodules; None is what enters the last linear layer.
        seed : callable or None
            Maps the logits to the gradient of what is differentiated with respect to them. None:
            their sum is.
        combine : callable
            Maps (output, gradient) of a layer to (n_samples, ...). See `LayerGradients`.
        of : str or FEATURES, default=None
            The layer whose output takes the place of the logits; the pass ends there. FEATURES:
            what enters the last linear layer, which is then given as the last entry.
        channel_axes : sequence of int or None, default=None
            As in `layer`, one a name.
        """
        if of is None:
            self.require_logits(maps=True)
        elif of is not FEATURES:
            self.check_layer(of)
        axes = self._channel_axes(names, channel_axes)
        head_name = self.head_name if None in names or of is FEATURES else None
        twin = differentiable_copy(self.module)
        body = LayerGradients(twin, names, head_name, seed, combine, axes, of)
        if of is FEATURES:
            # The pass ends in front of the head.
            head = self.head
            body.register_forward_hook(lambda *call: self.largest_logits.note(call[2][-1], head))
        return body

    def input_gradient(self, function, body=None):
        """Return a module that maps X to the gradient of each row's score with respect to the row.

        Parameters
        ----------
        function : callable
            Maps logits, or what the body gives, to scores.
        body : nn.Module, default=None
            One of the modules that are made here. None: that of `logits`.
        """
        if self.module is None:
            raise ValueError(
                "Moving inputs needs the gradient of a network, and there is none: X holds "
                "features.\nPass the whole trained network as `model`."
            )
        if self.takes_named or not self.input_dtype.is_floating_point:
            what = "a dict of arrays" if self.takes_named else "whole numbers, such as tokens"
            raise ValueError(
                f"{self._owner} takes {what}, which cannot be moved by a small step.\nInputs that "
                "are to be moved are one array of floats, such as images.\nTake a method that "
                "moves none: EnergyDetector, KNNDetector, LayersDetector."
            )
        return InputGradient(self.logits() if body is None else body, function)

    def moved(self, function, step, *, n_inputs=None, body=None):
        """Return a module that moves X so that its scores rise: x + step · sign(gradient).

        Parameters
        ----------
        function, body
            See `input_gradient`.
        step : float or Tensor
            See `Moved`; negative to let them fall.
        n_inputs : int or (float, "smallest"), default=None
            How many entries of a row are moved; see there.
        """
        return Moved(self.input_gradient(function, body), step, n_inputs)

    def passes(self, n_passes, seed=0, rate=None):
        """Cut the network where passes with dropout part.

        The masks are made of the seed, one a pass, and shared by all rows: they depend neither on
        the batch nor on the device.

        Parameters
        ----------
        n_passes : int
            The number of passes.
        seed : int, default=0
            Of the masks.
        rate : float, default=None
            Drop this share of what enters the head instead. None: by the network's own
            ``nn.Dropout`` layers, at their rates.

        Returns
        -------
        body : nn.Module
            Maps X to what the passes share, a tensor or a tuple: what enters the head, or X itself.
        passes : nn.Module
            Maps that to logits (n_samples, n_passes, n_classes, ...). ``each(seed, *shared)`` gives
            them pass by pass.
        """
        self.require_logits(maps=True)
        if rate is not None:
            body, rest = self.cut()
            head = self.module.get_submodule(self.map_head or self.head_name)
            width = as_linear(head).in_features
            return body, HeadPasses(rest, width, n_passes, seed, rate)
        if self.takes_features or not dropout_layers(self.module):
            what = "A linear layer" if self.takes_features else self._owner
            raise ValueError(
                f"{what} has no dropout layer, such as nn.Dropout, that could be switched on; "
                "dropout by a function cannot be found.\nGive `rate`, the share of what enters "
                "the last linear layer that a pass drops."
            )
        return nn.Identity(), DropoutPasses(private_copy(self.module), n_passes, seed)

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


class KeptOfFeatures(nn.Module):
    """What `LayersReader` is where X holds features."""

    def __init__(self, n_layers, how, head):
        super().__init__()
        self.n_layers, self.how, self.head = n_layers, how, head

    def forward(self, x):
        """Return a tuple of what is kept of the features, and logits if there is a head."""
        kept = (reduced(x, self.how, None, None),) * self.n_layers
        return kept if self.head is None else (*kept, self.head(Pool("avg")(x)))


class PixelHead(nn.Module):
    """A linear layer on the channels of maps (n_samples, n_channels, ...)."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, maps):
        """Return maps of logits."""
        return self.head(maps.movedim(1, -1)).movedim(-1, 1)
