"""Which estimators are saved, loaded and exported, and how far their scores differ elsewhere.

``python -m tests.everywhere`` prints a table; with ``--detectors`` of every detector.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

import skood
from skood import (
    EnergyDetector,
    FeatureExtractor,
    GMMDetector,
    KNNDetector,
    LayersDetector,
    PerturbedDetector,
    TransformsDetector,
)
from skood.calibration import ConformalDetector
from skood.ensemble import EnsembleDetector
from skood.model_selection import FitOnInliers
from skood.open_set import OpenSetClassifier
from tests.networks import SmallCNN, seeded

ROOT = pathlib.Path(__file__).parent.parent
WAYS = ("load", "load elsewhere", "pt2", "onnx")
IRIS = load_iris(return_X_y=True)
NET = seeded(SmallCNN)
TWO = [("gaussians", GMMDetector()), ("energy", EnergyDetector())]
PREDICTS = FrozenEstimator(
    make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*IRIS)
)
SCALERS = (FitOnInliers(StandardScaler()), MinMaxScaler(clip=True), MaxAbsScaler(), RobustScaler())
ESTIMATORS = {
    "Conformal": ConformalDetector(GMMDetector(), random_state=0),
    "Conformal, folds, classes": ConformalDetector(
        GMMDetector(), "cross", class_conditional=True, random_state=0
    ),
    "Conformal, predicted classes, tail": ConformalDetector(
        KNNDetector(), tail="exponential", class_conditional=PREDICTS, random_state=0
    ),
    "Conformal, fdr": ConformalDetector(GMMDetector(), fdr="bh", random_state=0),
    "Conformal, IsolationForest": ConformalDetector(
        IsolationForest(n_estimators=5), random_state=0
    ),
    "Ensemble": EnsembleDetector(TWO),
    "Ensemble, mean of ranks": EnsembleDetector(TWO, method="mean_rank"),
    "Ensemble, stouffer": EnsembleDetector(TWO, method="stouffer"),
    "Ensemble, network": EnsembleDetector(
        [*TWO, ("layer", KNNDetector(layer="bn"))], NET, method="fisher"
    ),
    "OpenSet": OpenSetClassifier(LogisticRegression(max_iter=1000), GMMDetector()),
    "OpenSet, network, Conformal": OpenSetClassifier(
        NET, ConformalDetector(KNNDetector(), random_state=0)
    ),
    "Pipeline": make_pipeline(StandardScaler(), PCA(3), Normalizer(), GMMDetector()),
    "Pipeline, others": make_pipeline(
        *SCALERS, TruncatedSVD(3), PCA(2, whiten=True), FunctionTransformer(), GMMDetector()
    ),
    "Pipeline, quantiles": make_pipeline(QuantileTransformer(n_quantiles=50), GMMDetector()),
    "Pipeline, network, Conformal": make_pipeline(
        FeatureExtractor(NET), Normalizer(), ConformalDetector(KNNDetector(), "cross")
    ),
    "Layers, network": LayersDetector(NET, combine="fisher"),
    "Perturbed, network": PerturbedDetector(EnergyDetector(NET), 0.1),
    "Conformal, Transforms, network": ConformalDetector(
        TransformsDetector(EnergyDetector(NET), ["mirror"]), random_state=0
    ),
}
# What is refused, and what the error says.
GAPS = {
    "Conformal, fdr": (("pt2", "onnx"), "false_discovery_control"),
    "Conformal, IsolationForest": (WAYS, r"sklearn\.tree\._tree\.Tree|take one of skood's"),
    "Ensemble, stouffer": (("pt2", "onnx"), "Fit it with one of 'min', 'fisher', 'mean_rank'"),
    "Pipeline, quantiles": (("pt2", "onnx"), "Transform X by it before the graph"),
    "Perturbed, network": (("pt2", "onnx"), r"it differentiates the network\.\nskood\.save"),
}
LOAD = """
import pathlib, sys, warnings
import numpy as np
import skood
from tests.networks import SmallCNN
warnings.simplefilter("ignore")
for file in pathlib.Path(sys.argv[1]).glob("*.safetensors"):
    X = np.load(file.with_suffix(".npy"))
    detector = skood.load(file, SmallCNN() if X.ndim == 4 else None)
    outputs = {"score": detector.score_samples(X), "decision": detector.decision_function(X)}
    np.savez(f"{file}.npz", **outputs)
"""
RUN = """
import pathlib, sys
# Whatever is installed: what imports it fails.
sys.modules["skood"] = None
import numpy as np
import torch
for file in pathlib.Path(sys.argv[1]).glob("*.pt2"):
    X = np.load(file.with_suffix(".npy"))
    outputs = torch.export.load(file).module()(torch.from_numpy(X))
    np.savez(f"{file}.npz", *[output.numpy() for output in outputs])
