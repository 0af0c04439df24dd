"""Copies of networks that lead to nothing of the original, whatever a network holds."""

import copy
import types
import weakref
from functools import partial

from torch import nn


def copy_all(module, memo):
    """Return a deep copy of a module, with copies of what deep copies share with the original.

    These are modules whose ``__deepcopy__`` returns themselves, and functions and weak references
    among the attributes that lead back to a module, such as a ``forward`` that was replaced.

    Parameters
    ----------
    module : nn.Module
        The original.
    memo : dict
        As of `copy.deepcopy`: copies by the id of what they stand for.
    """
    parts = list(module.modules())
    stubborn = [p for p in parts if hasattr(type(p), "__deepcopy__") and is_own_copy(p, memo)]
    for part in stubborn:
        memo[id(part)] = type(part).__new__(type(part))
    for part in stubborn:
        vars(memo[id(part)]).update(copy.deepcopy(vars(part), memo))
    twin = copy.deepcopy(module, memo)
    twins = {id(part): memo[id(part)] for part in parts if id(part) in memo}
    for part in twin.modules():
        for name, value in list(vars(part).items()):
            vars(part)[name] = redirected(value, twins)
    return twin


def is_own_copy(part, memo):
    """Tell whether a deep copy of a module is that module."""
    return copy.deepcopy(part, {**memo}) is part


def redirected(value, twins):
    """Return a value whose references to modules lead to their copies.

    Parameters
    ----------
    value : object
        An attribute of a copied module, or what it holds. It is not written to.
    twins : dict
        Copies of modules by the id of the original.
    """
    again = partial(redirected, twins=twins)
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if isinstance(value, weakref.ref):
        return weakref.ref(twins[id(value())]) if id(value()) in twins else value
    if isinstance(value, types.MethodType):
        owner = again(value.__self__)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, types.FunctionType):
        return redirected_function(value, again)
    if isinstance(value, partial):
        parts = value.func, value.args, value.keywords
        func, args, keywords = map(again, parts)
        changed = any(a is not b for a, b in zip((func, args, keywords), parts, strict=True))
        return type(value)(func, *args, **keywords) if changed else value
    if isinstance(value, dict):
        new = {key: again(entry) for key, entry in value.items()}
        if all(new[key] is value[key] for key in value):
            return value
        twin = copy.copy(value)
        twin.update(new)
        return twin
    if type(value) in (list, tuple):
        entries = [again(entry) for entry in value]
        same = all(a is b for a, b in zip(entries, value, strict=True))
        return value if same else type(value)(entries)
    return value


def redirected_function(function, again):
    """Return a function whose closure, defaults and global names lead to copies of modules."""
    compiled = getattr(function, "_torchdynamo_orig_callable", None)
    if compiled is not None:
        # As ``torch.compile`` of a module is unwrapped, so is that of its method.
        return again(compiled)
    cells = function.__closure__ or ()
    held = [cell.cell_contents if is_filled(cell) else None for cell in cells]
    # A closure may hold itself: what leads to modules by way of functions is followed once.
    new = [entry if entry is function else again(entry) for entry in held]
    defaults, named = again(function.__defaults__), again(function.__kwdefaults__)
    used = {
        name: function.__globals__[name]
        for name in function.__code__.co_names
        if isinstance(function.__globals__.get(name), nn.Module)
    }
    moved = again(used)
    if (
        all(a is b for a, b in zip(new, held, strict=True))
        and defaults is function.__defaults__
        and named is function.__kwdefaults__
        and moved is used
    ):
        return function
    twin = types.FunctionType(
        function.__code__,
        {**function.__globals__, **moved} if moved is not used else function.__globals__,
        function.__name__,
        defaults,
        tuple(
            types.CellType(entry) if is_filled(cell) else cell
            for entry, cell in zip(new, cells, strict=True)
        ),
    )
    twin.__kwdefaults__ = named
    vars(twin).update(vars(function))
    return twin


def is_filled(cell):
    """Tell whether a cell of a closure has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def check_nothing_shared(module, twin):
    """Raise if a copy still holds a module of the original."""
    originals = {id(part): name for name, part in module.named_modules()}
    for name, part in twin.named_modules():
        if id(part) in originals:
            raise TypeError(
                f"{name or type(module).__name__} is a {type(part).__name__} that cannot be "
                "copied, and skood works on a copy to leave yours alone. Let its __deepcopy__ "
                "return a copy."
            )
