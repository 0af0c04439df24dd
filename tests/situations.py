"""Detectors where labels, rows or the network are missing: ``python -m tests.situations FOLDER``.

What `skood.recommend` goes by, beside the figures of ``python -m tests.evidence``, which says what
the folder holds. Writes the mean AUROC over OOD sets for each detector, task and situation.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from skood import (
    ActSubDetector,
    CADRefDetector,
    CosineDetector,
    EnergyDetector,
    GMMDetector,
    KNNDetector,
    MahalanobisDetector,
    NNGuideDetector,
    PNMLDetector,
    ResidualDetector,
    ViMDetector,
)
from skood.datasets import load_digits_ood
from tests.claims import aurocs, principal_components, small_tasks
from tests.evidence import as_features, compressed, digits, features, texts

DETECTORS = [
    ActSubDetector(),
    CADRefDetector(),
    CosineDetector(),
    EnergyDetector(),
    GMMDetector(),
    GMMDetector(normalize=True),
    KNNDetector(),
    KNNDetector(k=1),
    KNNDetector(k=1, normalize=False),
    MahalanobisDetector(),
    NNGuideDetector(random_state=0),
    PNMLDetector(random_state=0),
    ResidualDetector(random_state=0),
    ViMDetector(random_state=0),
]


def name_of(detector):
    """Return the call that makes a detector without a model, without what makes it reproducible."""
    text = repr(detector).replace("random_state=0", "").replace(", )", ")")
    return text.replace("model=None, ", "")


def few(X, y, n_rows):
    """Return as many rows of each class, and their labels."""
    rng = np.random.default_rng(0)
    parts = [rng.permutation(np.flatnonzero(y == label))[:n_rows] for label in np.unique(y)]
    return X[np.concatenate(parts)], y[np.concatenate(parts)]


def of_networks(folder):
    """Return tasks on features: a head, rows, labels, fresh rows, OOD sets."""
    return {task.__name__: as_features(task(folder)) for task in (features, compressed, digits)}


def tables():
    """Return tasks without a network: tables of scikit-learn, pixels, and principal components."""
    tasks = {f"table {i}": (None, *task) for i, task in enumerate(small_tasks())}
    data = load_digits_ood(as_images=False)
    tasks["pixels"] = None, data.X_train, data.y_train, data.X_test, data.ood
    for n_components in (16, 32):
        tasks[f"{n_components} components"] = None, *principal_components(0, n_components)
    return tasks


def situations(folder):
    """Return tasks by situation."""
    heads = of_networks(folder)
    unit = {"texts": texts(folder)}
    others = {name: (None, *task[1:]) for name, task in heads.items()}

    def unlabelled(tasks):
        return {name: (head, X, None, *rest) for name, (head, X, _, *rest) in tasks.items()}

    def with_few(tasks, n_rows=10):
        return {
            name: (head, *few(X, y, n_rows), *rest) for name, (head, X, y, *rest) in tasks.items()
        }

    return {
        "embeddings": others,
        "embeddings of length 1": unit,
        "embeddings, 10 rows a class": with_few(others | unit),
        "embeddings, no labels": unlabelled(others | unit),
        "head, 10 rows a class": with_few(heads),
        "head, no labels": unlabelled(heads),
        "tables": tables(),
        "tables, no labels": unlabelled(tables()),
    }


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.situations", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the data lies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    report = {}
    for situation, tasks in situations(options.folder).items():
        print(f"\n{situation}: {', '.join(tasks)}", flush=True)
        report[situation] = {}
        for detector in DETECTORS:
            values = []
            for head, X, y, fresh, ood in tasks.values():
                detector.set_params(model=head).fit(X, y)
                values.append(np.mean(aurocs(detector.score_samples, fresh, ood)))
            name = name_of(detector.set_params(model=None))
            report[situation][name] = round(float(np.mean(values)), 4)
            print(f"  {name:40} {np.mean(values):.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
