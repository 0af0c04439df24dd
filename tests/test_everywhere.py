"""What decides is saved and exported, and gives the same in other processes, or says why not."""

import re

import pytest

from tests.everywhere import ESTIMATORS, GAPS, WAYS, measured

# A graph takes seconds.
OFTEN = {
    "Pipeline": WAYS,
    "Conformal, fdr": WAYS,
    "Conformal, IsolationForest": WAYS,
    "Ensemble, stouffer": WAYS,
    "Pipeline, quantiles": WAYS,
    "Perturbed, network": WAYS,
    "Ensemble, network": ("load", "load elsewhere"),
    "OpenSet": ("load", "load elsewhere"),
    "Pipeline, network, Conformal": ("load", "load elsewhere"),
}
ALL = dict.fromkeys(ESTIMATORS, WAYS)


@pytest.mark.parametrize(
    "cells",
    [pytest.param(OFTEN, id="often"), pytest.param(ALL, id="all", marks=pytest.mark.nightly)],
)
@pytest.mark.filterwarnings("ignore")
def test_everywhere(cells, tmp_path):
    for package in ("onnxscript", "onnxruntime", "skops"):
        pytest.importorskip(package)
    found = measured({name: ESTIMATORS[name] for name in cells}, cells, tmp_path)
    assert len(found) == sum(map(len, cells.values()))
    for (name, way), outcome in found.items():
        ways, message = GAPS.get(name, ((), ""))
        if way in ways:
            assert isinstance(outcome, TypeError) and re.search(message, str(outcome)), (name, way)
        else:
            assert outcome <= (1e-5 if way in ("pt2", "onnx") else 0), (name, way, outcome)
