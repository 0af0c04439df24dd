"""Thresholds that hold on fresh rows."""

from skood.decisions.conformal import ConformalDetector

__all__ = [
    "ConformalDetector",
]
