"""The figures of the documentation that no other command prints: ``python -m tests.claims``."""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import betabinom, spearmanr
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skood import (
    ASHDetector,
    FeatureExtractor,
    GMMDetector,
    GradNormDetector,
    NACDetector,
    NNGuideDetector,
)
from skood.benchmark import default_detectors, evaluate, train_digits_network
from skood.calibration import ConformalDetector
from skood.datasets import load_digits_ood
from skood.decisions.combination import COMBINATIONS
from skood.detectors.layers.nac import SATURATED
from skood.ensemble import EnsembleDetector
from skood.metrics import auroc_score, confidence_interval
from skood.monitoring import Monitor
from tests.detectors.test_gradnorm import gradnorm_bce_exact
from tests.detectors.test_nac import nac_products_features, nac_states
from tests.evidence import detectors, made
from tests.networks import ResNet18, seeded
from tests.references import uniform_loss

N_SEEDS = 5
DETECTORS = [
    ASHDetector(random_state=0),
    GMMDetector(),
    GradNormDetector(random_state=0),
    NACDetector(random_state=0),
    NNGuideDetector(random_state=0),
]
NAMED = [(type(detector).__name__, detector) for detector in DETECTORS]


# Data


@cache
def digits(seed, as_images=True):
    """Split the digits."""
    return load_digits_ood(random_state=seed, as_images=as_images)


@cache
def network(seed):
    """Train the network of `python -m skood` on a split."""
    data = digits(seed)
    return train_digits_network(data.X_train, data.y_train, seed=seed)


def principal_components(seed, n_components):
    """Return training rows, labels, fresh rows and OOD sets of digits, as PCA features."""
    data = digits(seed, as_images=False)
    pca = PCA(n_components, random_state=0).fit(data.X_train)
    ood = {name: pca.transform(X) for name, X in data.ood.items()}
    return pca.transform(data.X_train), data.y_train, pca.transform(data.X_test), ood


@cache
def small_tasks():
    """Hold out each class of four data sets: (training rows, labels, fresh rows, 3 OOD sets)."""
    tasks = []
    for load in (load_iris, load_wine, load_digits, load_breast_cancer):
        X, y = load(return_X_y=True)
        for held_out in np.unique(y):
            rng = np.random.default_rng(held_out)
            known = y != held_out
            X_train, X_test, y_train, _ = train_test_split(
                X[known], y[known], test_size=0.4, random_state=0, stratify=y[known]
            )
            steps = [PCA(0.95, random_state=0)] if X.shape[1] > 20 else []
            features = make_pipeline(StandardScaler(), *steps).fit(X_train)
            fresh = features.transform(X_test)
            signs = rng.choice([-1, 1], size=fresh.shape[1])
            ood = {
                "class held out": features.transform(X[~known]),
                "flipped": 1.5 * signs * fresh,
                "shuffled columns": rng.permuted(fresh, axis=0),
            }
            tasks.append((features.transform(X_train), y_train, fresh, ood))
    return tasks


MEANS = 2 * np.random.default_rng(99).normal(size=(3, 8))


def draw(rng, n_samples, spread=(1, 1, 1)):
    """Draw rows of three Gaussian classes in 8 dimensions."""
    y = rng.integers(0, 3, n_samples)
    return MEANS[y] + rng.normal(size=(n_samples, 8)) * np.asarray(spread)[y, None], y


# Measures


def aurocs(score, X, ood):
    """Return the AUROC of fresh rows against each OOD set."""
    inside = score(X)
    return [
        auroc_score(np.repeat([1, -1], [len(inside), len(rows)]), np.r_[inside, score(rows)])
        for rows in ood.values()
    ]


def false_alarms(detector, X):
    """Return the share of rows called OOD."""
    return (detector.predict(X) == -1).mean()


def span(values):
    """Write the lowest and the highest of some percentages."""
    return f"{100 * np.min(values):.1f}–{100 * np.max(values):.1f} %"


def compared(values, first, second):
    """Write the mean AUROCs of two settings over tasks, and in which share the first is better."""
    a, b = np.transpose(values)
    means = f"mean AUROC {first} {a.mean():.3f}, {second} {b.mean():.3f}"
    return f"{means}; {first} better {(a > b).mean():.0%}, worse {(a < b).mean():.0%}"


# Claims: generators of what and figure


