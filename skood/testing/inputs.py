"""Checks of what X and y may be."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from skood._compat import get_namespace_and_device, move_estimator_to
from skood.testing.common import expect, load_iris_float, optional, read_only, with_model

INPUTS = {
    "fortran": np.asfortranarray,
    "read-only": read_only,
    "negative stride": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "big endian": lambda X: X.astype(">f8"),
    "list": lambda X: X.tolist(),
    "pandas": lambda X: optional("pandas").DataFrame(X),
    "polars": lambda X: optional("polars").DataFrame(X, schema=list("abcd")),
    "torch": torch.as_tensor,
    "requires grad": lambda X: torch.as_tensor(X).clone().requires_grad_(),
    "not contiguous": lambda X: torch.as_tensor(X.T.copy()).T,
    "object": lambda X: X.astype(object),
}


def check_kind_of_input(detector, kind):
    """Check that each kind of array gives the scores of a numpy array."""
    X, y = load_iris_float()
    converted = INPUTS[kind](X)
    fitted = clone(detector).fit(X, y)
    expected = fitted.score_samples(X)
    told = f"A {kind} array gives other scores than X as numpy float64, "
    np.testing.assert_allclose(
        fitted.score_samples(converted), expected, rtol=1e-10, err_msg=told + "in score_samples."
    )
    scores = clone(detector).fit(converted, y).score_samples(converted)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float64, "Scores must be float64."
    np.testing.assert_allclose(scores, expected, rtol=1e-10, err_msg=told + "in fit.")


def check_memmap(detector):
    """Check that a read-only memmap gives the scores of an array in memory."""
    X, y = load_iris_float()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        np.save(Path(folder) / "X.npy", X)
        memmap = np.load(Path(folder) / "X.npy", mmap_mode="r")
        scores = clone(detector).fit(memmap, y).score_samples(memmap)
    expected = clone(detector).fit(X, y).score_samples(X)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)


DTYPES = ["float32", "float16", "bfloat16", "int64", "uint8", "uint16"]


def check_dtypes(detector, dtype, agreement=1.0):
    """Check that other dtypes score as float64, and that float32 stays float32."""
    X, y = load_iris_float()
    tensor = torch.as_tensor(10 * X).to(getattr(torch, dtype))
    # The head is given, since logistic regression itself differs in float32.
    head = FrozenEstimator(LogisticRegression(max_iter=1000).fit(tensor.double().numpy(), y))
    exact = with_model(detector, head).fit(tensor.double().numpy(), y)
    exact = exact.score_samples(tensor.double().numpy())
    found = with_model(detector, head).fit(tensor, y).score_samples(tensor)
    expected = np.float32 if dtype == "float32" else np.float64
    assert found.dtype == expected, f"Scores of {dtype} rows are {found.dtype}, not {expected}."
    rtol = 1e-3 if dtype == "float32" else 1e-10
    if agreement < 1:
        agreeing = np.isclose(found, exact).mean()
        assert agreeing > agreement, f"Only {agreeing:.1%} of the {dtype} rows score as in float64."
    else:
        np.testing.assert_allclose(found, exact, rtol=rtol, atol=rtol)
    if dtype != "bfloat16":
        again = with_model(detector, head).fit(tensor.numpy(), y).score_samples(tensor.numpy())
        np.testing.assert_array_equal(again, found)


def check_results_follow_torch_under_dispatch(detector):
    """Check that tensors give tensors under ``array_api_dispatch``."""
    X, y = (torch.as_tensor(a) for a in load_iris_float())
    with config_context(array_api_dispatch=True):
        detector = clone(detector).fit(X, y)
        scores, labels = detector.score_samples(X), detector.predict(X)
    assert isinstance(scores, torch.Tensor) and labels.dtype == torch.int64
    assert isinstance(detector.known_classes_, torch.Tensor)


def check_moves_to_another_array_library(detector):
    """Check that tensors after numpy are refused until scikit-learn has moved the detector."""
    X, y = load_iris_float()
    detector = clone(detector).fit(X, y)
    tensor = torch.as_tensor(X)
    with config_context(array_api_dispatch=True):
        xp, _, device = get_namespace_and_device(tensor)
        with expect.assertRaisesRegex(ValueError, "must use the same namespace"):
            detector.predict(tensor)
        moved = move_estimator_to(detector, xp, device)
        found = moved.score_samples(tensor)
    assert isinstance(moved.known_classes_, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), detector.score_samples(X), rtol=1e-12)


def check_X_and_y_are_not_modified(detector):
    """Check that nothing is written to the arrays and tensors of the user."""
    X, y = load_iris_float()
    tensor = torch.as_tensor(X.copy())
    detector = clone(detector).fit(X, y)
    detector.score_samples(tensor)
    clone(detector).fit(tensor, y).predict(tensor)
    before = load_iris_float()
    np.testing.assert_array_equal(X, before[0], err_msg="X was written to.")
    np.testing.assert_array_equal(tensor, before[0], err_msg="The tensor X was written to.")
    np.testing.assert_array_equal(y, before[1], err_msg="y was written to.")


def check_bad_X_and_y(detector):
    """Check that ``fit`` tells what is wrong with its input."""
    X, y = load_iris_float()
    with_nan, with_inf = X.copy(), X.copy()
    with_nan[100, 2], with_inf[3, 0] = np.nan, np.inf
    cases = [
        (with_nan, y, "Input X contains NaN"),
        (torch.as_tensor(with_nan), y, "Input X contains NaN"),
        (with_inf, y, "Input X contains infinity"),
        (X[:0], y[:0], "0 sample"),
        (X[:1], y[:1], "1 sample"),
        (torch.as_tensor(X[:1]), y[:1], "1 sample"),
        (X[:, 0], y, "Reshape your data"),
        (torch.as_tensor(X[:, 0]), y, "Reshape your data"),
        (X, y[:-1], "inconsistent numbers of samples"),
        (X, -np.ones(150), "0 in-distribution sample"),
        (X, np.where(np.arange(150) == 3, 1, -1), "1 in-distribution sample"),
        (X, X[:, 0], "continuous"),
        (X, np.where(y == 1, np.nan, y), "Input y contains NaN"),
        (X, ["-1"] * 150, "marked by a negative number, not by a string"),
        (X.astype(complex), y, "Complex data not supported"),
        (torch.as_tensor(X).to(torch.complex64), y, "Complex data not supported"),
    ]
    for bad_X, bad_y, message in cases:
        with expect.assertRaisesRegex(ValueError, message):
            clone(detector).fit(bad_X, bad_y)
    with expect.assertRaisesRegex(TypeError, "mix the types"):
        clone(detector).fit(X, ["a"] * 75 + [3] * 75)
    with expect.assertRaisesRegex(TypeError, "[Ss]parse"):
        clone(detector).fit(csr_array(X), y)


def check_bad_X_after_fit(detector):
    """Check that other methods tell what is wrong with their input."""
    X, y = load_iris_float()
    with expect.assertRaises(NotFittedError):
        clone(detector).predict(X)
    fitted = clone(detector).fit(X, y)
    with expect.assertRaisesRegex(ValueError, "3 features"):
        fitted.predict(X[:, :3])
    with expect.assertRaisesRegex(ValueError, "NaN"):
        fitted.score_samples(np.full((2, 4), np.nan))
    with expect.assertRaisesRegex(ValueError, "score needs y"):
        fitted.score(X, None)
