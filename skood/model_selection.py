"""Tuning, also without OOD rows."""

from skood.decisions.class_splits import LeaveClassesOut, OODStratifiedKFold
from skood.decisions.fit_on_inliers import FitOnInliers
from skood.decisions.searching import KeepUnlessBetter

__all__ = [
    "FitOnInliers",
    "KeepUnlessBetter",
    "LeaveClassesOut",
    "OODStratifiedKFold",
]
