"""Modules made from the user's: private copies, linear heads, small steps around a network."""

import contextlib
import threading

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skood.functional import pool
from skood.network.copies import check_nothing_shared, copy_all


def unwrap(module):
    """Return the module inside ``torch.compile`` and (Distributed)DataParallel wrappers."""
    while True:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                "The network is a TorchScript module, which cannot be cut at its layers. Pass the "
                "nn.Module that it was scripted or traced from."
            )
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def private_copy(module, device=None):
    """Copy a module in eval mode: own hooks, flags and buffers, but the weights are shared.

    Copying 35 M weights takes 64 ms, sharing them 3 ms. They are shared as parameters of our own
    that need no gradient, so that no flag and no `.grad` of the user's is ever reached.

    Parameters
    ----------
    module : nn.Module
        Any network.
    device : torch.device, default=None
        Where the copy shall be. On another device than the module's the weights are copied.

    Returns
    -------
    twin : nn.Module
        The copy.
    """
    memo = {}
    for part in module.modules():
        # Buffers among them: a forward pass may write one, in eval mode too.
        for tensor in _tensors_in(vars(part)):
            memo[id(tensor)] = tensor.detach().clone()
    # An embedding with max_norm rescales its weights in every forward pass.
    written = {
        id(part.weight) for part in module.modules() if getattr(part, "max_norm", None) is not None
    }
    for parameter in module.parameters():
        if isinstance(parameter, nn.parameter.UninitializedTensorMixin):
            raise ValueError(
                "The network has lazy parameters that are not initialised yet. Pass a batch "
                "through it once before giving it to skood."
            )
        # What was made under inference_mode cannot be differentiated through.
        own = parameter.is_inference() or id(parameter) in written
        tensor = parameter.detach().clone() if own else parameter.detach()
        memo[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
    try:
        twin = copy_all(module, memo).eval()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied, and skood works on a copy to leave yours "
            f"alone. One of its attributes is at fault: {error}"
        ) from error
    check_nothing_shared(module, twin)
    return twin if device is None else twin.to(device)


def differentiable_copy(module):
    """Copy a module as `private_copy` does, in a mode that gradients can be taken in."""
    twin = private_copy(module)
    let_recurrent_layers_differentiate(twin)
    return twin


def let_recurrent_layers_differentiate(twin):
    """Put the recurrent layers of a copy into a mode that gradients can be taken in.

    In eval mode torch keeps nothing for the way back through them (oneDNN, cuDNN).
    """
    for part in twin.modules():
        if isinstance(part, nn.RNNBase):
            part.dropout = 0.0
            part.train()


def _tensors_in(value):
    """Yield the tensors of a module that are no parameters, those in collections too."""
    if isinstance(value, torch.Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors_in(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors_in(entry)


class Weights:
    """The weights that a copy of a network shares with it, and whether they still are its weights.

    Parameters
    ----------
    module : nn.Module or None
        The user's.
    twin : nn.Module or None
        Its copy, with the same parameters.
    """

    def __init__(self, module, twin):
        self._module, self._twin = module, twin
        copied = {} if twin is None else dict(twin.named_parameters())
        self._seen = {
            name: at for name, at in self._look().items() if at[0] == copied[name].data_ptr()
        }

    def _look(self):
        """Return where each parameter is, its dtype, and how often it has been written to."""
        parameters = () if self._module is None else self._module.named_parameters()
        return {
            name: (p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version)
            for name, p in parameters
        }

    @property
    def changed(self):
        """True when a parameter was written to, or replaced by one of other values."""
        now = self._look()
        return any(
            now.get(name) != at and not self._was_moved(name, now.get(name), at)
            for name, at in self._seen.items()
        )

    def _was_moved(self, name, now, before):
        """Tell whether a parameter has the same values at another place."""
        if now is None or now[0] == before[0] or now[1] != before[1]:
            return False
        here, there = (m.get_parameter(name).detach() for m in (self._module, self._twin))
        if here.numel() != there.numel():
            return False
        return torch.equal(here.to(there.device).view_as(there), there)


class Unwritten(TorchDispatchMode):
    """While it is active an operation that would write to a parameter of a module is refused.

    Parameters
    ----------
    module : nn.Module
        The user's, a copy of which runs with the same weights.

    Attributes
    ----------
    found : Parameter or None
        The one that would have been written to.
    """

    def __init__(self, module):
        super().__init__()
        self._owners = {p.untyped_storage().data_ptr(): p for p in module.parameters()}
        self.found = None

    @classmethod
    def _should_skip_dynamo(cls):
        # True, as torch has it, makes the first pass import the compiler, which takes a second.
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation unless it would write."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[i] if i < len(args) else kwargs.get(argument.name)
                    for tensor in tree_leaves(value):
                        self._check(tensor)
        return func(*args, **kwargs)

    def _check(self, tensor):
        if isinstance(tensor, torch.Tensor):
            self.found = self._owners.get(tensor.untyped_storage().data_ptr())
            if self.found is not None:
                raise RuntimeError("The forward pass writes to a weight.")


def module_device(module):
    """Return the device of a module's first tensor; the CPU if it has none."""
    tensors = (
        tensor.device for group in (module.parameters(), module.buffers()) for tensor in group
    )
    return next(tensors, torch.device("cpu"))


def linear_head(weight, bias, device, dtype):
    """Return a frozen ``nn.Linear`` with these weights."""
    weight, bias = (torch.tensor(np.asarray(a), dtype=dtype, device=device) for a in (weight, bias))
    head = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], device=device, dtype=dtype
    )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False).eval()


