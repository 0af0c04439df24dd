"""Deep out-of-distribution detection as scikit-learn estimators."""

import importlib
import logging
from typing import TYPE_CHECKING

from skood._moved import find_moved_modules
from skood._version import __version__
from skood._versions import show_versions
from skood.advice import recommend
from skood.data.lazy import provide_distributed
from skood.decisions.report import report
from skood.detectors import (
    ActSubDetector,
    AdaSCALEDetector,
    ASHDetector,
    BATSDetector,
    CADRefDetector,
    CFOODDetector,
    CosineDetector,
    DeepEnsembleDetector,
    DICEDetector,
    EnergyDetector,
    EntropyDetector,
    FDBDDetector,
    FeatureNormDetector,
    GAIADetector,
    GENDetector,
    GMMDetector,
    GradNormDetector,
    GramDetector,
    GrOODDetector,
    IGEOODDetector,
    KLMatchingDetector,
    KNNDetector,
    LayersDetector,
    LINeDetector,
    LogitGapDetector,
    MahalanobisDetector,
    MaxLogitDetector,
    MCDropoutDetector,
    MCMDetector,
    MSPDetector,
    NACDetector,
    NCIDetector,
    NECODetector,
    NegLabelDetector,
    NNGuideDetector,
    ODINDetector,
    OpenMaxDetector,
    OptFSDetector,
    ORADetector,
    PerturbedDetector,
    PNMLDetector,
    RankFeatDetector,
    ReActDetector,
    RelationDetector,
    ResidualDetector,
    SCALEDetector,
    SHEDetector,
    StandardizedMaxLogitDetector,
    TransformsDetector,
    ViMDetector,
    VRADetector,
    WeiPerDetector,
)
from skood.estimators.features import FeatureExtractor
from skood.files.export import export
from skood.files.persistence import load, save


def _load_distributed():
    """Import what needs dask, which only who has dask collections has."""
    from skood import distributed

    return distributed


logging.getLogger("skood").addHandler(logging.NullHandler())
find_moved_modules()

if not TYPE_CHECKING:
    _MODULES = set(
        "benchmark calibration datasets distributed ensemble explanations features functional "
        "metrics model_selection monitoring network open_set plots testing".split()
    )

    def __getattr__(name):
        """Import a public module when it is first used, as ``skood.metrics``."""
        if name in _MODULES:
            return importlib.import_module(f"skood.{name}")
        raise AttributeError(f"module 'skood' has no attribute {name!r}")


provide_distributed(_load_distributed)

__all__ = [
    "ASHDetector",
    "ActSubDetector",
    "AdaSCALEDetector",
    "BATSDetector",
    "CADRefDetector",
    "CFOODDetector",
    "CosineDetector",
    "DICEDetector",
    "DeepEnsembleDetector",
    "EnergyDetector",
    "EntropyDetector",
    "FDBDDetector",
    "FeatureExtractor",
    "FeatureNormDetector",
    "GAIADetector",
    "GENDetector",
    "GMMDetector",
    "GramDetector",
    "GrOODDetector",
    "GradNormDetector",
    "IGEOODDetector",
    "KLMatchingDetector",
    "KNNDetector",
    "LINeDetector",
    "LayersDetector",
    "LogitGapDetector",
    "MCDropoutDetector",
    "MCMDetector",
    "MSPDetector",
    "MahalanobisDetector",
    "MaxLogitDetector",
    "NACDetector",
    "NCIDetector",
    "NECODetector",
    "NNGuideDetector",
    "NegLabelDetector",
    "ODINDetector",
    "ORADetector",
    "OpenMaxDetector",
    "OptFSDetector",
    "PNMLDetector",
    "PerturbedDetector",
    "RankFeatDetector",
    "ReActDetector",
    "RelationDetector",
    "ResidualDetector",
    "SCALEDetector",
    "SHEDetector",
    "StandardizedMaxLogitDetector",
    "TransformsDetector",
    "VRADetector",
    "WeiPerDetector",
    "ViMDetector",
    "__version__",
    "export",
    "load",
    "recommend",
    "report",
    "save",
    "show_versions",
]
