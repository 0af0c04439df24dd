"""One method a file."""

from skood.detectors.features.gmm import GMMDetector
from skood.detectors.features.mahalanobis import MahalanobisDetector
from skood.detectors.gradients.gradnorm import GradNormDetector
from skood.detectors.head.nnguide import NNGuideDetector
from skood.detectors.head.vim import ViMDetector
from skood.detectors.layers.nac import NACDetector
from skood.detectors.logits.msp import MSPDetector
from skood.detectors.shaping.ash import ASHDetector
from skood.detectors.shaping.react import ReActDetector

__all__ = [
    "ASHDetector",
    "GMMDetector",
    "GradNormDetector",
    "MSPDetector",
    "MahalanobisDetector",
    "NACDetector",
    "NNGuideDetector",
    "ReActDetector",
    "ViMDetector",
]
