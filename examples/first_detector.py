"""First detector on digits
========================

A detector on a trained network tells which digits it has never learned.

The network knows the digits 0 to 5. It will answer "3" or "5" to a 7 as readily as to a 3; the
detector on its features says when not to believe it.
"""

import torch
from skorch import NeuralNetClassifier
from torch import nn

from skood import GMMDetector
from skood.datasets import load_digits_ood

data = load_digits_ood(random_state=0)

torch.manual_seed(0)
classifier = NeuralNetClassifier(
    nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 6),
    ),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=0.003,
    max_epochs=25,
    verbose=0,
)
classifier.fit(data.X_train, data.y_train)
print(f"accuracy on fresh digits 0 to 5: {classifier.score(data.X_test, data.y_test):.3f}")

detector = GMMDetector(classifier.module_).fit(data.X_train, data.y_train)
for name, X in {"digits 0 to 5": data.X_test, **data.ood}.items():
    print(f"called out-of-distribution of {name}: {(detector.predict(X) == -1).mean():.1%}")
