"""One method a file."""

from skood.detectors._ash import ASHDetector
from skood.detectors._gmm import GMMDetector
from skood.detectors._gradnorm import GradNormDetector
from skood.detectors._nac import NACDetector
from skood.detectors._nnguide import NNGuideDetector

__all__ = ["ASHDetector", "GMMDetector", "GradNormDetector", "NACDetector", "NNGuideDetector"]
