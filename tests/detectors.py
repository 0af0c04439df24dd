"""Instances of every estimator in every setting, for the tests over all of them."""

from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.testing.running import name_of as name_of

DETECTORS = [ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector]


SETTINGS = [
    ASHDetector(),
    ASHDetector(variant="p", percentile=0.3),
    ASHDetector(variant="b", percentile=0.9),
    ASHDetector(variant="p", percentile=0, logit_score="msp"),
    ASHDetector(logit_score="max_logit", batch_size=7),
    GMMDetector(),
    GMMDetector(covariance_type="tied", criterion="mahalanobis"),
    GMMDetector(covariance_type="diag", reg_covar=1e-6),
    GMMDetector(covariance_type="spherical"),
    GMMDetector(criterion="mahalanobis", reg_covar=0.1, batch_size=7),
    GradNormDetector(),
    GradNormDetector(loss="bce"),
    GradNormDetector(params="all", temperature=2.0),
    GradNormDetector(params=["bias"], batch_size=7),
    NACDetector(),
    NACDetector(bins="geometric"),
    NACDetector(pooling="product", n_bins=20, batch_size=7),
    NNGuideDetector(),
    NNGuideDetector(k=3, energy_weighted=False),
    NNGuideDetector(k=2, bank_size=0.5, batch_size=7, random_state=0),
    NNGuideDetector(k=2, bank_size=5, false_alarm_rate=0.2, random_state=0),
]
EXTRACTORS = [FeatureExtractor(), FeatureExtractor(pool="max", batch_size=7)]

# A detector for a network of images; ASH and NAC also inside of it.
IN_NETWORKS = [
    ASHDetector(),
    ASHDetector(layer="conv1"),
    GMMDetector(reg_covar=0.1),
    GMMDetector(layer="conv1", reg_covar=0.1),
    GradNormDetector(),
    GradNormDetector(params="all"),
    NACDetector(),
    NACDetector(layers=["conv2", None, "bn"]),
    NNGuideDetector(k=3),
    NNGuideDetector(layer="conv1", k=3),
]
