"""Tensors on a pretended cuda:0, and what torch does with them."""

import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30
# Operations that take tensors of both devices: copies, and these, whose indices may be on the CPU.
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class GPUTensor(torch.Tensor):
    """A tensor that says it lies on cuda:0; its values are those of `held`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        """Wrap a tensor on the CPU; views and what is written in place are those of `held`."""
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        """Run an operation that meets such a tensor."""
        return run(operation, args, kwargs or {})

    def numpy(self, *, force=False):
        """Refuse, in torch's words."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def __repr__(self, **kwargs):
        return f"GPUTensor({self.held!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = GPUTensor(self.detach().held.clone())
            memo[id(self)] = _made(copied, self.requires_grad, _is_parameter(self))
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return _unpickled, (self.detach().cpu(), self.requires_grad, _is_parameter(self))


def _is_parameter(tensor):
    return getattr(tensor, "_is_param", False)


def _made(values, requires_grad, is_parameter):
    if is_parameter:
        return torch.nn.Parameter(values, requires_grad)
    return values.requires_grad_(requires_grad)


def _unpickled(values, requires_grad, is_parameter):
    return _made(values.to(GPU), requires_grad, is_parameter)


def run(operation, args, kwargs):
    """Run an operation on the values, and put what comes out where a GPU would have it."""
    name = operation.overloadpacket.__name__
    leaves, structure = tree_flatten((args, kwargs))
    if name in ("pin_memory", "_pin_memory"):
        return args[0]
    if name == "is_pinned":
        return False
    refuse_two_devices(name, args, leaves)
    target = kwargs.get("device")
    if target is not None:
        target = torch.device(target)
    if target is not None and target.type == "cuda" and target.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    if target is not None:
        on_gpu = target.type == "cuda"
    elif name == "copy_":
        on_gpu = isinstance(args[0], GPUTensor)
    else:
        on_gpu = any(isinstance(leaf, GPUTensor) for leaf in leaves)
    held = [leaf.held if isinstance(leaf, GPUTensor) else leaf for leaf in leaves]
    held_args, held_kwargs = tree_unflatten(held, structure)
    if target is not None:
        held_kwargs["device"] = CPU
    for choice in ("pin_memory", "non_blocking"):
        if choice in held_kwargs:
            held_kwargs[choice] = False
    out = operation(*held_args, **held_kwargs)
    # What was changed in place, or handed back, is the tensor that came in.
    given = {
        id(inner): leaf
        for inner, leaf in zip(held, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }

    def placed(tensor):
        if id(tensor) in given:
            return given[id(tensor)]
        return GPUTensor(tensor) if on_gpu else tensor

    return tree_map_only(torch.Tensor, placed, out)


def refuse_two_devices(name, args, leaves):
    """Raise where a GPU would: for tensors of two devices, but for numbers (no dimensions)."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if name in COPIES or not any(isinstance(tensor, GPUTensor) for tensor in tensors):
        return
    if name in INDEXING:
        if not isinstance(args[0], GPUTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        # Values that are put in place have to lie there too; indices need not.
        tensors = [leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, torch.Tensor)]
    if any(tensor.dim() > 0 and not isinstance(tensor, GPUTensor) for tensor in tensors):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name})"
        )


class Operations(TorchDispatchMode):
    """Sees operations that meet no tensor on the GPU but may make one, such as `torch.zeros`."""

    # With another key torch asks CUDA itself before the operation comes here.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


class Calls(TorchFunctionMode):
    """Puts what torch computes in C++, before any operation, on the pretended GPU."""

    makers = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.device:
            return function(*args, **kwargs)
        args, kwargs = tree_map_only((str, torch.device), _with_index, (args, kwargs))
        if args and isinstance(args[0], GPUTensor):
            if function is torch.Tensor.new_tensor:
                kwargs = {"dtype": args[0].dtype, "device": GPU, **kwargs}
                function, args = torch.tensor, args[1:]
            elif function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
                args = (args[0], _without_lists(args[1]), *args[2:])
        if function in self.makers and kwargs.get("device") == GPU:
            requires_grad = kwargs.pop("requires_grad", False)
            del kwargs["device"]
            return function(*args, **kwargs).to(GPU).requires_grad_(requires_grad)
        return function(*args, **kwargs)


def _without_lists(index):
    """Return an index of a tensor with tensors in place of lists."""
    if isinstance(index, tuple):
        return tuple(_without_lists(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


def _with_index(device):
    """Return cuda:0 for cuda: torch without CUDA cannot say which one is current."""
    return GPU if device in ("cuda", torch.device("cuda")) else device


@contextlib.contextmanager
def pretended_gpu():
    """While the block runs there is a GPU, cuda:0."""
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "mem_get_info": (64 * GIB, 80 * GIB),
        "get_device_name": "pretended",
        "synchronize": None,
        "empty_cache": None,
        "_lazy_init": None,
    }
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            patch = mock.patch.object(torch.cuda, name, lambda *_, answer=answer: answer)
            stack.enter_context(patch)
        for owner in (torch.Tensor, torch.nn.Module):
            to_gpu = mock.patch.object(owner, "cuda", lambda self, *_, **__: self.to(GPU))
            stack.enter_context(to_gpu)
        # module.to would otherwise put the wrapper's own memory, which is none, into parameters.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        stack.enter_context(Operations())
        stack.enter_context(Calls())
        yield
