"""What every test needs: the array API switched on, and GPU tests skipped without a GPU."""

import os

# Read when scipy and scikit-learn are imported; without it the array API checks skip silently.
os.environ["SCIPY_ARRAY_API"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # A core each: read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402

from skood.base import BaseDetector  # noqa: E402
from skood.testing.running import needs_gpu  # noqa: E402

# Run by `python -m tests.benchmarks`, and a plugin that has to come before torch.
collect_ignore = ["benchmarks", "pretended_gpu"]

settings.register_profile(
    "skood",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("skood")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark scikit-learn's checks on "cuda" as such, and skip what needs a GPU without one."""
    for item in items:
        if needs_gpu(getattr(item, "callspec", None) and item.callspec.params.get("check")):
            item.add_marker("cuda")
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def iris():
    """Return the iris features as float64 and their classes."""
    return load_iris(return_X_y=True)


@pytest.fixture
def rng():
    """Return a seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    """Return 24 random images (24, 1, 8, 8), float32, and labels of 4 classes."""
    return rng.normal(size=(24, 1, 8, 8)).astype(np.float32), np.arange(24) % 4


@pytest.fixture
def left_out(monkeypatch):
    """Return a function that fits a detector and gives its leave-one-out scores."""
    found = []
    threshold = BaseDetector._threshold

    def spy(self, scores, dtype):
        found.append(scores.numpy().copy())
        return threshold(self, scores, dtype)

    monkeypatch.setattr(BaseDetector, "_threshold", spy)

    def get(detector, X, y=None):
        detector.fit(X, y)
        return found[-1]

    return get
