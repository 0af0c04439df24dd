"""Detectors as files of data alone."""

from skood.files.persistence import load, save

__all__ = [
    "load",
    "save",
]