def is_pointwise(module):
    """Tell a 1×1 convolution, which is a linear layer at each position."""
    return (
        isinstance(module, nn.Conv2d | nn.Conv3d)
        and set(module.kernel_size) == set(module.stride) == {1}
        and module.groups == 1
        and (module.padding == "valid" or not any(module.padding))
    )


def as_linear(head):
    """Return a linear layer, or a 1×1 convolution as one that shares its weights."""
    if not is_pointwise(head):
        return head
    linear = nn.Linear(head.in_channels, head.out_channels, bias=False, device="meta")
    linear.weight = nn.Parameter(head.weight.detach().flatten(1), requires_grad=False)
    linear.bias = None if head.bias is None else nn.Parameter(head.bias.detach(), False)
    return linear


def two_sided(head):
    """Return the layer of two logits, -l/2 and l/2, that a linear layer of one logit l stands for.

    Their softmax is the sigmoid of l, and they are symmetric.
    """
    both = nn.Linear(head.in_features, 2, bias=False, device="meta")
    both.weight = nn.Parameter(two_logits(head.weight, axis=0), requires_grad=False)
    both.bias = None if head.bias is None else nn.Parameter(two_logits(head.bias, axis=0), False)
    return both


def two_logits(logit, axis=1):
    """Return -l/2 and l/2 in place of the one entry of an axis."""
    return torch.cat([-logit / 2, logit / 2], axis)


def split_call(layer, names):
    """Split a layer such as "relu:1" into a submodule and the number of its call.

    Parameters
    ----------
    layer : str
        A submodule, or one and the number of a call in a pass, from 0.
    names : collection of str
        The submodules there are.

    Returns
    -------
    name : str
        The submodule.
    call : int or None
        None where no call is named.
    """
    name, _, call = layer.rpartition(":")
    if layer in names or name not in names or not call.isdecimal():
        return layer, None
    return name, int(call)


def spread_named(module, args, kwargs):
    """Turn a dict that is the only argument into arguments by name; a forward pre-hook."""
    return (), {**args[0], **kwargs}


class TakeEntry:
    """A forward hook that gives one entry of the output."""

    def __init__(self, key):
        self.key = key

    def __call__(self, module, args, output):
        """Return the entry."""
        return output[self.key]


class LargestLogits:
    """The column of each row's largest logit, noted by all copies of a network where asked to."""

    def __init__(self):
        self._calls = threading.local()

    def __deepcopy__(self, memo):
        return self

    @contextlib.contextmanager
    def asked(self):
        """Give the list to which passes in this thread append one tensor of columns each."""
        self._calls.noted = noted = []
        try:
            yield noted
        finally:
            self._calls.noted = None

    def note(self, values, head=None):
        """Note those of logits, or of what enters a head."""
        noted = getattr(self._calls, "noted", None)
        # What vmap computes has no value of its own.
        if noted is None or torch._C._functorch.is_functorch_wrapped_tensor(values):
            return
        logits = values if head is None else head(values)
        if logits.ndim == 2:
            noted.append(logits.detach().argmax(1))


class GiveLogits:
    """A forward hook that gives two logits in place of one, and notes which is the largest.

    Parameters
    ----------
    one : {"column", "squeezed"} or None
        Whether there is one logit a row or pixel, with an axis of its own or without.
    largest : LargestLogits
        Where they are noted.
    """

    def __init__(self, one, largest):
        self.one, self.largest = one, largest

    def __call__(self, module, args, logits):
        """Return the logits."""
        if self.one == "squeezed":
            logits = logits.reshape(-1, 1) if logits.ndim < 2 else logits.unsqueeze(1)
        if self.one:
            logits = two_logits(logits)
        self.largest.note(logits)
        return logits


class Pool(nn.Module):
    """`skood.functional.pool` as a module."""

    def __init__(self, how, channel_axis=None):
        super().__init__()
        self.how, self.channel_axis = how, channel_axis

    def forward(self, activations):
        """Reduce activations to one vector a sample."""
        return pool(activations, self.how, channel_axis=self.channel_axis)
