"""A pipeline and a grid search
============================

Detectors have parameters, such as the number of neighbours `k` of NNGuide and the `percentile` of
the activations that ASH removes. Where some OOD rows are at hand, scikit-learn's `GridSearchCV`
chooses them: rows labelled -1 are left out by `fit` and counted as OOD by `score`, an AUROC.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline

from skood import ASHDetector, FeatureExtractor, NNGuideDetector
from skood.benchmark import train_digits_network
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

data = load_digits_ood(random_state=0)
net = train_digits_network(data.X_train, data.y_train, seed=0, max_epochs=30).module_

# %%
# Half of the digits 6 to 9 serve the search. The other half, and digits 0 to 5 that the network
# has not seen, tell how good the choice was.
near = data.ood["near"]
half = len(near) // 2
X = np.concatenate([data.X_train, near[:half]])
y = np.r_[data.y_train, np.full(half, -1)]
X_new = np.concatenate([data.X_test, near[half:]])
y_new = np.r_[data.y_test, np.full(len(near) - half, -1)]

# %%
# The network comes first and runs once over each split; its last layer, `net.fc`, is what the
# detectors need to make logits of features. Detectors are no classifiers, so the folds are asked
# for by name: with `cv=3` they would not hold equal shares of OOD rows.
ks = [1, 2, 5, 10, 20, 50, 100]
grids = {
    "NNGuide": (NNGuideDetector(net.fc), {"ood__k": ks}),
    "ASH": (
        ASHDetector(net.fc),
        {"ood__percentile": [0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9], "ood__variant": ["s", "b"]},
    ),
}
cv = StratifiedKFold(3, shuffle=True, random_state=0)
searches = {}
for name, (detector, grid) in grids.items():
    pipeline = Pipeline([("features", FeatureExtractor(net)), ("ood", detector)])
    searches[name] = search = GridSearchCV(pipeline, grid, cv=cv).fit(X, y)
    default = pipeline.fit(X, y).score(X_new, y_new)
    auroc = auroc_score(y_new, search.score_samples(X_new))
    print(f"{name}: {search.best_params_}")
    print(f"    AUROC on fresh rows {auroc:.3f}, of the default parameters {default:.3f}")

# %%
# AUROC over the grids, mean and standard deviation of the folds. How much a parameter matters
# depends on the method: `k` hardly here. ASH's percentile does: the features are 64, and where few
# are left there is little to tell digits by. Variant "b" gives all that it keeps the same value, so
# that removing little leaves it nothing but their sum.
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")


def draw(axis, search, values, rows, **style):
    """Draw the scores of some rows of a search."""
    mean, deviation = (search.cv_results_[f"{kind}_test_score"][rows] for kind in ("mean", "std"))
    axis.errorbar(values, mean, deviation, marker="o", capsize=3, **style)


results = searches["NNGuide"].cv_results_
draw(axes[0], searches["NNGuide"], results["param_ood__k"], slice(None), color="#0072B2")
axes[0].set(title="NNGuide", xlabel="k, neighbours", xscale="log", ylabel="AUROC on digits 6 to 9")
results = searches["ASH"].cv_results_
for variant, color in {"s": "#D55E00", "b": "#009E73"}.items():
    rows = results["param_ood__variant"] == variant
    values = results["param_ood__percentile"][rows]
    draw(axes[1], searches["ASH"], values, rows, color=color, label=f"variant {variant!r}")
axes[0].set_xticks(ks, ks)
axes[1].set(title="ASH", xlabel="percentile, the share of features removed")
axes[1].legend()
plt.show()
