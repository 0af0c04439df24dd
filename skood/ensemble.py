"""Several detectors as one."""

from skood.decisions.ensemble import EnsembleDetector

__all__ = [
    "EnsembleDetector",
]
