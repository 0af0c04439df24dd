"""Every detector with its defaults on real data: ``python -m tests.evidence FOLDER``.

The folder holds

- ``cifar10_resnet20.th``: weights of a ResNet-20 for CIFAR-10, under "state_dict";
- ``cifar10_images.npz``: uint8 images (n, 32, 32, 3) in ``train``, ``test``, ``ood_<name>``, and
  labels in ``train_y`` and ``test_y``;
- ``cifar10_resnet18.pth``: what ``python -m tests.training`` writes, for the task resnet18 alone;
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
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.decomposition import PCA
from skorch import NeuralNetClassifier
from torch import nn

import skood
from skood import EnergyDetector, FeatureExtractor, MahalanobisDetector
from skood.base import BaseDetector
from skood.benchmark import train_digits_network
from skood.benchmark.results import measure, warm_up
from skood.datasets import load_digits_ood
from skood.metrics import confidence_interval
from skood.metrics.resampling import placements
from tests import training
from tests.networks import MLP, CIFARResNet20

N_TEXTS = 1653


def read(path):
    """Return the arrays of a file, float16 as float32."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in arrays.items()}


def with_weights(network, path):
    """Return a network with the weights of a file."""
    weights = torch.load(path, map_location="cpu")["state_dict"]
    network.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
    return network.eval()


def normalised(images):
    """Return images as the networks were trained on them, (n, 3, 32, 32)."""
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return training.normalised(images).contiguous().numpy()


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
    return with_weights(CIFARResNet20(), folder / "cifar10_resnet20.th"), *cifar10(folder)


def resnet18(folder):
    """Half of these images through a ResNet-18, which has seen the rows of fit compressed."""
    X, y, fresh, sets = cifar10(folder)
    network = with_weights(training.resnet18(), folder / "cifar10_resnet18.pth")
    sets = {name: rows[:500] for name, rows in sets.items()}
    return network, X[:1000], y[:1000], fresh[:500], sets


def cifar10(folder):
    """Return images and labels to fit, fresh images, and OOD sets."""
    arrays = read(folder / "cifar10_images.npz")
    arrays["ood_noise"] = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3)).astype("u1")
    train, test = normalised(arrays["train"]), normalised(arrays["test"])
    sets = {name: normalised(rows) for name, rows in ood_sets(arrays).items()}
    return train, arrays["train_y"], test, sets


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


def compressed_1k(folder):
    """Features of 1000 compressed images."""
    return compressed(folder, 1000)


def compressed_50k(folder):
    """Features of 50 000 compressed images."""
    return compressed(folder, 50_000)


@cache
def digits(_):
    """Digits 0 to 5 through a small network; the others, textures and noise are OOD."""
    data = load_digits_ood()
    network = train_digits_network(data.X_train, data.y_train, seed=0).module_
    return network, data.X_train, data.y_train, data.X_test, data.ood


@cache
def perceptron(_):
    """Digits 0 to 5 as 64 numbers, through one hidden layer of 128."""
    data = load_digits_ood(as_images=False)
    torch.manual_seed(0)
    network = NeuralNetClassifier(
        MLP(64, 128, 6), optimizer=torch.optim.Adam, lr=0.003, max_epochs=60, train_split=None,
        verbose=0,
    )  # fmt: skip
    network.fit(data.X_train.astype(np.float32), data.y_train)
    ood = {name: rows.astype(np.float32) for name, rows in data.ood.items()}
    X, fresh = (rows.astype(np.float32) for rows in (data.X_train, data.X_test))
    return network.module_, X, data.y_train, fresh, ood


@cache
def components(_):
    """Principal components of the same digits, 20 of them, without a network."""
    data = load_digits_ood(as_images=False)
    pca = PCA(20, random_state=0).fit(data.X_train)
    ood = {name: pca.transform(rows) for name, rows in data.ood.items()}
    return None, pca.transform(data.X_train), data.y_train, pca.transform(data.X_test), ood


MAIN = (images, features, compressed, texts, digits, perceptron, components)
# One of three sizes counts in the mean over tasks, and of two networks for the same images one.
TASKS = {task.__name__: task for task in (*MAIN, compressed_1k, compressed_50k, resnet18)}
N_FRESH = 3000


def as_features(task):
    """Return a task with what enters the last layer for X, that layer, and some fresh rows."""
    network, X, y, fresh, sets = task
    if network is not None and not isinstance(network, nn.Linear):
        extractor = FeatureExtractor(network).fit(X)
        X, fresh = extractor.transform(X), extractor.transform(fresh)
        sets = {name: extractor.transform(rows) for name, rows in sets.items()}
        network = extractor.head
    return network, X, y, fresh[:N_FRESH], {name: rows[:N_FRESH] for name, rows in sets.items()}


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


def error_of_mean(result):
    """Return the standard error of the mean AUROC over OOD sets, which share their fresh rows."""
    counts = [placements(*labels_and_scores(result, kind)) for kind in result.ood_scores]
    n_inside, sizes = len(result.scores), [len(rows) for _, rows in counts]
    shares = np.mean([c[0] / (2 * n) for c, n in zip(counts, sizes, strict=True)], axis=0)
    parts = [np.var(c[1] / (2 * n_inside), ddof=1) / len(c[1]) for c in counts]
    variance = np.var(shares, ddof=1) / n_inside + sum(parts) / len(counts) ** 2
    return float(np.sqrt(variance))


