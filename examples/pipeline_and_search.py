"""Embeddings and labels, no network
=================================

Embeddings and labels, no network: a Pipeline, and a search over its parameters.

Some OOD rows are at hand, labelled -1, so the search can be scored by AUROC and judged on others.
"""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline

from skood import ASHDetector, GMMDetector, NNGuideDetector
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score

data = load_digits_ood(random_state=0, as_images=False)
near = data.ood["near"]
half = len(near) // 2
X = np.vstack([data.X_train, near[:half]])
y = np.r_[data.y_train, -np.ones(half, dtype=int)]
X_new = np.vstack([data.X_test, near[half:]])
y_new = np.r_[data.y_test, -np.ones(len(near) - half, dtype=int)]

grids = {
    "GMM": (GMMDetector(), {"ood__covariance_type": ["full", "tied", "diag"]}),
    "NNGuide": (NNGuideDetector(), {"ood__k": [1, 10, 100]}),
    "ASH": (ASHDetector(), {"ood__percentile": [0.0, 0.2, 0.5], "ood__variant": ["p", "b"]}),
}
cv = StratifiedKFold(3, shuffle=True, random_state=0)
for name, (detector, grid) in grids.items():
    pipeline = Pipeline([("features", PCA(random_state=0)), ("ood", detector)])
    search = GridSearchCV(pipeline, {"features__n_components": [16, 32], **grid}, cv=cv)
    search.fit(X, y)
    auroc = auroc_score(y_new, search.score_samples(X_new))
    print(f"{name}: {search.best_params_}, AUROC on fresh rows {auroc:.3f}")
