"""What every test needs: the array API switched on, and GPU tests skipped without a GPU."""

import os

# Read when scipy and scikit-learn are imported; without it the array API checks skip silently.
os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402

from skood.testing.running import needs_gpu  # noqa: E402

# Run by `python -m tests.benchmarks`, and a plugin that has to come before torch.
collect_ignore = ["benchmarks", "pretended_gpu"]


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
