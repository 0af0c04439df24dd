"""Every detector with its defaults on real data: ``python -m tests.evidence FOLDER``.

The folder holds

- ``cifar10_resnet20.th``: weights of a ResNet-20 for CIFAR-10, under "state_dict";
- ``cifar10_images.npz``: uint8 images (n, 32, 32, 3) in ``train``, ``test``, ``ood_<name>``, and
  labels in ``train_y`` and ``test_y``;
- ``cifar10_resnet20_features.npz``: what enters the network's last layer for other rows in the same
  entries, and that layer in ``head_weight`` and ``head_bias``;
- ``cifar10_jpeg_resnet20_features.npz``: the same of compressed images, for many rows;
- ``text_minilm_features.npz``: sentence embeddings in ``features``, and in ``name`` the source of
  each: ``near:...`` and ``numpy/scipy`` are out-of-distribution.

The digits of scikit-learn need no file.
"""

import argparse
import inspect
import json
import time
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

import skood
from skood import EnergyDetector, MahalanobisDetector
from skood.base import BaseDetector
from skood.benchmark import train_digits_network
from skood.benchmark.results import measure, warm_up
from skood.datasets import load_digits_ood
from tests.networks import CIFARResNet20

# Of the network's training data, a channel.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_TEXTS = 1653


def read(path):
    """Return the arrays of a file, float16 as float32."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in arrays.items()}


def cifar_network(folder):
    """Return the ResNet-20 with its weights."""
    weights = torch.load(folder / "cifar10_resnet20.th", map_location="cpu")["state_dict"]
    network = CIFARResNet20()
    network.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
    return network.eval()


def normalised(images):
    """Return images as the network was trained on them, (n, 3, 32, 32)."""
    images = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def head(arrays):
    """Return the last layer of the network."""
    layer = nn.Linear(*arrays["head_weight"].shape[::-1])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(arrays["head_weight"]))
        layer.bias.copy_(torch.from_numpy(arrays["head_bias"]))
    return layer


def ood_sets(arrays):
    """Return the OOD sets of a file, by name."""
    return {n[4:]: rows for n, rows in arrays.items() if n.startswith("ood_")}


# Tasks: a network or None, rows and labels to fit, fresh rows, OOD sets.


def images(folder):
    """CIFAR-10 images through the network, which has seen the rows of fit."""
    arrays = read(folder / "cifar10_images.npz")
    arrays["ood_noise"] = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3)).astype("u1")
    train, test = normalised(arrays["train"]), normalised(arrays["test"])
    sets = {name: normalised(rows) for name, rows in ood_sets(arrays).items()}
    return cifar_network(folder), train, arrays["train_y"], test, sets


def features(folder):
    """Features of CIFAR-10 images, in front of the network's head."""
    arrays = read(folder / "cifar10_resnet20_features.npz")
    sets = ood_sets(arrays)
    return head(arrays), arrays["train"], arrays["train_y"], arrays["test"], sets


def compressed(folder, n_rows=10_000):
    """Features of compressed CIFAR-10 images, by a network trained on others."""
    arrays = read(folder / "cifar10_jpeg_resnet20_features.npz")
    weights = read(folder / "cifar10_resnet20_features.npz")
    # The file is sorted by class.
    rows = np.random.default_rng(0).permutation(len(arrays["train"]))[:n_rows]
    train, y = arrays["train"][rows], arrays["train_y"][rows]
    return head(weights), train, y, arrays["test"], ood_sets(arrays)


def texts(folder):
    """Sentence embeddings without a network."""
    arrays = read(folder / "text_minilm_features.npz")
    names, rows = arrays["name"], arrays["features"]
    near = np.char.startswith(names, "near:")
    far = names == "numpy/scipy"
    y = np.unique(names, return_inverse=True)[1]
    known = np.random.default_rng(0).permutation(np.flatnonzero(~near & ~far))
    train, test = known[:N_TEXTS], known[N_TEXTS:]
    return None, rows[train], y[train], rows[test], {"near": rows[near], "far": rows[far]}


