"""The bases of detectors, for those written elsewhere."""

from skood.estimators.base import BaseDetector
from skood.estimators.kinds import (
    ClassifierDetector,
    FeatureDetector,
    HeadDetector,
    LogitsDetector,
    ShapingDetector,
)
from skood.estimators.parameters import param

__all__ = [
    "BaseDetector",
    "ClassifierDetector",
    "FeatureDetector",
    "HeadDetector",
    "LogitsDetector",
    "ShapingDetector",
    "param",
]
