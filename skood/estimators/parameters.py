"""Parameters of estimators, each declared once: signature, default, validation, description."""

import dataclasses
import inspect
import re
from typing import Any, dataclass_transform

# A numpydoc section's title, and the start of an entry such as "alpha : float, default=1".
TITLE = re.compile(r"^(\w[\w ]*)\n-+\n", re.MULTILINE)
ENTRY = re.compile(r"^(?=\w+ : )", re.MULTILINE)


def param(*constraints: Any, default: Any = dataclasses.MISSING, kw_only: bool = True) -> Any:
    """Declare a parameter of an estimator in the body of its class.

    Parameters
    ----------
    *constraints : object
        What values are valid, as in scikit-learn's ``_parameter_constraints``; none: all are.
    default : object
        The default value; without it the parameter must be given.
    kw_only : bool, default=True
        Whether the parameter is given by name alone.

    Returns
    -------
    field : dataclasses.Field
        The declaration.
    """
    metadata = {"constraints": list(constraints) or "no_validation"}
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


@dataclass_transform(kw_only_default=True, field_specifiers=(param,))
class DeclaresParameters:
    """Base of classes whose constructor stores the parameters that are declared by `param`.

    A subclass gets the parameters of its bases and its own, in its signature, in
    ``_parameter_constraints`` and in its docstring, where it does not describe them itself. One
    that has an ``__init__`` of its own keeps it, with the constraints it states.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = {k: v for k, v in vars(cls).items() if isinstance(v, dataclasses.Field)}
        for name, field in own.items():
            field.name, field.type = name, cls.__annotations__[name]
            delattr(cls, name)
        cls._own_parameters = own
        joined = sum(issubclass(base, DeclaresParameters) for base in cls.__bases__) > 1
        if (own or joined) and "__init__" not in vars(cls):
            parameters = declared_parameters(cls)
            cls.__init__ = make_init(cls, parameters)
            cls._parameter_constraints = {
                name: field.metadata["constraints"] for name, field in parameters.items()
            }
        if cls.__doc__:
            cls.__doc__ = complete_docstring(cls)


def declared_parameters(cls):
    """Return the declarations of a class and its bases: own ones first, then those of bases."""
    found: dict[str, dataclasses.Field] = {}
    for base in cls.__mro__:
        for name, field in vars(base).get("_own_parameters", {}).items():
            found.setdefault(name, field)
    return found


def make_init(cls, parameters):
    """Return a constructor that stores parameters."""
    # A dataclass is made for its constructor alone: dask identifies instances of dataclasses by
    # their parameters, so that two fits of one detector would be one to it.
    bases = reversed(cls.__mro__)
    order = [name for base in bases for name in vars(base).get("_own_parameters", ())]
    positional = [field for field in parameters.values() if not field.kw_only]
    positional.sort(key=lambda field: order.index(field.name))
    fields = [*positional, *(field for field in parameters.values() if field.kw_only)]
    init = dataclasses.make_dataclass(
        cls.__name__,
        [(f.name, f.type, param(default=f.default, kw_only=f.kw_only)) for f in fields],
    ).__init__
    init.__module__, init.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    return init


def read_docstring(cls):
    """Return what a numpydoc docstring says first, and its sections by title."""
    start, *rest = TITLE.split(inspect.cleandoc(vars(cls).get("__doc__") or ""))
    sections = {t: text.strip() for t, text in zip(rest[::2], rest[1::2], strict=True)}
    return start.strip(), sections


def read_entries(text):
    """Return the entries of a numpydoc section by name."""
    entries = [entry.strip() for entry in ENTRY.split(text)]
    return {entry.split(" : ")[0]: entry for entry in entries if entry}


def complete_docstring(cls):
    """Return a docstring with all parameters and attributes, from the bases' where it has none."""
    start, sections = read_docstring(cls)
    entries: dict[str, dict[str, str]] = {"Parameters": {}, "Attributes": {}}
    for base in cls.__mro__:
        if issubclass(base, DeclaresParameters):
            _, found = read_docstring(base)
            for title, known in entries.items():
                for name, entry in read_entries(found.get(title, "")).items():
                    known.setdefault(name, entry)
    signature = [
        name for name in inspect.signature(cls).parameters if name in entries["Parameters"]
    ]
    ordered = {
        "Parameters": [entries["Parameters"][name] for name in signature],
        "Attributes": list(entries["Attributes"].values()),
    }
    texts = {title: "\n".join(lines) for title, lines in ordered.items() if lines}
    texts.update({title: text for title, text in sections.items() if title not in entries})
    return "\n\n".join([start, *(f"{t}\n{'-' * len(t)}\n{text}" for t, text in texts.items())])