@cache
def digits(_):
    """Digits 0 to 5 through a small network; the others, textures and noise are OOD."""
    data = load_digits_ood()
    network = train_digits_network(data.X_train, data.y_train, seed=0).module_
    return network, data.X_train, data.y_train, data.X_test, data.ood


TASKS = {task.__name__: task for task in (images, features, compressed, texts, digits)}
# They need more than a network and labels: negative labels, and several networks.
OTHERS = {"NegLabelDetector", "DeepEnsembleDetector"}
# What has no default, or none that fits all of these. Mirror images are for the first task alone.
SETTINGS = {
    "MCDropoutDetector": {"rate": 0.5},
    "PerturbedDetector": {"detector": MahalanobisDetector(), "epsilon": 0.02},
    "TransformsDetector": {"detector": EnergyDetector(), "transforms": ["mirror"]},
}


def detectors():
    """Return the classes of all detectors that a network and labels are enough for."""
    named = {name: getattr(skood, name) for name in skood.__all__ if name not in OTHERS}
    classes = (member for member in named.values() if inspect.isclass(member))
    return [member for member in classes if issubclass(member, BaseDetector)]


def made(detector, network):
    """Return a detector of a class with its defaults, reproducible."""
    detector = detector(model=network, **SETTINGS.get(detector.__name__, {}))
    return detector.set_params(**{n: 0 for n in detector.get_params() if n == "random_state"})


def run(detector, task):
    """Return the figures of a detector class on a task, or why there are none."""
    network, X, y, fresh, sets = task
    detector = made(detector, network)
    try:
        warm_up(detector, X, y)
        result = measure(type(detector).__name__, detector, X, y, fresh, sets)
    except (TypeError, ValueError) as error:
        return {"error": str(error).splitlines()[0]}
    return {
        "auroc": {kind: values["AUROC"] for kind, values in result.metrics.items()},
        "fpr95": {kind: values["FPR95"] for kind, values in result.metrics.items()},
        "false_alarms": result.false_alarms,
        "fit_seconds": result.fit_seconds,
        "score_seconds": result.score_seconds,
    }


def mean_auroc(tasks):
    """Return the mean over tasks of the mean over their OOD sets."""
    means = [np.mean(list(t["auroc"].values())) for t in tasks.values() if "auroc" in t]
    return float(np.mean(means)) if len(means) == len(tasks) else float("nan")


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.evidence", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the data lies")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK",
                        help=", ".join(TASKS))  # fmt: skip
    parser.add_argument("--detectors", nargs="+", metavar="CLASS", help="all if left out")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where to write the figures, beside those that are there",
    )
    options = parser.parse_args()
    chosen = [d for d in detectors() if d.__name__ in (options.detectors or [d.__name__])]
    report = {}
    if options.json and options.json.exists():
        report = json.loads(options.json.read_text())
    warnings.simplefilter("ignore")
    for name in options.tasks:
        task = TASKS[name](options.folder)
        print(f"\n{name}: {TASKS[name].__doc__} OOD: {', '.join(task[4])}", flush=True)
        for detector in chosen:
            start = time.perf_counter()
            figures = run(detector, task)
            report.setdefault(detector.__name__, {})[name] = figures
            if "error" in figures:
                print(f"  {detector.__name__:30} {figures['error']:.90}", flush=True)
                continue
            aurocs = " ".join(f"{value:.3f}" for value in figures["auroc"].values())
            print(
                f"  {detector.__name__:30} {aurocs}   false alarms "
                f"{figures['false_alarms']:6.1%}   {time.perf_counter() - start:.1f} s",
                flush=True,
            )
    print("\nmean over the sets of a task, and over tasks")
    for name in sorted(report, key=lambda name: -mean_auroc(report[name])):
        print(f"  {name:30} {mean_auroc(report[name]):.3f}")
    if options.json:
        report = dict(sorted(report.items()))
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
