"""Every display of `skood.plots` on real data, as PNGs in a folder.

A network knows the digits 0 to 5; its detectors meet the digits 6 to 9, textures and noise. For the
score map a small network names the digit at each pixel of a strip of them, among them one that it
has never seen.

``python examples/displays.py pictures`` writes into the folder ``pictures``; without a folder, the
pictures are drawn and thrown away.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from torch import nn

from skood import ASHDetector
from skood.benchmark import default_detectors, train_digits_network
from skood.calibration import ConformalDetector
from skood.datasets import load_digits_ood
from skood.plots import (
    DetectorComparisonDisplay,
    OODPrecisionRecallDisplay,
    OODRocCurveDisplay,
    PValueDisplay,
    ScoreHistogramDisplay,
    ScoreMapDisplay,
)

N_BLANK, N_DIGITS, UNSEEN = 6, 8, 7


def draw_strips(images, digits, n_strips, random_state):
    """Return strips of digits at random heights, (n, 1, 16, 80), and the class of each pixel."""
    strips = np.zeros((n_strips, 1, 16, 10 * N_DIGITS), dtype=np.float32)
    labels = np.full((n_strips, 16, 10 * N_DIGITS), N_BLANK)
    for strip, label in zip(strips, labels, strict=True):
        chosen = random_state.choice(len(images), N_DIGITS, replace=False)
        tops = random_state.integers(0, 9, N_DIGITS)
        for number, (row, top) in enumerate(zip(chosen, tops, strict=True)):
            place = slice(top, top + 8), slice(10 * number + 1, 10 * number + 9)
            strip[0][place] = images[row]
            label[place][images[row] > 0.25] = digits[row]
    return strips, labels


def train_segmenter(strips, labels, n_epochs=25):
    """Train a network that gives logits of each pixel."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(64, N_BLANK + 1, 1),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.002)
    X, y = torch.from_numpy(strips), torch.from_numpy(labels)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(X)).split(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
    return net


def map_scores():
    """Draw the score map of a strip that holds an unseen digit."""
    random_state = np.random.default_rng(0)
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8).astype(np.float32)
    known, unseen = digits < 6, digits == UNSEEN
    net = train_segmenter(*draw_strips(images[known][:800], digits[known][:800], 200, random_state))
    fresh = images[known][800:], digits[known][800:]
    detector = ASHDetector(net, variant="p", percentile=0)
    detector.fit(*draw_strips(*fresh, 50, random_state))
    strip, truth = draw_strips(*fresh, 1, random_state)
    odd, place = images[unseen][0], (slice(4, 12), slice(41, 49))
    strip[0, 0, :, 40:50], truth[0, :, 40:50] = 0, N_BLANK
    strip[0, 0][place] = odd
    truth[0][place][odd > 0.25] = -1
    print(f"pixels of the {UNSEEN} against the others: AUROC {detector.score(strip, truth):.3f}")
    return ScoreMapDisplay.from_estimator(detector, strip[0], name=f"A {UNSEEN} among known digits")


def draw_all():
    """Yield a name and a display, one after the other."""
    data = load_digits_ood(random_state=0)
    # Half of the fresh digits calibrate.
    X_cal, X_fresh = train_test_split(data.X_test, random_state=0, train_size=0.5)
    net = train_digits_network(data.X_train, data.y_train).module_
    ood_labels = {-1 - number: name for number, name in enumerate(data.ood)}
    X = np.concatenate([data.X_test, *data.ood.values()])
    sizes = [len(rows) for rows in data.ood.values()]
    y = np.concatenate([data.y_test, np.repeat(list(ood_labels), sizes)])

    detectors = default_detectors(net, random_state=0)
    for detector in detectors.values():
        detector.fit(data.X_train, data.y_train)
    gmm = detectors["GMMDetector"]
    on_rows = {"X": X, "y": y, "ood_labels": ood_labels}
    yield "histogram", ScoreHistogramDisplay.from_estimator(gmm, **on_rows)
    yield "kde", ScoreHistogramDisplay.from_estimator(gmm, **on_rows, kind="kde")
    gradnorm = detectors["GradNormDetector"]
    yield "roc", OODRocCurveDisplay.from_estimator(gradnorm, **on_rows)
    yield "roc_log", OODRocCurveDisplay.from_estimator(gradnorm, **on_rows, xscale="log")
    yield "precision_recall", OODPrecisionRecallDisplay.from_estimator(gradnorm, **on_rows)
    scores = {name: detector.score_samples(X) for name, detector in detectors.items()}
    yield (
        "comparison",
        DetectorComparisonDisplay.from_predictions(
            y, scores, ood_labels=ood_labels, n_resamples=200, random_state=0
        ),
    )
    conformal = ConformalDetector(FrozenEstimator(gmm)).fit(X_cal)
    yield "p_values", PValueDisplay.from_estimator(conformal, X_fresh, name="GMMDetector")
    yield "score_map", map_scores()


def main():
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Draw every display of skood.plots.")
    parser.add_argument("folder", nargs="?", type=Path, help="where to write PNGs")
    folder = parser.parse_args().folder
    matplotlib.use("agg")
    with tempfile.TemporaryDirectory() as nowhere:
        target = folder or Path(nowhere)
        target.mkdir(parents=True, exist_ok=True)
        for name, display in draw_all():
            display.figure_.savefig(target / f"{name}.png", dpi=120)
            print(f"drew {name}" if folder is None else f"wrote {target / name}.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
