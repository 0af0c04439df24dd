"""Figures of the documentation on the data of `tests.evidence`.

``python -m tests.claims_on_real_data FOLDER`` prints them.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

from skood import (
    ASHDetector,
    EnergyDetector,
    FeatureExtractor,
    GMMDetector,
    KNNDetector,
    MahalanobisDetector,
    NNGuideDetector,
    ReActDetector,
    ViMDetector,
)
from skood.calibration import ConformalDetector
from skood.model_selection import FitOnInliers, KeepUnlessBetter, LeaveClassesOut
from tests.claims import aurocs, false_alarms, span
from tests.evidence import compressed, digits, features, images, texts

N_SEEDS = 5
GRIDS = [
    (KNNDetector(), "k", [1, 2, 5, 10, 20, 50]),
    (MahalanobisDetector(), "normalize", [0.0, 0.5, True, 1.5]),
    (ASHDetector(random_state=0), "percentile", [0.0, 0.2, 0.35, 0.65, 0.9]),
    (GMMDetector(), "reg_covar", ["auto", 1e-4, 1e-2, 1.0]),
]
DETECTORS = [
    EnergyDetector(),
    GMMDetector(),
    KNNDetector(),
    MahalanobisDetector(),
    NNGuideDetector(random_state=0),
    ViMDetector(),
]


def tuning(folder):
    """AUROC on OOD rows after a search on 600 rows by `LeaveClassesOut`, less the default's."""
    tasks = {
        "CIFAR-10": features(folder),
        "CIFAR-10, compressed": compressed(folder, 50_000),
        "text": texts(folder),
    }
    gains = []
    for detector, name, values in GRIDS:
        for what, (head, X, y, fresh, ood) in tasks.items():
            # Without the head, ASH alone has a network that knows the classes.
            own = clone(detector).set_params(model=head if name == "percentile" else None)
            default = values.index(own.get_params()[name])
            ood = {kind: rows[:1000] for kind, rows in ood.items()}
            of_task = []
            for seed in range(N_SEEDS):
                rows = np.random.default_rng(seed).permutation(len(X))[:600]
                true = []
                for value in values:
                    fitted = clone(own).set_params(**{name: value}).fit(X[rows], y[rows])
                    true.append(np.mean(aurocs(fitted.score_samples, fresh[:1000], ood)))
                cv = LeaveClassesOut(8, random_state=seed)
                search = GridSearchCV(own, {name: values}, cv=cv, refit=False)
                results = search.fit(X[rows], y[rows]).cv_results_
                taken = results["mean_test_score"].argmax(), KeepUnlessBetter(own)(results)
                of_task.append([true[index] - true[default] for index in taken])
            gains += of_task
            plain, kept = (f"{min(v):+.3f} to {max(v):+.3f}" for v in zip(*of_task, strict=True))
            what = f"{type(own).__name__}, {what}"
            yield what, f"best mean {plain}, KeepUnlessBetter {kept}"
    for name, values in zip(("best mean", "KeepUnlessBetter"), np.transpose(gains), strict=True):
        figures = f"worst {values.min():+.4f}, mean {values.mean():+.4f}"
        yield f"{len(values)} searches, {name}", figures


def seen_rows(folder):
    """Let a network see the rows of fit: false alarms at 5 %, and after each cure."""
    network, X, y, fresh, _ = images(folder)
    X, fresh = (FeatureExtractor(network).fit_transform(rows) for rows in (X, fresh))
    order = np.random.default_rng(0).permutation(len(fresh))
    held_out, fresh = fresh[order[:500]], fresh[order[500:]]
    shares, n_told = [], 0
    for detector in [*DETECTORS, ASHDetector(random_state=0), ReActDetector()]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted = clone(detector).set_params(model=network.linear)
            fitted.fit(X, y, X_val=held_out)
        told = [str(w.message) for w in caught if "X_val" in str(w.message)]
        n_told += len(told)
        plain = false_alarms(fitted, fresh)
        conformal = ConformalDetector(FrozenEstimator(fitted)).fit(held_out)
        cured = [false_alarms(one, fresh) for one in (conformal, fitted.set_threshold(held_out))]
        shares.append([plain, *cured])
        figures = f"{plain:.1%}, conformal {cured[0]:.1%}, set_threshold {cured[1]:.1%}"
        yield type(detector).__name__, f"{figures}; {told[0][:75] if told else 'not told'}"
    names = "plain", "conformal", "set_threshold"
    for name, values in zip(names, np.transpose(shares), strict=True):
        yield f"all, {name}", span(values)
    yield "told", f"{n_told} of {len(shares)}"


def contaminated(X, y, rows, share, head, rng):
    """Return X and y with OOD rows among them, labelled as the network or else chance has it."""
    n_bad = min(round(share / (1 - share) * len(X)), len(rows))
    kept = np.arange(len(X))
    if n_bad == len(rows):
        kept = rng.permutation(len(X))[: round(n_bad * (1 - share) / share)]
    classes, bad = np.unique(y), rows[:n_bad]
    if head is None or not n_bad:
        labels = rng.choice(classes, n_bad)
    else:
        labels = classes[head(torch.from_numpy(bad)).argmax(1).numpy()]
    return np.r_[X[kept], bad], np.r_[y[kept], labels]


def contamination(folder, n_seeds=3):
    """OOD rows among those of fit: what is detected of others like them, and false alarms."""
    network, X, y, fresh, ood = digits(folder)
    extractor = FeatureExtractor(network).fit(X, y)
    X, fresh, near = (extractor.transform(rows) for rows in (X, fresh, ood["near"]))
    tasks = {"digits": (network.fc, X, y, fresh, near)}
    for task, kind in ((features, "flowers"), (texts, "near")):
        head, X, y, fresh, ood = task(folder)
        tasks[task.__name__] = head, X, y, fresh, ood[kind]
    for what, (head, X, y, fresh, ood_rows) in tasks.items():
        for detector in DETECTORS:
            detector = clone(detector).set_params(model=head)
            for share in (0, 0.01, 0.05, 0.1):
                figures = []
                for seed in range(n_seeds):
                    rng = np.random.default_rng(seed)
                    bad, others = np.array_split(rng.permutation(ood_rows), 2)
                    pair = contaminated(X, y, bad, share, head, rng)
                    robust = FitOnInliers(detector, trim=share or 0.05)
                    for one in (clone(detector), robust):
                        one.fit(*pair)
                        shares = [false_alarms(one, rows) for rows in (others, fresh)]
                        auroc = aurocs(one.score_samples, fresh, {"ood": others})[0]
                        figures.append([*shares, auroc])
                cells = np.reshape(figures, (n_seeds, 2, 3)).mean(0)
                cells = (f"{d:.2f} (false alarms {f:.1%}, AUROC {a:.3f})" for d, f, a in cells)
                name = f"{what}, {type(detector).__name__}, {share:.0%} OOD"
                yield f"{name}, detected by plain and robust", ", ".join(cells)


CLAIMS = [tuning, seen_rows, contamination]


def main():
    """Measure the claims named, or all."""
    by_name = {claim.__name__: claim for claim in CLAIMS}
    parser = argparse.ArgumentParser(description="Figures of the documentation on real data.")
    parser.add_argument("folder", type=Path, help="where the data of tests.evidence lies")
    parser.add_argument("claim", nargs="*", help=f"of {', '.join(by_name)}")
    options = parser.parse_args()
    for name in options.claim or by_name:
        with warnings.catch_warnings(action="ignore"):
            for what, figure in by_name[name](options.folder):
                print(f"{name}: {what}: {figure}", flush=True)


if __name__ == "__main__":
    main()
