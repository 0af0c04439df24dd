"""Deep out-of-distribution detection as scikit-learn estimators."""

from skood._export import export
from skood._versions import show_versions
from skood.detectors import (
    ASHDetector,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.features import FeatureExtractor
from skood.persistence import load, save

__version__ = "0.1.0"

__all__ = [
    "ASHDetector",
    "FeatureExtractor",
    "GMMDetector",
    "GradNormDetector",
    "NACDetector",
    "NNGuideDetector",
    "__version__",
    "export",
    "load",
    "save",
    "show_versions",
]
