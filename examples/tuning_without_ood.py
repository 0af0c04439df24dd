"""Choose k, percentile and reg_covar without one OOD row, and count what that costs.

`LeaveClassesOut` holds out each of the six known digits in turn, and the value that best tells
the held-out digits from the rest is taken. Its regret is what the best value of the grid, as the
true OOD rows show it in hindsight, has more in AUROC.

``python examples/tuning_without_ood.py --seeds 10`` prints the table of docs/tuning.md.
"""

import argparse
import tempfile
import warnings

import numpy as np
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import nn

from skood import ASHDetector, FeatureExtractor, GMMDetector, NNGuideDetector
from skood.benchmark import DigitsNetwork
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score
from skood.model_selection import LeaveClassesOut

GRIDS = [
    (NNGuideDetector(), "k", [1, 2, 5, 10, 20, 50, 100]),
    (ASHDetector(), "percentile", [0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9]),
    (GMMDetector(), "reg_covar", ["auto", 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
]
N_EPOCHS = 12


def make_network():
    """Make a skorch net; who is given it trains a clone in each fit."""
    return NeuralNetClassifier(
        DigitsNetwork,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=0.5,
        lr=0.01,
        batch_size=64,
        max_epochs=N_EPOCHS,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[LRScheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=N_EPOCHS)],
        verbose=0,
    )


def embed_by_pca(seed):
    """Return data and an embedding that uses no labels."""
    return load_digits_ood(random_state=seed, as_images=False), PCA(32, random_state=seed)


def embed_by_refitted_cnn(seed):
    """Return data and an embedding by a network that each split trains anew."""
    return load_digits_ood(random_state=seed), FeatureExtractor(make_network())


def embed_by_fixed_cnn(seed):
    """Return data and an embedding by a network that has learned all six classes."""
    data = load_digits_ood(random_state=seed)
    net = make_network().fit(data.X_train, data.y_train)
    return data, FeatureExtractor(net.module_)


EMBEDDINGS = {
    "PCA": embed_by_pca,
    "CNN, refitted": embed_by_refitted_cnn,
    "CNN, fixed": embed_by_fixed_cnn,
}


def true_aurocs(pipeline, data):
    """Fit on all classes; return the AUROC on near, and the mean over the far OOD sets."""
    pipeline.fit(data.X_train, data.y_train)
    inside = pipeline.score_samples(data.X_test)
    aurocs = {}
    for kind, X in data.ood.items():
        y = np.repeat([1, -1], [len(inside), len(X)])
        aurocs[kind] = auroc_score(y, np.r_[inside, pipeline.score_samples(X)])
    return aurocs.pop("near"), np.mean(list(aurocs.values()))


def tune(detector, name, values, features, data, seed, memory):
    """Return the AUROCs, (near, far), of the default, the tuned and the best value."""
    pipeline = Pipeline([("features", features), ("ood", clone(detector))], memory=memory)
    cv = LeaveClassesOut(6, random_state=seed)
    search = GridSearchCV(pipeline, {f"ood__{name}": values}, cv=cv, refit=False)
    search.fit(data.X_train, data.y_train)
    aurocs = np.array(
        [true_aurocs(pipeline.set_params(**p), data) for p in search.cv_results_["params"]]
    )
    default = aurocs[values.index(detector.get_params()[name])]
    return [default, aurocs[search.best_index_], aurocs.max(0)]


def print_table(results):
    """Print the means over seeds, and regrets: the best value less another."""
    print(f"{'':24}  near-OOD AUROC             far-OOD AUROC")
    print(f"{'':24}  default  tuned  best  worse  default  tuned  best")
    for embedding, aurocs in results.items():
        for number, (_, name, _) in enumerate(GRIDS):
            near, far = aurocs[:, number].mean(0).T
            worse = np.mean(aurocs[:, number, 1, 0] < aurocs[:, number, 0, 0])
            cells = [f"{value:.3f}" for value in near] + [f"{worse:.0%}".rjust(5)]
            cells += [f"{value:.3f}" for value in far]
            print(f"{embedding + ', ' + name:24}", *cells, sep="  ")
    for embedding, aurocs in results.items():
        regrets = aurocs[:, :, 2:] - aurocs[:, :, :2]
        (near, far), (near_tuned, far_tuned) = regrets.mean((0, 1))
        print(
            f"{embedding}: near-OOD regret of the defaults {near:.4f}, tuned {near_tuned:.4f}; "
            f"far {far:.4f}, {far_tuned:.4f}"
        )


def main():
    """Tune on each embedding with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    n_seeds = parser.parse_args().seeds
    warnings.filterwarnings("ignore", "The features are signed")
    results = {}
    for embedding, make in EMBEDDINGS.items():
        runs = []
        for seed in range(n_seeds):
            torch.manual_seed(seed)
            data, features = make(seed)
            # The memory keeps the features of a split for all values: one network a split.
            with tempfile.TemporaryDirectory() as memory:
                runs.append([tune(*grid, features, data, seed, memory) for grid in GRIDS])
        results[embedding] = np.array(runs)
    print_table(results)


if __name__ == "__main__":
    main()
