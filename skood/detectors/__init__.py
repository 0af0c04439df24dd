"""One method a file."""

from skood.detectors.features.cfood import CFOODDetector
from skood.detectors.features.cosine import CosineDetector
from skood.detectors.features.feature_norm import FeatureNormDetector
from skood.detectors.features.gmm import GMMDetector
from skood.detectors.features.igeood import IGEOODDetector
from skood.detectors.features.knn import KNNDetector
from skood.detectors.features.mahalanobis import MahalanobisDetector
from skood.detectors.features.residual import ResidualDetector
from skood.detectors.gradients.gaia import GAIADetector
from skood.detectors.gradients.gradnorm import GradNormDetector
from skood.detectors.gradients.grood import GrOODDetector
from skood.detectors.head.actsub import ActSubDetector
from skood.detectors.head.cadref import CADRefDetector
from skood.detectors.head.dice import DICEDetector
from skood.detectors.head.fdbd import FDBDDetector
from skood.detectors.head.line import LINeDetector
from skood.detectors.head.mcm import MCMDetector
from skood.detectors.head.nci import NCIDetector
from skood.detectors.head.neco import NECODetector
from skood.detectors.head.neg_label import NegLabelDetector
from skood.detectors.head.nnguide import NNGuideDetector
from skood.detectors.head.optfs import OptFSDetector
from skood.detectors.head.ora import ORADetector
from skood.detectors.head.pnml import PNMLDetector
from skood.detectors.head.relation import RelationDetector
from skood.detectors.head.she import SHEDetector
from skood.detectors.head.vim import ViMDetector
from skood.detectors.head.weiper import WeiPerDetector
from skood.detectors.inputs.odin import ODINDetector
from skood.detectors.inputs.perturbed import PerturbedDetector
from skood.detectors.inputs.transforms import TransformsDetector
from skood.detectors.layers.gram import GramDetector
from skood.detectors.layers.nac import NACDetector
from skood.detectors.layers.several import LayersDetector
from skood.detectors.logits.deep_ensemble import DeepEnsembleDetector
from skood.detectors.logits.energy import EnergyDetector
from skood.detectors.logits.entropy import EntropyDetector
from skood.detectors.logits.gen import GENDetector
from skood.detectors.logits.kl_matching import KLMatchingDetector
from skood.detectors.logits.logit_gap import LogitGapDetector
from skood.detectors.logits.max_logit import MaxLogitDetector
from skood.detectors.logits.mc_dropout import MCDropoutDetector
from skood.detectors.logits.msp import MSPDetector
from skood.detectors.logits.open_max import OpenMaxDetector
from skood.detectors.logits.standardized_max_logit import StandardizedMaxLogitDetector
from skood.detectors.shaping.adascale import AdaSCALEDetector
from skood.detectors.shaping.ash import ASHDetector
from skood.detectors.shaping.bats import BATSDetector
from skood.detectors.shaping.rankfeat import RankFeatDetector
from skood.detectors.shaping.react import ReActDetector
from skood.detectors.shaping.scale import SCALEDetector
from skood.detectors.shaping.vra import VRADetector

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
]
