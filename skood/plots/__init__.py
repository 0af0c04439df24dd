"""Displays in scikit-learn's form: scores and thresholds, curves, comparisons, p-values, maps."""

from skood.plots._comparison import DetectorComparisonDisplay
from skood.plots._curves import OODPrecisionRecallDisplay, OODRocCurveDisplay
from skood.plots._histogram import ScoreHistogramDisplay
from skood.plots._p_values import PValueDisplay
from skood.plots._score_maps import ScoreMapDisplay

__all__ = [
    "DetectorComparisonDisplay",
    "OODPrecisionRecallDisplay",
    "OODRocCurveDisplay",
    "PValueDisplay",
    "ScoreHistogramDisplay",
    "ScoreMapDisplay",
]
