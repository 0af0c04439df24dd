"""Comparing detectors
===================

Five detectors and two plain scores on one network: which is best, and is that more than chance? An
AUROC without an interval does not say. `skood.benchmark.evaluate` gives one for each detector and
kind of OOD rows, with false alarms, times and memory.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skood.benchmark import (
    default_baselines,
    default_detectors,
    evaluate,
    train_digits_network,
)
from skood.datasets import load_digits_ood
from skood.metrics import paired_test
from skood.plots import DetectorComparisonDisplay, OODRocCurveDisplay

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

data = load_digits_ood(random_state=0)
net = train_digits_network(data.X_train, data.y_train, seed=0).module_
detectors = {**default_detectors(net, random_state=0), **default_baselines(net, random_state=0)}
rows = data.X_train, data.y_train, data.X_test, data.y_test
frame = evaluate(detectors, *rows, data.ood, n_resamples=200, random_state=0)
columns = ["detector", "ood", "auroc", "auroc_low", "auroc_high", "fpr95", "false_alarms"]
print(frame[columns].round(3).to_string(index=False))

# %%
# The best on top, by its mean over the three sets. The intervals say how far other rows of the same
# kind would move an AUROC. They do not say how another network would do, nor another kind of OOD
# rows, and both may change the order.
comparison = DetectorComparisonDisplay.from_frame(frame)

# %%
# **Two detectors** whose intervals overlap may differ all the same: both see the same rows, and
# where luck helps one it often helps the other. A paired test takes that into account. The p-values
# are multiplied by the number of tests, since among many pairs some differ by chance.
X = np.concatenate([data.X_test, data.ood["near"]])
y = np.r_[data.y_test, np.full(len(data.ood["near"]), -1)]
fitted = {name: detector.fit(*rows[:2]) for name, detector in detectors.items()}
scores = {name: detector.score_samples(X) for name, detector in fitted.items()}
near = frame[frame["ood"] == "near"].sort_values("auroc", ascending=False)
best, *others = near["detector"]
for name in others:
    difference, low, high, pvalue = paired_test("auroc", y, scores[best], scores[name])
    print(
        f"{best} less {name}: {difference:.4f}, 95 % interval {low:+.4f} to {high:+.4f}, "
        f"p = {min(1, pvalue * len(others)):.2g}"
    )

# %%
# **Where few OOD rows may pass**, an area under the whole curve is of little use. On a logarithmic
# axis the best and the last of the list, with the point at which 95 % of the digits 0 to 5 are
# accepted: the further to the left, the better.
figure, axis = plt.subplots(figsize=(6, 5.6), layout="compressed")
for name, color in {best: "#0072B2", others[-1]: "#D55E00"}.items():
    OODRocCurveDisplay.from_predictions(
        y,
        scores[name],
        ood_labels={-1: "digits 6 to 9"},
        name=name,
        ax=axis,
        xscale="log",
        curve_kwargs={"color": color},
    )
plt.show()
