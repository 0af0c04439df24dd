"""Thresholds that hold
====================

How many fresh digits are called out-of-distribution, by the plain threshold and by the conformal
one? A network is trained on digits 0 to 5 and so is each detector. Half of the digits that neither
has seen calibrate, the other half counts the false alarms. They should lie in the 99 % band of the
beta-binomial distribution that exchangeable calibration rows give.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import betabinom
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from skood import NNGuideDetector
from skood.benchmark import default_detectors, train_digits_network
from skood.calibration import ConformalDetector
from skood.datasets import load_digits_ood
from skood.plots import PValueDisplay

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

ALPHA = 0.05
N_SPLITS = 20

data = load_digits_ood(random_state=0)
net = train_digits_network(data.X_train, data.y_train, seed=0)
print(f"accuracy: {net.score(data.X_train, data.y_train):.3f} on the rows of training, ", end="")
print(f"{net.score(data.X_test, data.y_test):.3f} on fresh ones")

# %%
# The plain threshold is a quantile of the training rows' scores. It knows nothing of what the
# network gained by having learned those very rows. The conformal one is a quantile of rows that are
# as new to the network as those to come.
n_cal = n_fresh = len(data.X_test) // 2
lowest = int((n_cal + 1) * ALPHA)
band = betabinom(n_fresh, lowest, n_cal + 1 - lowest)
low, high = band.interval(0.99)
print(
    f"of {n_fresh} fresh digits {band.mean():.1f} are expected, 99 % band {low:.0f} to {high:.0f}"
)
print(f"\n{'':18}{'false alarms':>22}  {'mean of 20 splits':>22}  {'unseen digits found':>22}")
print(f"{'detector':18}" + f"{'plain':>11}{'conformal':>11}  " * 3)
for name, detector in default_detectors(net.module_, random_state=0).items():
    frozen = FrozenEstimator(detector.fit(data.X_train, data.y_train))
    false, found = [], []
    for seed in range(N_SPLITS):
        X_cal, X_fresh = train_test_split(data.X_test, train_size=n_cal, random_state=seed)
        conformal = ConformalDetector(frozen, alpha=ALPHA).fit(X_cal)
        both = (detector, conformal)
        false.append([(d.predict(X_fresh) == -1).sum() for d in both])
        if seed == 0:
            found = [(d.predict(data.ood["near"]) == -1).mean() for d in both]
    means = np.mean(false, axis=0)
    inside = "inside" if low <= false[0][1] <= high else "OUTSIDE"
    print(
        f"{name:18}{false[0][0]:11d}{false[0][1]:11d}  {means[0]:11.1f}{means[1]:11.1f}  ", end=""
    )
    print(f"{found[0]:11.1%}{found[1]:11.1%}  {inside}")

# %%
# **At every level at once.** The p-value of a row is about the share of calibration rows that look
# as odd. If calibration holds, fresh digits have a p-value of at most t in a share t of cases: the
# curve follows the diagonal. On the left the rows of training calibrate, each scored as if the
# detector had not learned from it (``method="loo"``). The network has, and more fresh digits than
# promised have small p-values. On the right rows calibrate that the network has not seen.
X_cal, X_fresh = train_test_split(data.X_test, train_size=n_cal, random_state=0)
nnguide = NNGuideDetector(net.module_, random_state=0)
seen = ConformalDetector(nnguide, method="loo", alpha=ALPHA).fit(data.X_train, data.y_train)
unseen = ConformalDetector(nnguide, alpha=ALPHA).fit(data.X_train, data.y_train, X_cal)
figure, axes = plt.subplots(1, 2, figsize=(10.4, 5.2), layout="constrained")
PValueDisplay.from_estimator(seen, X_fresh, name="Calibrated on rows of training", ax=axes[0])
PValueDisplay.from_estimator(unseen, X_fresh, name="Calibrated on unseen rows", ax=axes[1])
plt.show()
