"""Every detector on one benchmark, as a table and a picture; ``python -m skood`` runs it."""

from skood.benchmark.digits import (
    DigitsNetwork,
    RandomAffine,
    default_baselines,
    default_detectors,
    train_digits_network,
)
from skood.benchmark.evaluation import evaluate
from skood.benchmark.picture import plot
from skood.benchmark.results import Result, run
from skood.benchmark.tables import format_advice, format_table

__all__ = [
    "DigitsNetwork",
    "RandomAffine",
    "Result",
    "default_baselines",
    "default_detectors",
    "evaluate",
    "format_advice",
    "format_table",
    "plot",
    "run",
    "train_digits_network",
]
