"""Every display of `skood.plots` on real data, as PNGs in a folder.

A network knows the digits 0 to 5; its detectors meet the digits 6 to 9, textures and noise. For the
score map a detector learns the pixels of one half of a photograph and scores those of the other,
into which a flower was put.

``python examples/displays.py pictures`` writes into the folder ``pictures``; without a folder, the
pictures are drawn and thrown away.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.ndimage import uniform_filter
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skood import GMMDetector
from skood.benchmark import default_detectors, train_digits_network
from skood.calibration import ConformalDetector
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score
from skood.plots import (
    DetectorComparisonDisplay,
    OODPrecisionRecallDisplay,
    OODRocCurveDisplay,
    PValueDisplay,
    ScoreHistogramDisplay,
    ScoreMapDisplay,
)


def describe_pixels(photograph):
    """Return the mean and the spread of the colours around each pixel, (n_pixels, 6)."""
    colors, size = photograph / 255, (15, 15, 1)
    means = uniform_filter(colors, size)
    spreads = np.sqrt(np.maximum(uniform_filter(colors**2, size) - means**2, 0))
    return np.concatenate([means, spreads], axis=2).reshape(-1, 6)


def map_scores():
    """Draw the score map of one half of a photograph, with a flower in it that is not its own."""
    temple, flower = load_sample_images().images
    half = temple.shape[1] // 2
    known = describe_pixels(temple[:, :half])
    kinds = KMeans(8, random_state=0).fit_predict(known)
    detector = GMMDetector(false_alarm_rate=0.0001).fit(known, kinds)
    image, truth = temple[:, half:].copy(), np.ones((len(temple), half), dtype=int)
    place = slice(280, 400), slice(150, 270)
    image[place], truth[place] = flower[80:320:2, 220:460:2], -1
    scores = detector.decision_function(describe_pixels(image)).reshape(truth.shape)
    auroc = auroc_score(truth.ravel(), scores.ravel())
    print(f"pixels of the flower against those of the photograph: AUROC {auroc:.3f}")
    return ScoreMapDisplay.from_predictions(
        image, scores, threshold=0, name="GMMDetector", score_name="decision_function"
    )


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
