"""Warnings that point at the user's line."""

import contextlib
import contextvars
import re
import sys
import warnings

_OURS = ("skood", "sklearn", "joblib", "contextlib", "functools")


class ShownOnce(UserWarning):
    """About labels, and the same for every fit of a search: shown once in a process."""


_SHOWN: set[str] = set()
_SILENT = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def silent():
    """Drop our own warnings, in this thread: of what is done again on parts of the same rows."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def warn(message, category=UserWarning):
    """Warn at the first frame outside of skood and scikit-learn."""
    if _SILENT.get():
        return
    if issubclass(category, ShownOnce) and not any(
        issubclass(category, kind) and (text is None or re.match(text, message))
        for _, text, kind, module, _ in warnings.filters
        if module is None
    ):
        # Python's own "once" forgets when filters change, as they do at each fit of a search.
        if message in _SHOWN:
            return
        _SHOWN.add(message)
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def caller_variables(function, variable):
    """Return the variables of the nearest call of a function that has a certain one; else {}."""
    frame = sys._getframe(1)
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        if frame.f_code.co_name == function and variable in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back
    return {}
