"""`partial_fit` over 100 shuffled pieces beside one `fit`: ``python -m tests.pieces``."""

import argparse
import math
import statistics
import time

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector, NNGuideDetector
from skood.learning.accumulated import N_THRESHOLD_ROWS

N_FEATURES, N_CLASSES, N_PIECES = 128, 10, 100


def rows_of(rng, means, n_rows):
    """Draw rows around the means of classes, as float32 that are not negative."""
    y = rng.integers(0, len(means), n_rows)
    X = means[y] + rng.normal(size=(n_rows, N_FEATURES))
    return np.maximum(X, 0).astype(np.float32), y


def take_time(function):
    """Return what a function gives and the process time that it takes."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def in_pieces(detector, pieces):
    """Learn piece by piece, and compute the threshold."""
    for X, y in pieces:
        detector.partial_fit(X, y)
    _ = detector.offset_
    return detector


def compare(detector, X, y, X_new, n_pairs):
    """Return a line of the table."""
    times, rng = [], np.random.default_rng(1)
    pieces = [(X[i], y[i]) for i in np.array_split(rng.permutation(len(X)), N_PIECES)]
    for _ in range(n_pairs):
        whole, time_fit = take_time(lambda: clone(detector).fit(X, y))
        parts, time_pieces = take_time(lambda: in_pieces(clone(detector), pieces))
        times.append((time_fit, time_pieces, time_pieces / time_fit))
    scores = whole.score_samples(X_new).astype(np.float64)
    difference = np.abs(parts.score_samples(X_new) - scores).max() / scores.std()
    alpha = detector.false_alarm_rate
    low, high = np.quantile(scores, [alpha - 0.01, alpha + 0.01])
    n_rows = getattr(whole.scorer_, "n_threshold_rows", None) or N_THRESHOLD_ROWS
    error = math.sqrt(alpha * (1 - alpha) / n_rows) * (high - low) / 0.02
    shift = (parts.offset_ - whole.offset_) / error
    alarms = [100 * np.mean(d.predict(X_new) < 0) for d in (whole, parts)]
    return difference, shift, *alarms, *map(statistics.median, zip(*times, strict=True))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=3, help="fits of either kind to take times of")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    means = rng.normal(size=(N_CLASSES, N_FEATURES))
    X, y = rows_of(rng, means, args.rows)
    X_new, _ = rows_of(rng, means, 50_000)
    head = nn.Linear(N_FEATURES, N_CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(means) / 10)
    print("score: largest difference, in standard deviations; threshold: in standard errors")
    print("                   score  threshold  false alarms, %  fit, s  pieces, s  ratio")
    for detector in (
        ASHDetector(head),
        GMMDetector(),
        GradNormDetector(head),
        NACDetector(head, alpha=1.0, o_star=args.rows / 100),
        NNGuideDetector(head),
    ):
        score, shift, *alarms, fit, pieces, ratio = compare(detector, X, y, X_new, args.pairs)
        print(
            f"{type(detector).__name__:17}{score:7.0e}{shift:11.1f}"
            f"{alarms[0]:9.2f}{alarms[1]:8.2f}{fit:8.2f}{pieces:11.2f}{ratio:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
