"""Warnings that point at the user's line."""

import sys
import warnings

_OURS = ("skood", "sklearn", "contextlib", "functools")


def warn(message, category=UserWarning):
    """Warn at the first frame outside of skood and scikit-learn."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
