"""Metrics of OOD detection with scikit-learn signatures, and scorers for model selection."""

from skood.metrics.inference import ConfidenceInterval, PairedTest, confidence_interval, paired_test
from skood.metrics.maps import segmentation_score
from skood.metrics.ranking import (
    aupr_in_score,
    aupr_out_score,
    auroc_score,
    autc_score,
    detection_error_score,
    fpr_at_tpr_score,
)
from skood.metrics.scorers import get_scorer, get_scorer_names
from skood.metrics.selective import aurc_score, aurra_score, ccr_at_fpr_score, oscr_score

__all__ = [
    "ConfidenceInterval",
    "PairedTest",
    "aupr_in_score",
    "aupr_out_score",
    "aurc_score",
    "auroc_score",
    "aurra_score",
    "autc_score",
    "ccr_at_fpr_score",
    "confidence_interval",
    "detection_error_score",
    "fpr_at_tpr_score",
    "get_scorer",
    "get_scorer_names",
    "oscr_score",
    "paired_test",
    "segmentation_score",
]
