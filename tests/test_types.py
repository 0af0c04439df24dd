"""Public signatures are annotated; mypy, a part of `.ci/run`, checks that they hold."""

import importlib
import inspect

import pytest

MODULES = [
    *("skood", "skood.base", "skood.benchmark", "skood.calibration", "skood.datasets"),
    *("skood.ensemble", "skood.functional", "skood.metrics", "skood.model_selection"),
    *("skood.open_set", "skood.persistence", "skood.plots", "skood.testing"),
]


def public_callables(module):
    """Yield the functions of a module's ``__all__``, and the methods of its classes."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        for cls in inspect.getmro(value) if inspect.isclass(value) else ():
            for method, member in vars(cls).items() if cls.__module__.startswith("skood") else ():
                # Behind a property, or scikit-learn's `available_if`, or its `_fit_context`.
                member = getattr(member, "fget", None) or getattr(member, "fn", member)
                member = inspect.unwrap(member)
                if inspect.isfunction(member) and (method == "__init__" or method[0] != "_"):
                    yield f"{name}.{method}", member


@pytest.mark.parametrize("module", MODULES)
def test_public_signatures_are_annotated(module):
    found = list(public_callables(importlib.import_module(module)))
    assert found
    bare = [
        f"{name}({parameter})"
        for name, function in found
        for parameter in [*inspect.signature(function).parameters, "return"]
        if parameter not in ("self", "cls") and parameter not in inspect.get_annotations(function)
    ]
    assert not bare
