"""A class, or unknown."""

from skood.decisions.open_set import OpenSetClassifier

__all__ = [
    "OpenSetClassifier",
]