for file in pathlib.Path(sys.argv[1]).glob("*.onnx"):
    import onnxruntime
    X = np.load(file.with_suffix(".npy"))
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    np.savez(f"{file}.npz", **dict(zip(names, session.run(None, {"X": X}))))
"""


def fitted(estimator):
    """Return a fitted clone, and fresh rows."""
    on_images = "SmallCNN" in repr(estimator)
    rng = np.random.default_rng(0)
    X, y = IRIS
    if on_images:
        X, y = rng.normal(size=(60, 1, 8, 8)).astype(np.float32), np.arange(60) % 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = clone(estimator).fit(X, y)
    return estimator, X[::2] + rng.normal(size=X[::2].shape).astype(X.dtype)


def in_another_process(code, folder):
    """Run a program on a folder."""
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ)


def difference(path, estimator, X):
    """Return how far scores and p-values in a file are from those here, by the largest."""
    found = dict(np.load(path))
    score, decision, *more = found.values()
    expected = estimator.score_samples(X)
    off = np.abs(score - expected).max() / np.abs(expected).max()
    last = estimator
    while hasattr(last, "steps"):
        last = last[-1]
    is_open = isinstance(last, OpenSetClassifier)
    calls = last.detector_ if is_open and not hasattr(estimator, "steps") else estimator
    if is_open and path.suffixes[-2] in (".pt2", ".onnx"):
        labels = more.pop()
        names = np.append(last.classes_, last.unknown_label)
        assert (names[labels] == estimator.predict(X)).all()
    elif not is_open:
        assert (np.where(decision >= 0, 1, -1) == calls.predict(X)).all()
    if more and isinstance(last, ConformalDetector):
        off = max(off, np.abs(more[0] - estimator_p_values(estimator, X)).max())
    return off


def estimator_p_values(estimator, X):
    """Return p-values, of a Pipeline those of its last step."""
    if hasattr(estimator, "steps"):
        return estimator[-1].p_values(estimator[:-1].transform(X))
    return estimator.p_values(X)


def measured(estimators, ways, folder):
    """Return for each name and way the largest difference of scores, or an error.

    Parameters
    ----------
    estimators : dict of str to estimator
    ways : dict of str to tuple of str
        Those of `WAYS` that are tried, by the names of estimators.
    folder : Path
        For the files.
    """
    cells, kept = {}, {}
    for number, (name, estimator) in enumerate(estimators.items()):
        estimator, X = kept[name] = fitted(estimator)
        path = folder / f"{number}.safetensors"
        np.save(path.with_suffix(".npy"), X)
        for way in ways[name]:
            suffix = {"pt2": ".pt2", "onnx": ".onnx"}.get(way, ".safetensors")
            try:
                if suffix == ".safetensors":
                    skood.save(estimator, path, include_model=True)
                else:
                    format = "onnx" if way == "onnx" else "torch"
                    skood.export(estimator, path.with_suffix(suffix), X[:2], format=format)
            except (TypeError, ValueError) as error:
                cells[name, way] = error
    in_another_process(LOAD, folder)
    in_another_process(RUN, folder)
    for number, (name, (estimator, X)) in enumerate(kept.items()):
        for way in ways[name]:
            path = folder / f"{number}.safetensors"
            if (name, way) in cells:
                continue
            if way == "load":
                twin = skood.load(path, SmallCNN() if X.ndim == 4 else None)
                np.testing.assert_array_equal(twin.predict(X), estimator.predict(X))
                off = np.abs(twin.score_samples(X) - estimator.score_samples(X)).max()
                cells[name, way] = off / np.abs(estimator.score_samples(X)).max()
            else:
                suffix = ".safetensors" if way == "load elsewhere" else f".{way}"
                cells[name, way] = difference(
                    pathlib.Path(f"{path.with_suffix(suffix)}.npz"), estimator, X
                )
    return cells


def all_detectors():
    """Return every detector with its defaults, on a network where it can be."""
    from tests.registry import DEFAULTS, IN_NETWORKS

    found = {}
    for detector in (*IN_NETWORKS, *DEFAULTS):
        network = detector in IN_NETWORKS
        name = f"{type(detector).__name__}{', network' if network else ''}"
        found.setdefault(name, clone(detector).set_params(**({"model": NET} if network else {})))
    return found


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detectors", action="store_true", help="of every detector")
    estimators = all_detectors() if parser.parse_args().detectors else ESTIMATORS
    with tempfile.TemporaryDirectory() as folder:
        cells = measured(estimators, dict.fromkeys(estimators, WAYS), pathlib.Path(folder))
    print(f"| estimator | {' | '.join(WAYS)} |\n|---|---|---|---|---|")
    notes = []
    for name in estimators:
        row = []
        for way in WAYS:
            cell = cells[name, way]
            if isinstance(cell, Exception):
                if str(cell) not in notes:
                    notes.append(str(cell))
                row.append(f"error {notes.index(str(cell)) + 1}")
            else:
                row.append(f"{cell:.0e}" if cell else "0")
        print(f"| {name} | {' | '.join(row)} |")
    for number, note in enumerate(notes, 1):
        print(f"\n{number}. {' '.join(note.split())}")


if __name__ == "__main__":
    main()
