"""Features of a network as a scikit-learn transformer."""

from skood.estimators.features import FeatureExtractor

__all__ = [
    "FeatureExtractor",
]
