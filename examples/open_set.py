"""A class, or unknown
===================

A classifier of the digits 0 to 5 is shown the digits 6 to 9 as well. It should name the class of
what it knows and say "unknown" of the rest. `OpenSetClassifier` takes both answers from one pass
through the network.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from skood import GMMDetector, NNGuideDetector
from skood.benchmark import default_baselines, train_digits_network
from skood.datasets import load_digits_ood
from skood.metrics import confidence_interval, oscr_score, paired_test
from skood.open_set import OpenSetClassifier

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

data = load_digits_ood(random_state=0)
net = train_digits_network(data.X_train, data.y_train, seed=0).module_
X = np.concatenate([data.X_test, data.ood["near"]])
y = np.r_[data.y_test, np.full(len(data.ood["near"]), -1)]

models = {
    "GMM": OpenSetClassifier(net, GMMDetector()),
    "NNGuide": OpenSetClassifier(net, NNGuideDetector()),
}
for name, model in models.items():
    model.fit(data.X_train, data.y_train)
    print(f"{name}: accuracy {model.score(X, y):.3f}, unknown being right for the digits 6 to 9")

# %%
# What it says of some digits. In orange what is called unknown, in blue a class; a cross marks
# what is wrong.
shown = np.random.default_rng(0).choice(len(X), 24, replace=False)
said = models["GMM"].predict(X[shown])
figure, axes = plt.subplots(3, 8, figsize=(8, 3.6), layout="constrained")
for axis, image, label, truth in zip(axes.flat, X[shown, 0], said, y[shown], strict=True):
    axis.imshow(image, cmap="gray_r")
    axis.set(xticks=[], yticks=[])
    wrong = "" if label == truth else " ×"
    text, color = ("unknown", "#D55E00") if label == -1 else (f"a {label}", "#0072B2")
    axis.set_title(text + wrong, color=color, fontsize=11)

# %%
# **Is it better than the usual way**, to call those rows unknown whose largest softmax probability
# is low? OSCR compares them at all thresholds at once: the area under the share of known rows that
# are accepted *and* classified correctly, over the share of unknown rows that are accepted. All
# scores are of the same rows, so their differences are tested in pairs: that is sharper than to
# look whether two intervals overlap.
softmax = default_baselines(net)["max softmax"].fit(data.X_train, data.y_train)
scores = {name: model.score_samples(X) for name, model in models.items()}
scores["max softmax"] = softmax.score_samples(X)
# The class of the largest logit, without the reject option.
classes = models["GMM"].predict_proba(X).argmax(axis=1)
for name, values in scores.items():
    low, high = confidence_interval("oscr", y, values, y_pred=classes, random_state=0)
    print(
        f"{name:12} OSCR {oscr_score(y, classes, values):.4f}, 95 % interval {low:.4f}–{high:.4f}"
    )
for name in models:
    difference, low, high, pvalue = paired_test(
        "oscr", y, scores[name], scores["max softmax"], y_pred=classes, random_state=0
    )
    print(
        f"{name} less max softmax: {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, "
        f"p = {pvalue:.2g}"
    )

# %%
# The curves that OSCR is the area under. They start where every digit is called unknown and end
# at the accuracy on the digits 0 to 5.
known, correct = y >= 0, classes == y
figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
for (name, values), color in zip(scores.items(), ["#0072B2", "#009E73", "#D55E00"], strict=True):
    order = np.argsort(-values)
    accepted = np.cumsum(~known[order]) / (~known).sum()
    right = np.cumsum(correct[order]) / known.sum()
    axis.plot(accepted.clip(1e-3), right, color=color, label=name)
axis.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1.02))
axis.set_xlabel("unknown digits that are accepted")
axis.set_ylabel("known digits, accepted and correct")
axis.set_xticks([1e-3, 1e-2, 1e-1, 1], ["≤0.1 %", "1 %", "10 %", "100 %"])
axis.legend(loc="lower right")
plt.show()
