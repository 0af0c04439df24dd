"""A network that skood may cut, without touching the user's."""

import math

import numpy as np
import torch
from torch import nn

from skood._compat import move_to_numpy
from skood.data.arrays import NETWORK_BATCH_ROWS, feature_batch_rows
from skood.network.finding import FindsHead
from skood.network.modules import (
    GiveLogits,
    LargestLogits,
    TakeEntry,
    Weights,
    as_linear,
    private_copy,
    spread_named,
    two_sided,
    unwrap,
)
from skood.network.outputs import (
    describe_value,
)
from skood.network.services import NetworkServices

# Maps of logits of 19 classes at 1024 × 2048 take 160 MB an image, and what computes them more.
MAPS_BYTES = 2**28


class Network(FindsHead, NetworkServices):
    """A network that skood may cut: a private copy of the user's.

    Parameters
    ----------
    module : nn.Module or None
        Maps a batch of X to logits. None: X holds the features, and no logits are needed.
    device : torch.device
        Where it runs.
    dtype : torch.dtype
        The dtype of X, taken where the module has no floating parameter of its own.
    sample : Tensor or dict of Tensor, default=None
        A few rows of X, on which the last linear layer is looked for.
    state : dict, default=None
        What `get_state` gave, instead of a sample.
    """

    def __init__(self, module, device, dtype, *, sample=None, state=None):
        self._original = module = None if module is None else unwrap(module)
        module = None if module is None else as_linear(module)
        self.module = None if module is None else private_copy(module, device)
        self.device = torch.device(device)
        self._head_name, self._no_head, self._no_logits = None, None, None
        # The 1×1 convolution behind logits that are maps, whether it gives the very logits, and
        # whether these are resized at most.
        self.map_head, self.map_head_is_last, self.map_head_is_sure = None, False, False
        self.logits_key, self.takes_named, self._changed = None, False, False
        # What it returns is features: there is no head.
        self.returns_features = False
        # One logit a row, l, stands for (-l/2, l/2): "column" where it has an axis, "squeezed"
        # where it has none.
        self.one_logit, self.n_logits, self.returns_shape_of_X = None, None, False
        # The label of each logit, where it is known; some may have none.
        self.classes = None
        self.largest_logits = LargestLogits()
        self._calls, self._not_tensor, self._logits_shape = None, {}, None
        # Of the layers that were asked for; how a pass found them is gone when it is unpickled.
        self.channel_axes, self._found_axes = {}, None
        # What `stages` and `norms` give; for each layer after which `cut` cuts, whether it was
        # traced.
        self._stages, self._norms, self._cuts = (None,), (), {}
        # A few rows, to see that a cut network gives what it gave; names where X is a dict.
        self._sample, self.input_names = sample, None
        tensors = () if module is None else (*self.module.parameters(), *self.module.buffers())
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), dtype)
        if self.takes_features:
            self.dtype = torch.promote_types(self.dtype, torch.float32)
            self._head_name = ""
            if module is not None:
                self.module.to(self.dtype)
                self.one_logit = "column" if module.out_features == 1 else None
                self.n_logits = max(2, module.out_features)
        # What X is cast to: its tokens stay integers where nothing else will do.
        self.input_dtype = self.dtype
        # The parameters that a forward pass writes to: they are copied.
        self._written = []
        if state is not None:
            self._set_state(state)
        if sample is not None and self.module is not None:
            self._find_head(sample)
        self._weights = Weights(self._original, self.module)

    def __repr__(self):
        kind = "no network" if self.module is None else self._owner
        head = self.map_head or self._head_name
        return f"<{kind} on {self.device}, {self.input_dtype}{f', head {head!r}' if head else ''}>"

    def describe(self):
        """Return what its outputs depend on but the code: layers, settings, tensors, device."""
        layers = [
            (
                name,
                f"{type(part).__module__}.{type(part).__qualname__}",
                part.extra_repr(),
                {k: describe_value(v) for k, v in vars(part).items() if not k.startswith("_")},
            )
            for name, part in self.module.named_modules()
        ]
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        values = [(name, str(t.dtype), move_to_numpy(t)) for name, t in tensors]
        return layers, values, str(self.device), str(self.dtype)

    def get_state(self, with_weights):
        """Return what is not in the user's module, as plain values and numpy arrays.

        Parameters
        ----------
        with_weights : bool
            Include the weights, of a linear head that skood fitted.
        """
        modules = () if self.module is None else self.module.named_buffers()
        head = self.module if with_weights else None
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "head_name": self._head_name,
            "map_head": (self.map_head, self.map_head_is_last, self.map_head_is_sure),
            "logits_shape": self._logits_shape and list(self._logits_shape),
            "logits_key": self.logits_key,
            "returns_features": self.returns_features,
            "one_logit": self.one_logit,
            "n_logits": self.n_logits,
            "classes": self.classes,
            "takes_named": self.takes_named,
            "input_names": self.input_names,
            "stages": list(self._stages),
            "norms": list(self._norms),
            "cuts": list(self._cuts.items()),
            "channel_axes": list(self.channel_axes.items()),
            "input_dtype": str(self.input_dtype).removeprefix("torch."),
            "changed": self.weights_changed,
            "written": self._written,
            "buffers": {name: move_to_numpy(buffer) for name, buffer in modules},
            "weights": head and [move_to_numpy(p) for p in (head.weight, head.bias)],
        }

    def _set_state(self, state):
        self._head_name, self.logits_key = state["head_name"], state["logits_key"]
        self.classes = state.get("classes")
        self._changed = state["changed"]
        for name in state.get("written", ()):
            self._own(self.module.get_parameter(name))
        # Earlier versions knew none.
        self.channel_axes = dict(state.get("channel_axes", ()))
        self._stages, self._cuts = tuple(state.get("stages", [None])), dict(state.get("cuts", ()))
        self._norms = tuple(state.get("norms", ()))
        self.input_names = state.get("input_names")
        # Of earlier versions the last is missing, and all that needs it.
        self.map_head, self.map_head_is_last, *sure = state["map_head"]
        self.map_head_is_sure = bool(sure and sure[0])
        self._logits_shape = tuple(state.get("logits_shape") or ()) or None
        self.input_dtype = getattr(torch, state["input_dtype"])
        buffers = {} if self.module is None else dict(self.module.named_buffers())
        for name in buffers.keys() & state["buffers"].keys():
            # Not copied into: the user's network may have grown the buffer meanwhile.
            values = torch.from_numpy(np.array(state["buffers"][name]))
            buffers[name].data = values.to(buffers[name])
        if not self.takes_features:
            # Files of earlier versions lack them.
            self.returns_features = state.get("returns_features", False)
            self.one_logit, self.n_logits = state.get("one_logit"), state.get("n_logits")
            self._take_entry()
            self._give_logits()
        if state["takes_named"]:
            self._take_named()

    def equals(self, other):
        """Tell whether another network is cut at the same layer and has equal weights."""
        if (self._head_name, self.dtype) != (other._head_name, other.dtype):
            return False
        if self.module is None or other.module is None:
            return self.module is other.module
        here, there = (
            [*n.module.named_parameters(), *n.module.named_buffers()] for n in (self, other)
        )
        return len(here) == len(there) and all(
            one[0] == two[0] and torch.equal(one[1], two[1].to(one[1].device))
            for one, two in zip(here, there, strict=True)
        )

    @property
    def weights_changed(self):
        """True when the user's weights are others than when the network was taken."""
        return self._changed or self._weights.changed

    def _own(self, written):
        """Let the copy have a parameter for itself, to which its forward pass writes."""
        own = {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if parameter.data_ptr() == written.data_ptr()
        }
        for name, parameter in own.items():
            # Not its data alone: writing to that would count as writing to the user's.
            copied = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for part in self.module.modules():
                aliases = [key for key, value in part._parameters.items() if value is parameter]
                part._parameters.update(dict.fromkeys(aliases, copied))
            self._written.append(name)

    @property
    def takes_features(self):
        """True when X already holds what enters the last linear layer."""
        return self.module is None or isinstance(self.module, nn.Linear)

    @property
    def _owner(self):
        return type(self.module).__name__

    @property
    def layer_names(self):
        """The names of all submodules."""
        return [name for name, _ in self.module.named_modules() if name]

    @property
    def head_name(self):
        """The name of the last linear layer; a ValueError where there is none."""
        if self._head_name is None:
            raise self._no_head
        return self._head_name

    @property
    def has_head(self):
        """True when the network ends in a linear layer."""
        return self._head_name is not None

    @property
    def head(self):
        """The last linear layer, in float32 at least; of each pixel where logits are maps.

        It gives two logits where the network's gives one.
        """
        name = self.map_head if self.map_head_is_sure else self.head_name
        head = as_linear(private_copy(self.module.get_submodule(name)))
        if self.one_logit:
            head = two_sided(head)
        return head.to(torch.promote_types(self.dtype, torch.float32))

    def require_logits(self, maps=False):
        """Return self, or raise if the network returns anything but logits; or maps of them."""
        if self._no_logits is not None:
            raise self._no_logits
        if self._logits_shape is not None and not maps:
            raise self._no_vectors()
        return self

    @property
    def batch_rows(self):
        """How many rows of X to pass at once, of maps as many as `MAPS_BYTES` hold."""
        if self._logits_shape is None:
            return NETWORK_BATCH_ROWS
        _, *shape = self._logits_shape
        return min(NETWORK_BATCH_ROWS, feature_batch_rows(4 * math.prod(shape), MAPS_BYTES))

    @property
    def returns_vectors(self):
        """True when logits are vectors, not maps."""
        return self._logits_shape is None

    def _no_vectors(self):
        return ValueError(
            f"{self._owner} returns logits of shape {self._logits_shape} for two rows; this method "
            "needs (n_samples, n_classes).\nFor one score a pixel take a method on logits, such as "
            "EnergyDetector(net), or one on features in front of the 1×1 convolution that gives "
            "the logits, KNNDetector(net).\nFor one score an image take features: "
            "KNNDetector(net, layer=...), or LayersDetector(net)."
        )

    def _take_named(self):
        """Let the copy take the entries of a dict by name."""
        self.takes_named = True
        self.module.register_forward_pre_hook(spread_named, with_kwargs=True)

    def _take_entry(self):
        """Let the copy return one entry of its output, where that is a collection."""
        if self.logits_key is not None:
            self.module.register_forward_hook(TakeEntry(self.logits_key))

    def _give_logits(self):
        """Let the copy return two logits in place of one, and note the largest where asked to."""
        if self.n_logits is not None:
            self.module.register_forward_hook(GiveLogits(self.one_logit, self.largest_logits))
