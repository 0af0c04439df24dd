"""Embeddings and labels, no network
=================================

Often the network is out of reach, and what there is are its embeddings, one vector a row, with
labels. Every detector takes them as X: without a `model`, X holds the features already.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from skood import GMMDetector
from skood.benchmark import default_detectors
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score

data = load_digits_ood(random_state=0, as_images=False)

# %%
# Here 32 principal components of the pixels stand in for embeddings. Where a method needs the
# logits of a classifier, such as an energy, the detector fits a logistic regression to embeddings
# and labels; where it does not, as `GMMDetector`, the embeddings are enough.
embedding = PCA(32, random_state=0).fit(data.X_train)
inside = embedding.transform(data.X_test)
print(f"AUROC against{'':9}" + "".join(f"{kind:>10}" for kind in data.ood))
for name, detector in default_detectors(None, random_state=0).items():
    detector.fit(embedding.transform(data.X_train), data.y_train)
    scores = detector.score_samples(inside)
    aurocs = []
    for X in data.ood.values():
        outside = detector.score_samples(embedding.transform(X))
        y = np.repeat([1, -1], [len(scores), len(outside)])
        aurocs.append(auroc_score(y, np.r_[scores, outside]))
    print(f"{name:22}" + "".join(f"{auroc:10.3f}" for auroc in aurocs))

# %%
# Methods differ more here than on a network's features. ASH expects what leaves a ReLU: it keeps
# the largest activations and removes the rest, and of signed components the most negative ones,
# which say as much as the largest, are the first to go. Distances to the data do not care.
#
# **What the Gaussians see**, in two dimensions, where it can be drawn: one for each digit, and the
# threshold around them. Two dimensions are too few to keep the digits 6 to 9 out.
plane = LinearDiscriminantAnalysis(n_components=2).fit(data.X_train, data.y_train)
detector = GMMDetector().fit(plane.transform(data.X_train), data.y_train)
known, near = plane.transform(data.X_test), plane.transform(data.ood["near"])
found = (detector.predict(near) == -1).mean()
print(f"in two dimensions {found:.0%} of the digits 6 to 9 are found")

low, high = np.r_[known, near].min(axis=0) - 1, np.r_[known, near].max(axis=0) + 1
x, y = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
values = detector.decision_function(np.c_[x.ravel(), y.ravel()]).reshape(x.shape)
figure, axis = plt.subplots(figsize=(7, 5.2), layout="constrained")
axis.contourf(x, y, values, levels=[values.min(), 0], colors=["0.9"])
axis.contour(x, y, values, levels=[0], colors="black", linestyles="--", linewidths=1)
axis.scatter(*near.T, marker="x", s=14, linewidths=0.8, color="0.45", label="digits 6 to 9")
colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
for digit, color in enumerate(colors):
    axis.scatter(*known[data.y_test == digit].T, s=14, color=color, label=f"a {digit}")
axis.set(xlabel="first discriminant", ylabel="second discriminant")
axis.set_title("Gray: called out-of-distribution", fontsize=11)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()
