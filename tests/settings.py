"""Other values of the parameters that matter most: ``python -m tests.settings FOLDER``.

On features of the tasks of ``python -m tests.evidence``, which says what the folder holds. Prints
the mean AUROC over OOD sets for each setting and task, and how much better than the default another
setting would have been on the mean, had it been known.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from skood import (
    ASHDetector,
    BATSDetector,
    DICEDetector,
    GMMDetector,
    KNNDetector,
    MahalanobisDetector,
    NACDetector,
    NNGuideDetector,
    ReActDetector,
    RelationDetector,
    ResidualDetector,
    SCALEDetector,
    ViMDetector,
    VRADetector,
)
from tests import evidence
from tests.claims import aurocs

TASKS = (
    "features", "compressed_1k", "compressed", "compressed_50k", "texts", "digits", "perceptron",
    "components",
)  # fmt: skip
PERCENTILES = (0.5, 0.65, 0.8, 0.85, 0.9, 0.95)


def within_variance(X, y):
    """Return the mean variance of features within classes."""
    rows = np.asarray(X, dtype=np.float64)
    labels = np.unique(y, return_inverse=True)[1]
    means = np.stack([rows[labels == k].mean(0) for k in range(labels.max() + 1)])
    return float((rows - means[labels]).var(0).mean())


# By class: a parameter and its values.
GRIDS = {
    KNNDetector: {"k": (1, 2, 5, 10, 20, 50), "normalize": (False,)},
    NNGuideDetector: {"k": (1, 2, 5, 10, 20, 50)},
    ViMDetector: {"n_components": (5, 10, 0.5, 0.8, 0.9, 0.95)},
    ResidualDetector: {"n_components": (5, 10, 0.5, 0.8, 0.9, 0.95)},
    ASHDetector: {"percentile": PERCENTILES},
    SCALEDetector: {"percentile": PERCENTILES},
    ReActDetector: {"percentile": (0.7, 0.8, 0.85, 0.9, 0.95, 0.99)},
    VRADetector: {"lower": (0.1, 0.3, 0.5, 0.6, 0.7), "upper": (0.8, 0.9, 0.99)},
    DICEDetector: {"percentile": (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)},
    BATSDetector: {"n_std": (0.5, 1.05, 2, 3)},
    RelationDetector: {"power": (1, 2, 4, 8)},
    NACDetector: {"o_star": (1, 10, 50, 200), "n_bins": (20, 50, 200)},
}
RIDGES = (0.001, 0.01, 0.1, 1)


def settings(X, y):
    """Return detectors without a model, by class and setting."""
    by_class = {
        cls.__name__: {"default": cls()}
        | {f"{name}={value}": cls(**{name: value}) for name in grid for value in grid[name]}
        for cls, grid in GRIDS.items()
    }
    ridge, unit = within_variance(X, y), within_variance(Normalizer().transform(X), y)
    gaussians, distances = {"default": GMMDetector()}, {"default": MahalanobisDetector()}
    for share in RIDGES:
        for kind in ("full", "tied", "diag", "spherical"):
            name = f"{kind}, ridge {share} of the variance"
            gaussians[name] = GMMDetector(covariance_type=kind, reg_covar=share * ridge)
            gaussians[f"unit rows, {name}"] = make_pipeline(
                Normalizer(), GMMDetector(covariance_type=kind, reg_covar=share * unit)
            )
        name = f"ridge {share} of the variance"
        distances[name] = MahalanobisDetector(reg_covar=share * unit)
        distances[f"relative, {name}"] = MahalanobisDetector(relative=True, reg_covar=share * unit)
        distances[f"not normalised, {name}"] = MahalanobisDetector(
            normalize=False, reg_covar=share * ridge
        )
    return {"GMMDetector": gaussians, "MahalanobisDetector": distances} | by_class


def mean_auroc(detector, task):
    """Return the mean AUROC over OOD sets of a detector, or None where it does not apply."""
    head, X, y, fresh, sets = task
    detector = clone(detector)
    last = detector[-1] if hasattr(detector, "steps") else detector
    if not hasattr(detector, "steps"):
        last.set_params(model=head)
    last.set_params(**{name: 0 for name in last.get_params() if name == "random_state"})
    try:
        return float(np.mean(aurocs(detector.fit(X, y).score_samples, fresh, sets)))
    except (TypeError, ValueError):
        return None


def run(name, task, folder):
    """Return the mean AUROC of all settings of a class on a task."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = evidence.as_features(evidence.TASKS[task](folder))
    of_class = settings(rows[1], rows[2])[name]
    return {setting: mean_auroc(detector, rows) for setting, detector in of_class.items()}


def overall(of_tasks):
    """Return the mean over tasks of one setting, of the compressed ones together as one."""
    found = {task: value for task, value in of_tasks.items() if value is not None}
    alike = [value for task, value in found.items() if task.startswith("compressed")]
    values = [value for task, value in found.items() if not task.startswith("compressed")]
    return float(np.mean([*values, *([np.mean(alike)] if alike else [])]))


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.settings", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the data lies")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    names = ["GMMDetector", "MahalanobisDetector", *(cls.__name__ for cls in GRIDS)]
    pairs = [(name, task) for task in TASKS for name in names]
    found = Parallel(options.jobs)(delayed(run)(*pair, options.folder) for pair in pairs)
    report = {name: {} for name in names}
    for (name, task), of_task in zip(pairs, found, strict=True):
        for setting, value in of_task.items():
            report[name].setdefault(setting, {})[task] = value
    for name, of_class in report.items():
        means = {setting: overall(of_tasks) for setting, of_tasks in of_class.items()}
        print(f"\n{name}")
        for setting in sorted(means, key=lambda setting: -means[setting]):
            cells = ("  -  " if v is None else f"{v:.3f}" for v in of_class[setting].values())
            print(f"  {setting:50} {means[setting]:.3f}  {' '.join(cells)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