def labels_and_scores(result, kind):
    """Return which rows are in-distribution, and scores."""
    labels, scores = result.labelled(kind)
    return labels == 1, scores


def figures_of(detector, task):
    """Return the figures of a detector on a task, or why there are none."""
    _, X, y, fresh, sets = task
    try:
        warm_up(detector, X, y)
        result = measure(type(detector).__name__, detector, X, y, fresh, sets)
    except (TypeError, ValueError) as error:
        return {"error": str(error).splitlines()[0]}
    intervals = {
        kind: confidence_interval(["auroc", "fpr95"], *result.labelled(kind), random_state=0)
        for kind in sets
    }
    return {
        "auroc": {kind: values["AUROC"] for kind, values in result.metrics.items()},
        "auroc_interval": {kind: of_kind["auroc"] for kind, of_kind in intervals.items()},
        "fpr95": {kind: values["FPR95"] for kind, values in result.metrics.items()},
        "fpr95_interval": {kind: of_kind["fpr95"] for kind, of_kind in intervals.items()},
        "error_of_mean_auroc": error_of_mean(result),
        "false_alarms": result.false_alarms,
        "fit_seconds": result.fit_seconds,
        "score_seconds": result.score_seconds,
    }


def run(detector, task, folder):
    """Return the figures of a detector class with its defaults on a task, both by name."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    task = TASKS[task](folder)
    return figures_of(made(getattr(skood, detector), task[0]), task)


def of_main_tasks(tasks):
    """Return the mean AUROC over OOD sets and tasks of a detector, and its standard error."""
    tasks = [tasks.get(task.__name__, {}) for task in MAIN]
    if not all("auroc" in task for task in tasks):
        return float("nan"), float("nan")
    means = [np.mean(list(task["auroc"].values())) for task in tasks]
    errors = [task.get("error_of_mean_auroc", np.nan) for task in tasks]
    return float(np.mean(means)), float(np.linalg.norm(errors) / len(tasks))


def line_of(name, figures):
    """Return what is printed of a detector on a task."""
    if "error" in figures:
        return f"  {name:30} {figures['error']:.90}"
    aurocs = " ".join(f"{value:.3f}" for value in figures["auroc"].values())
    seconds = f"{figures['fit_seconds']:.2f} + {figures['score_seconds']:.2f} s"
    return f"  {name:30} {aurocs}   false alarms {figures['false_alarms']:6.1%}   {seconds}"


def plot(report, path):
    """Draw the means over tasks, with 95 % intervals, and those of each task."""
    from matplotlib.figure import Figure

    means = {name: of_main_tasks(tasks) for name, tasks in report.items()}
    names = sorted((n for n in means if means[n][0] == means[n][0]), key=lambda n: means[n][0])
    figure = Figure(figsize=(8, 0.2 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    places = range(len(names))
    for task in MAIN:
        of_task = [np.mean(list(report[n][task.__name__]["auroc"].values())) for n in names]
        axes.scatter(of_task, places, s=14, alpha=0.55, label=task.__name__)
    middle, errors = np.transpose([means[name] for name in names])
    axes.errorbar(middle, places, xerr=1.96 * errors, fmt="D", color="black", ms=4, label="mean")
    axes.set_yticks(places, [name.removesuffix("Detector") for name in names], fontsize=8)
    axes.set(xlabel="AUROC, mean over OOD sets", ylim=(-0.7, len(names) - 0.3))
    axes.grid(alpha=0.3)
    axes.axvline(0.5, color="grey", lw=1, ls=":")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.evidence", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the data lies")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK",
                        help=", ".join(TASKS))  # fmt: skip
    parser.add_argument("--detectors", nargs="+", metavar="CLASS", help="all if left out")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each (1)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="where to write the figures, beside those that are there")  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw the means over tasks of what --json holds")  # fmt: skip
    options = parser.parse_args()
    names = [d.__name__ for d in detectors()]
    names = [name for name in names if name in (options.detectors or names)]
    report = {}
    if options.json and options.json.exists():
        report = json.loads(options.json.read_text())
    pairs = [(name, task) for task in options.tasks for name in names]
    found = Parallel(options.jobs, return_as="generator")(
        delayed(run)(*pair, options.folder) for pair in pairs
    )
    for (name, task), figures in zip(pairs, found, strict=True):
        if name == names[0]:
            print(f"\n{task}: {TASKS[task].__doc__}", flush=True)
        report.setdefault(name, {})[task] = figures
        print(line_of(name, figures), flush=True)
        if options.json and name == names[-1]:
            options.json.write_text(json.dumps(dict(sorted(report.items())), indent=1) + "\n")
    means = {name: of_main_tasks(report[name]) for name in report}
    print("\nmean over the sets of a task, and over tasks, with its standard error")
    for name in sorted(means, key=lambda name: -means[name][0]):
        print(f"  {name:30} {means[name][0]:.3f} ± {means[name][1]:.3f}")
    if options.plot:
        plot(report, options.plot)


if __name__ == "__main__":
    # Imported by its name, so that other processes find its functions.
    from tests import evidence

    evidence.main()
