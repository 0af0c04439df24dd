"""Every detector: over the forward pass of a network, and at the size of ImageNet."""

import statistics
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skood import ODINDetector
from skood.learning.learning import LearningScorer
from tests.benchmarks import yardsticks
from tests.benchmarks.harness import Figure, Pair, peak_mib, seconds
from tests.evidence import detectors, made
from tests.networks import ResNet18, seeded

N_BANK = 10_000
# What a pass may cost, where it is not a hundredth more.
TARGETS = {
    **dict.fromkeys(["MSPDetector", "MaxLogitDetector", "EnergyDetector", "EntropyDetector",
                     "GENDetector", "LogitGapDetector", "KLMatchingDetector"], 1.01),
    **dict.fromkeys(["KNNDetector", "NNGuideDetector", "RelationDetector", "CFOODDetector"], 1.06),
    # Passes forward and back; a pass a transform.
    **dict.fromkeys(["ODINDetector", "PerturbedDetector"], 3.2),
    "TransformsDetector": 2.1,
    **dict.fromkeys(["GramDetector", "RankFeatDetector"], 1.3),
    "LayersDetector": 1.05,
    # Two passes forward and one backward, one of each, thirty of the head, ...
    **dict.fromkeys(["AdaSCALEDetector", "GAIADetector", "MCDropoutDetector", "WeiPerDetector"]),
}  # fmt: skip


def random_rows(n, n_features, n_classes, seed):
    """Draw rows like features behind a ReLU, each about the mean of its class, and labels."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(n_classes, n_features, generator=generator)
    generator.manual_seed(seed)
    y = torch.arange(n) % n_classes
    rows = torch.randn(n, n_features, generator=generator)
    for block, labels in zip(rows.split(1000), y.split(1000), strict=True):
        block.add_(means[labels]).relu_()
    return rows, y.numpy()


def with_bank(detector, n_features):
    """Let the scorer of a fitted detector have a bank of random rows."""
    scorer = detector.scorer_
    rows, _ = random_rows(N_BANK, n_features, 10, 1)
    inputs = (rows,)
    state = scorer.init_state(inputs, 1, 0)
    keys = torch.rand(N_BANK, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scorer.update(state, inputs, torch.zeros(N_BANK, dtype=torch.int64), keys)
    scorer.finalize(state, None)
    scorer.clear_cache()


def methods(setting):
    """Every detector on a ResNet-18 and 128 images, over the plain forward pass."""
    net = seeded(ResNet18, 10).to(setting.device)
    images = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    X = images(128, 3, 64, 64).to(setting.device)
    train, y = images(300, 3, 64, 64).to(setting.device), np.arange(300) % 10
    forward = partial(yardsticks.forward, net, X)
    for detector in detectors():
        fitted = made(detector, net).fit(train, y)
        if hasattr(fitted.scorer_, "bank"):
            with_bank(fitted, 512)
        target = TARGETS.get(detector.__name__, 1.02)
        name = f"{detector.__name__} / forward"
        yield Pair(name, partial(fitted.score_samples, X), forward, target=target)
    score = partial(ODINDetector(net).fit(train).score_samples, X)
    yield Pair("ODIN / by hand", score, partial(yardsticks.odin, net, X), target=1.05)


def searches_bank(fitted):
    """Tell whether a fitted detector, or one inside of it, compares rows with a bank."""
    return any(hasattr(part, "bank") for part in fitted.scorer_.modules())


def imagenet(setting):
    """Every detector at 1000 classes and 2048 features: fit, memory, a batch of 128 over the head.

    The peak of fit includes what the detector keeps.
    """
    n, n_classes, n_features = setting.pick(50_000, 5_000), 1000, 2048
    train, y = random_rows(n, n_features, n_classes, 1)
    X, _ = random_rows(128, n_features, n_classes, 2)
    train, X = train.to(setting.device), X.to(setting.device)
    head = nn.Linear(n_features, n_classes).to(setting.device)
    nn.init.normal_(head.weight, std=0.05)

    @torch.inference_mode()
    def product():
        return head(X)

    for detector in detectors():
        name = detector.__name__
        fitted = made(detector, head)
        try:
            fit_seconds = seconds(partial(fitted.fit, train, y), setting.device)
        except (TypeError, ValueError) as error:
            print(f"  {name}: {str(error).splitlines()[0]:.90}", flush=True)
            continue
        score = partial(fitted.score_samples, X)
        target = None if searches_bank(fitted) else 5
        yield Figure(f"{name}: fit", lambda s=fit_seconds: s, unit="s")
        if isinstance(fitted.scorer_, LearningScorer):
            kept = sum(b.nbytes for b in fitted.scorer_.buffers()) / 2**20
            yield Figure(f"{name}: kept", lambda kept=kept: kept, unit="MiB")
        again = partial(made(detector, head).fit, train, y)
        yield Figure(f"{name}: peak of fit", partial(peak_mib, again, setting.device), unit="MiB")
        yield Figure(f"{name}: peak of score", partial(peak_mib, score, setting.device),
                     target=1024, unit="MiB")  # fmt: skip
        yield Pair(f"{name}: score / head", score, product, target=target)


def roofline(setting):
    """Every detector on rows that lie on a GPU, over the time that its memory or products take.

    Of two times the larger: that of reading the rows once, as fast as a copy reads and writes, and
    that of the products that the detector takes, as fast as one large product of float32.
    """
    n, n_features, device = setting.pick(2**19, 2**17), 512, setting.device
    train, y = random_rows(20_000, n_features, 10, 1)
    train = train.to(device)
    X = torch.randn(n, n_features, device=device).relu_()
    head = nn.Linear(n_features, 10).to(device)
    large, copied = X[:8192].tile(1, 16), torch.empty_like(X)
    byte_seconds = least_seconds(partial(copied.copy_, X), device) / (2 * X.nbytes)
    product = partial(torch.mm, large, large.T)
    product_seconds = least_seconds(product, device) / (2 * len(large) ** 2 * large.shape[1])
    del large, copied
    for detector in detectors():
        try:
            fitted = made(detector, head).fit(train, y)
        except (TypeError, ValueError) as error:
            print(f"  {detector.__name__}: {str(error).splitlines()[0]:.90}", flush=True)
            continue
        # A bank of 20 000 rows makes many products of each row.
        rows = X[::16].contiguous() if searches_bank(fitted) else X
        score = partial(fitted.score_samples, rows)
        with FlopCounterMode(display=False) as counter:
            score()
        bound = max(rows.nbytes * byte_seconds, counter.get_total_flops() * product_seconds)
        taken = statistics.median(seconds(score, device) for _ in range(setting.pairs))
        per_row = f"{detector.__name__}: a million rows"
        yield Figure(per_row, lambda t=taken, x=rows: 1e9 * t / len(x), unit="ms")
        yield Figure(f"{detector.__name__} / bound", lambda r=taken / bound: r, target=1 / 0.7)


def least_seconds(function, device):
    """Return the shortest time of a function in ten calls."""
    return min(seconds(function, device) for _ in range(10))