def ash_of_maps():
    """Shaping in front of the pooling is another method than behind it."""
    X = np.random.default_rng(0).normal(size=(500, 512, 7, 7)).astype(np.float32)
    pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*pool, seeded(nn.Linear, 512, 10))
    scores = [ASHDetector(net, layer).fit(X).score_samples(X) for layer in (None, "0")]
    yield "rank correlation, shaped before and after pooling", f"{spearmanr(*scores)[0]:.2f}"


def ash_percentile():
    """Drop more and more of 64 features."""
    for percentile in (0, 0.3, 0.65, 0.9):
        values = []
        for seed in range(N_SEEDS):
            data, net = digits(seed), network(seed).module_
            ash = ASHDetector(net, percentile=percentile).fit(data.X_train)
            values.append(aurocs(ash.score_samples, data.X_test, data.ood)[0])
        yield f"AUROC, unseen digits, 64 features, {percentile=}", f"{np.mean(values):.3f}"


def gradnorm_in_float32():
    """Autograd through the binary cross-entropy of a softmax breaks down."""
    logits = torch.tensor([18.0] + [0.0] * 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(uniform_loss(logits, "bce"), logits)
    yield "gradient by autograd, float32, logits 18 and nine 0", f"{gradient.abs().sum():.1e}"
    exact = gradnorm_bce_exact(logits.detach()[None])
    yield "the same in 60 digits", f"{np.abs(exact).sum():.1f}"


def gmm_in_sample():
    """Set the threshold on the plain scores of training rows, and leave-one-out."""
    in_sample, own = [], []
    for seed in range(N_SEEDS):
        data = digits(seed, as_images=False)
        gmm = GMMDetector().fit(data.X_train, data.y_train)
        threshold = np.quantile(gmm.score_samples(data.X_train), 0.05)
        in_sample.append((gmm.score_samples(data.X_test) < threshold).mean())
        own.append(false_alarms(gmm, data.X_test))
    yield "false alarms at 5 %, in-sample, 64 pixels", f"{np.mean(in_sample):.0%}"
    yield "leave-one-out", f"{np.mean(own):.1%}"


def gmm_ridge():
    """Compare the ridge of "auto" with that of pytorch-ood, on all rows and on few."""
    for n_rows in (None, 50):
        values = []
        for X, y, fresh, ood in small_tasks():
            pair = [
                GMMDetector(reg_covar=reg).fit(X[:n_rows], y[:n_rows]) for reg in ("auto", 1e-6)
            ]
            values += zip(*[aurocs(gmm.score_samples, fresh, ood) for gmm in pair], strict=True)
        yield f"{len(values)} tasks, {n_rows or 'all'} rows", compared(values, "auto", "1e-6")


def nac_steepness():
    """Compare what "auto" measures with the authors' settings for a wide last layer."""
    values, saturated = [], []
    for X, y, fresh, ood in small_tasks():
        pair = [NACDetector(random_state=0), NACDetector(alpha=100, o_star=50, random_state=0)]
        for nac in pair:
            nac.fit(X, y)
        values += zip(*[aurocs(nac.score_samples, fresh, ood) for nac in pair], strict=True)
        head = pair[0].scorer_.head
        products = nac_products_features(X, head.weight.detach(), head.bias.detach())
        distance = np.abs(np.asarray(nac_states(products, 100)) - 0.5)
        saturated.append((distance > 0.5 - SATURATED).mean())
    yield "states saturated with alpha=100", span(saturated)
    yield f"{len(values)} tasks", compared(values, "auto", "fixed")


def softmax_of_unseen_digits():
    """Ask the softmax of a plain network about what it has never seen."""
    shares = []
    for seed in range(N_SEEDS):
        data = digits(seed, as_images=False)
        net = MLPClassifier(max_iter=500, random_state=seed).fit(data.X_train, data.y_train)
        shares.append((net.predict_proba(data.ood["near"]).max(1) > 0.9).mean())
    yield "unseen digits with a probability above .9", f"{np.mean(shares):.0%}"


def rows_of_training():
    """Thresholds from rows that the network, or the head, was trained on, and from others."""
    accuracy = [
        network(seed).score(digits(seed).X_train, digits(seed).y_train) for seed in range(5)
    ]
    yield "training accuracy of the networks", f"{np.mean(accuracy):.3f}"
    names = dict(NAMED)
    for kind in ("network", "head on 32 principal components"):
        shares = dict.fromkeys(names, 0)
        for seed in range(N_SEEDS):
            data = digits(seed)
            if kind == "network":
                detectors = default_detectors(network(seed).module_, random_state=0)
                X, y, fresh = data.X_train, data.y_train, data.X_test
            else:
                detectors = default_detectors(None, random_state=0)
                X, y, fresh, _ = principal_components(seed, 32)
            for name in names:
                detector = detectors[name].fit(X, y)
                shares[name] += false_alarms(detector, fresh) / N_SEEDS
        yield f"false alarms at 5 %, trained: {kind}", span(list(shares.values()))


def few_rows(n_draws=1000):
    """Share of fresh normal rows that fall below the threshold of few."""
    net = nn.Linear(2, 3).double()
    nn.init.normal_(net.weight, generator=torch.Generator().manual_seed(0))
    energy = ASHDetector(net, variant="p", percentile=0)
    for detector, n_features in ((energy, 2), *((GMMDetector(), d) for d in (1, 2, 4, 8))):
        for n_rows, rate in ((100, 0.01), (50, 0.05)):
            rng, shares = np.random.default_rng(0), []
            for _ in range(n_draws):
                detector.set_params(false_alarm_rate=rate).fit(
                    rng.normal(size=(n_rows, n_features))
                )
                shares.append(false_alarms(detector, rng.normal(size=(4000, n_features))))
            error = np.std(shares) / n_draws**0.5
            what = f"{type(detector).__name__}, {n_features} features, {n_rows} rows at {rate:.0%}"
            yield what, f"{np.mean(shares):.2%} (standard error {error:.2%})"


def false_alarms_of_detectors(n_splits=60):
    """Share of 217 fresh digits that are called OOD at 5 %, after fit on 217 others."""
    data = digits(0)
    net = network(0).module_
    X, y = FeatureExtractor(net).fit_transform(data.X_test), data.y_test
    for detector in detectors():
        shares = []
        for split in range(n_splits):
            seen, fresh, labels, _ = train_test_split(X, y, train_size=217, random_state=split)
            try:
                fitted = made(detector, net.fc).fit(seen, labels)
            except (TypeError, ValueError) as error:
                yield detector.__name__, str(error).splitlines()[0]
                break
            shares.append(false_alarms(fitted, fresh))
        if not shares:
            continue
        error = np.std(shares) / n_splits**0.5
        yield detector.__name__, f"{np.mean(shares):.1%} (standard error {error:.1%})"


def calibrated_digits():
    """Count false alarms among 217 fresh digits, calibrated on 217 others and not."""
    first, means = [], []
    for seed in range(N_SEEDS):
        data = digits(seed)
        detectors = default_detectors(network(seed).module_, random_state=0)
        for detector in detectors.values():
            frozen = FrozenEstimator(detector.fit(data.X_train, data.y_train))
            counts = []
            for split in range(20):
                X_cal, fresh = train_test_split(data.X_test, train_size=217, random_state=split)
                both = detector, ConformalDetector(frozen).fit(X_cal)
                counts.append([(one.predict(fresh) == -1).sum() for one in both])
            first.append(counts[0])
            means.append(np.mean(counts, axis=0))
    lowest = int(218 * 0.05)
    low, high = betabinom(217, lowest, 218 - lowest).interval(0.99)
    yield "99 % band", f"{low:.0f} to {high:.0f}"
    for i, name in enumerate(("plain", "conformal")):
        one, mean = np.array(first)[:, i], np.array(means)[:, i]
        yield f"one split, {name}", f"{one.min()} to {one.max()}"
        figures = f"{mean.min():.1f} to {mean.max():.1f} ({span(mean / 217)})"
        yield f"mean of 20 splits, {name}", figures


def calibration_methods(n_draws=100):
    """Calibrate on 200 rows in each way."""
    detectors = [
        GMMDetector(),
        NNGuideDetector(random_state=0),
        GradNormDetector(random_state=0),
        NACDetector(random_state=0),
        IsolationForest(n_estimators=20, contamination=0.05, random_state=0),
    ]
    for detector in detectors:
        ways = {
            "split": ConformalDetector(detector, calibration_size=0.5, random_state=0),
            "cross": ConformalDetector(detector, "cross", random_state=0),
            "loo": ConformalDetector(detector, "loo"),
            "plain": detector,
        }
        if isinstance(detector, IsolationForest):
            del ways["loo"]
        shares = []
        for seed in range(n_draws):
            rng = np.random.default_rng(seed)
            X, y = draw(rng, 200)
            fresh, _ = draw(rng, 500)
            shares.append([false_alarms(clone(way).fit(X, y), fresh) for way in ways.values()])
        means = ", ".join(f"{n} {m:.1%}" for n, m in zip(ways, np.mean(shares, 0), strict=True))
        error = np.std(shares, 0).max() / n_draws**0.5
        yield type(detector).__name__, f"{means} (standard errors below {error:.2%})"


def false_discoveries(n_draws=200):
    """Share of false ones among the rows called, 20 OOD rows among 200."""
    shares = []
    for seed in range(n_draws):
        rng = np.random.default_rng(seed)
        X, y = draw(rng, 600)
        new, _ = draw(rng, 200)
        new[:20] += 3 * rng.normal(size=8)
        conformal = ConformalDetector(GMMDetector(), calibration_size=300, alpha=0.1)
        conformal.set_params(random_state=seed).fit(X, y)
        called = [conformal.set_params(fdr=fdr).predict(new) == -1 for fdr in (None, "bh")]
        shares.append([c[20:].sum() / max(c.sum(), 1) for c in called])
    plain, bh = np.mean(shares, axis=0)
    yield 'false among those called at 10 %: plain, "bh"', f"{plain:.0%}, {bh:.0%}"


def false_alarms_of_classes(n_draws=200):
    """Classes of spread 0.7, 1 and 1.4 at 10 %."""
    head = LogisticRegression(max_iter=1000).fit(*draw(np.random.default_rng(98), 500))
    for what, condition in (("one", False), ("class", True), ("predicted", FrozenEstimator(head))):
        shares = []
        for seed in range(n_draws):
            rng = np.random.default_rng(seed)
            conformal = ConformalDetector(
                GMMDetector(covariance_type="tied"),
                calibration_size=0.5,
                alpha=0.1,
                class_conditional=condition,
                random_state=seed,
            ).fit(*draw(rng, 400, (0.7, 1, 1.4)))
            X, y = draw(rng, 600, (0.7, 1, 1.4))
            y = head.predict(X) if what == "predicted" else y
            called = conformal.predict(X) == -1
            shares.append([called[y == k].mean() for k in range(3)])
        yield f"false alarms by {what}", ", ".join(f"{s:.1%}" for s in np.mean(shares, axis=0))


def ensembles_on_digits():
    """AUROC of detectors alone and together, mean over OOD sets and seeds, and false alarms."""
    for kind in ("network", "16 components"):
        values, rates = {}, {}
        for seed in range(N_SEEDS):
            if kind == "network":
                data, net = digits(seed), network(seed).module_
                X, y, fresh, ood = data.X_train, data.y_train, data.X_test, data.ood
            else:
                net = None
                X, y, fresh, ood = principal_components(seed, 16)
            tried = {n: clone(detector).set_params(model=net) for n, detector in NAMED}
            for method in COMBINATIONS:
                tried[method] = EnsembleDetector(NAMED, net, method=method, random_state=0)
            for name, one in tried.items():
                one.fit(X, y)
                values.setdefault(name, []).append(aurocs(one.score_samples, fresh, ood))
                rates.setdefault(name, []).append(false_alarms(one, fresh))
        yield f"AUROC, {kind}", ", ".join(f"{n} {np.mean(v):.3f}" for n, v in values.items())
        together = [np.mean(rates[method]) for method in COMBINATIONS]
        yield f"false alarms at 5 %, {kind}, all methods", span(together)


def ensembles_on_small_tasks():
    """AUROC of detectors alone and together, mean over tasks."""
    values = {}
    for X, y, fresh, ood in small_tasks():
        tried = {name: clone(detector) for name, detector in NAMED}
        for method in COMBINATIONS:
            tried[method] = EnsembleDetector(NAMED, method=method, random_state=0)
        for name, one in tried.items():
            values.setdefault(name, []).append(aurocs(one.fit(X, y).score_samples, fresh, ood))
    yield "AUROC, small tasks", ", ".join(f"{n} {np.mean(v):.3f}" for n, v in values.items())


def ensembles_false_alarms(n_draws=50):
    """Three detectors that agree nearly always keep the threshold."""
    kinds = [(kind, GMMDetector(covariance_type=kind)) for kind in ("full", "diag", "tied")]
    means = []
    for n_samples in (100, 300):
        for method in COMBINATIONS:
            shares = []
            for seed in range(n_draws):
                rng = np.random.default_rng(seed)
                ensemble = EnsembleDetector(kinds, method=method, random_state=0)
                ensemble.fit(*draw(rng, n_samples))
                shares.append(false_alarms(ensemble, draw(rng, 1000)[0]))
            means.append(np.mean(shares))
    yield "false alarms at 5 %, three kinds of Gaussians, 100 and 300 rows", span(means)


def ensembles_time(n_pairs=9):
    """Four detectors on one pass, and one by one, over the plain forward pass."""
    torch.set_num_threads(1)
    net, y = seeded(ResNet18).eval(), np.arange(128) % 10
    X = np.random.default_rng(0).normal(size=(128, 3, 32, 32)).astype(np.float32)
    named = [(name, one) for name, one in NAMED if name != "NACDetector"]
    ensemble = EnsembleDetector(named, net).fit(X, y)
    alone = [clone(one).set_params(model=net).fit(X, y) for _, one in named]

    @torch.no_grad()
    def forward():
        net(torch.from_numpy(X))

    def one_by_one():
        for detector in alone:
            detector.score_samples(X)

    seconds = []
    for _ in range(n_pairs):
        row = []
        for call in (forward, lambda: ensemble.score_samples(X), one_by_one):
            start = time.process_time()
            call()
            row.append(time.process_time() - start)
        seconds.append(row)
    forward_time, *others = np.median(seconds, axis=0)
    together, apart = others / forward_time
    yield "time over a forward pass: together, one by one", f"{together:.1f}, {apart:.1f}"


def intervals():
    """How uncertain 434 test rows leave an AUROC."""
    widths = []
    for seed in range(N_SEEDS):
        X, y, fresh, ood = principal_components(seed, 32)
        guide = NNGuideDetector(random_state=0).fit(X, y)
        labels = np.repeat([1, -1], [len(fresh), len(ood["near"])])
        scores = guide.score_samples(np.concatenate([fresh, ood["near"]]))
        widths.append(np.ptp(confidence_interval("auroc", labels, scores)) / 2)
    yield "half the interval of an AUROC, unseen digits, NNGuide", f"{np.mean(widths):.3f}"


def evaluation_time():
    """Three detectors on three OOD sets of 100 000 rows."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 128))
    y = np.arange(10_000) % 10
    train = centres[y] + rng.normal(size=(10_000, 128))
    fresh = centres[rng.integers(10, size=100_000)] + rng.normal(size=(100_000, 128))
    ood = {str(scale): scale * rng.normal(size=(100_000, 128)) for scale in (1, 1.2, 1.5)}
    detectors = [GMMDetector(), GradNormDetector(), ASHDetector(percentile=0.3)]
    start = time.process_time()
    evaluate(detectors, train, y, fresh, None, ood, random_state=0)
    yield "seconds of processor time", f"{time.process_time() - start:.0f}"


def monitor_false_alarms(n_runs=1000, n_rows=10_000):
    """In-distribution rows for ever: how many monitors raise an alarm at level 5 %."""
    for what, set_aside in (("300 rows set aside", 300), ("the 300 rows of fit", 0)):
        alarms = []
        for seed in range(n_runs):
            rng = np.random.default_rng(seed)
            detector = GMMDetector().fit(*draw(rng, 300))
            monitor = Monitor(detector, random_state=seed)
            if set_aside:
                monitor.calibrate(draw(rng, set_aside)[0])
            alarms.append(monitor.update(draw(rng, n_rows)[0]).alarm)
        yield f"share of {n_runs} monitors with an alarm, {what}", f"{np.mean(alarms):.1%}"


def monitor_delays(n_runs=200):
    """From a row on 20 % of them are out-of-distribution."""
    for before in (0, 1000, 10_000):
        delays, values = [], []
        for seed in range(n_runs):
            rng = np.random.default_rng(seed)
            monitor = Monitor(GMMDetector().fit(*draw(rng, 300)), random_state=seed)
            monitor.calibrate(draw(rng, 300)[0])
            if before:
                monitor.update(draw(rng, before)[0])
            rows, _ = draw(rng, 2000)
            out = rng.random(2000) < 0.2
            rows[out] += 3 * rng.normal(size=(out.sum(), 8)) / 8**0.5
            alarm_at = monitor.update(rows).alarm_at
            delays.append(np.inf if alarm_at is None else alarm_at - before)
            scores = monitor.detector.score_samples(rows)
            values.append(auroc_score(np.where(out, -1, 1), scores))
        found = f"median {np.median(delays):.0f} rows, none in {np.isinf(delays).mean():.0%}"
        found += f" (AUROC {np.mean(values):.2f})"
        yield f"until the alarm, Gaussian classes, {before} rows before", found


def monitor_delays_on_digits(n_runs=40):
    """Take images and a network; fresh digits calibrate, and are drawn from for the stream."""
    delays = {}
    for seed in range(N_SEEDS):
        data, net = digits(seed), network(seed).module_
        for name, one in (("NNGuideDetector", NNGuideDetector), ("GMMDetector", GMMDetector)):
            detector = one(net).fit(data.X_train, data.y_train)
            for run in range(n_runs // N_SEEDS):
                rng = np.random.default_rng(run)
                order = rng.permutation(len(data.X_test))
                half = len(order) // 2
                for kind, X in data.ood.items():
                    monitor = Monitor(detector, random_state=run)
                    monitor.calibrate(data.X_test[order[:half]])
                    rows = data.X_test[rng.choice(order[half:], 1000)]
                    out = rng.random(1000) < 0.2
                    rows[out] = X[rng.choice(len(X), out.sum())]
                    delays.setdefault((name, kind), []).append(
                        monitor.update(rows).alarm_at or np.inf
                    )
    for (name, kind), rows in delays.items():
        yield f"until the alarm, {name}, {kind}", f"median {np.median(rows):.0f} rows"


def shell_memory(n_rows=1_000_000):
    """Fit and score a million rows from the shell; how much memory that takes in all."""
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=n_rows)
    X = (3 * rng.normal(size=(10, 32))[y] + rng.normal(size=(n_rows, 32))).astype(np.float32)
    skood = [sys.executable, "-m", "skood"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        np.save("a.npy", X), np.save("y.npy", y)
        fit = "fit --features a.npy --labels y.npy --detector gmm --out d.safetensors"
        for what, command in {
            "import torch": [sys.executable, "-c", "import torch"],
            "import skood": [sys.executable, "-c", "import skood"],
            "fit": [*skood, *fit.split()],
            "score": [*skood, *"score d.safetensors a.npy --out s.csv".split()],
        }.items():
            start, memory = time.perf_counter(), {"RssAnon": 0, "VmHWM": 0}
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while process.poll() is None:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    for kind in memory:
                        found = re.findall(rf"{kind}:\s*(\d+)", status)
                        memory[kind] = max(memory[kind], *map(int, found), 0)
                    time.sleep(0.005)
            assert process.returncode == 0
            own, peak = (kib // 1024 for kib in memory.values())
            seconds = time.perf_counter() - start
            yield what, f"{own} MiB of its own, {peak} with mapped libraries, {seconds:.0f} s"


CLAIMS = [
    ash_of_maps,
    ash_percentile,
    gradnorm_in_float32,
    gmm_in_sample,
    gmm_ridge,
    nac_steepness,
    softmax_of_unseen_digits,
    rows_of_training,
    few_rows,
    false_alarms_of_detectors,
    calibrated_digits,
    calibration_methods,
    false_discoveries,
    false_alarms_of_classes,
    ensembles_on_digits,
    ensembles_on_small_tasks,
    ensembles_false_alarms,
    ensembles_time,
    intervals,
    evaluation_time,
    monitor_false_alarms,
    monitor_delays,
    monitor_delays_on_digits,
    shell_memory,
]


def main():
    """Measure the claims named, or all."""
    by_name = {claim.__name__: claim for claim in CLAIMS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claim", nargs="*", help=f"of {', '.join(by_name)}")
    for name in parser.parse_args().claim or by_name:
        with warnings.catch_warnings(action="ignore"):
            for what, figure in by_name[name]():
                print(f"{name}: {what}: {figure}", flush=True)


if __name__ == "__main__":
    main()
