"""Labels of any kind, and warnings of those that are not what they seem."""

import enum
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import get_scorer as sklearn_scorer

from skood import GMMDetector
from skood.calibration import ConformalDetector
from skood.data.labels import is_ood
from skood.ensemble import EnsembleDetector
from skood.metrics import auroc_score
from skood.model_selection import FitOnInliers


class Kind(enum.Enum):
    CAT = 0
    DOG = 1
    OTHER = -1


class Number(enum.IntEnum):
    CAT = 0
    DOG = 1
    OTHER = -1


# Labels of two classes and of OOD rows, as numbers.
NUMBERS = [0, 1, -1] * 10


def objects(values):
    """Return an array of these very objects."""
    return np.fromiter(values, object, len(values))


AS_NUMBERS = {
    "list of tensors": [torch.tensor(n) for n in NUMBERS],
    "objects that are tensors": objects([torch.tensor(n) for n in NUMBERS]),
    "list of 0-d arrays": [np.array(n) for n in NUMBERS],
    "tuple": tuple(NUMBERS),
    "tuple of tensors": tuple(torch.tensor(n) for n in NUMBERS),
    "Enum": [Kind(n) for n in NUMBERS],
    "IntEnum": [Number(n) for n in NUMBERS],
    "Decimal": [Decimal(n) for n in NUMBERS],
    "Fraction": [Fraction(n) for n in NUMBERS],
    "column": [[n] for n in NUMBERS],
    "Int64": pd.Series(NUMBERS, dtype="Int64"),
}


@pytest.mark.filterwarnings("ignore:A column-vector")
@pytest.mark.parametrize("kind", AS_NUMBERS)
def test_negative_numbers_mark_ood_rows_in_any_wrapping(kind, rng):
    """Tensors that are -1 were learned from, as a class of their own."""
    X, y = rng.normal(size=(30, 4)), AS_NUMBERS[kind]
    expected = GMMDetector().fit(X, np.array(NUMBERS))
    found = GMMDetector().fit(X, y)
    assert found.known_classes_.tolist() == [0, 1]
    assert found.offset_ == expected.offset_
    assert found.score(X, y) == expected.score(X, NUMBERS)


@pytest.mark.parametrize(
    "y",
    [
        np.array(["cat", "dog", "eel"] * 10, dtype=np.dtypes.StringDType()),
        pd.Series(["cat", "dog", "eel"] * 10, dtype="string"),
        ("cat", "dog", "eel") * 10,
    ],
    ids=["StringDType", "pandas", "tuple"],
)
def test_words_in_any_wrapping(y, rng):
    X = rng.normal(size=(30, 4))
    assert GMMDetector().fit(X, y).known_classes_.tolist() == ["cat", "dog", "eel"]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (3, "Got a int"),
        (np.array(1), "Got a ndarray"),
        (torch.tensor(1), "Got a Tensor"),
        ({1, 2}, "Got a set"),
        ({"a": 1}, "Got a dict"),
        ("cat", "Got a str"),
        ([[0, 1], [2]] * 15, "y holds a list for some row"),
        ([{"a": 1}] * 30, "y holds a dict for some row"),
        (np.arange(30) + 1j, "y holds complex numbers"),
        (pd.Series([0, 1, None] * 10, dtype="Int64"), "Input y contains NaN"),
    ],
)
def test_what_is_no_label_says_so(y, message, rng):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        GMMDetector().fit(rng.normal(size=(30, 4)), y)
    assert len(str(caught.value)) < 200


def test_minus_zero_is_zero(rng):
    y = np.array([-0.0, 1.0] * 15)
    known = GMMDetector().fit(rng.normal(size=(30, 4)), y).known_classes_
    assert not np.signbit(known).any()


@pytest.mark.parametrize("name", ["unknown", "OOD", "anomaly", "Outlier"])
def test_a_class_that_is_called_unknown(name, rng):
    X, y = rng.normal(size=(30, 4)), np.array(["cat", "dog", name] * 10)
    with pytest.warns(UserWarning, match=f"'{name}', which is taken for a class"):
        GMMDetector().fit(X, y)
    # The cure that the warning names.
    y = np.where(np.equal(y, name), -1, np.array(y, dtype=object))
    assert GMMDetector().fit(X, y).known_classes_.tolist() == ["cat", "dog"]
    with pytest.warns(UserWarning, match="taken for a class"), pytest.warns(match="set to nan"):
        auroc_score(["cat", name], [1.0, 0.0])


@pytest.mark.filterwarnings("error")
def test_names_beside_known_classes_are_ood(rng):
    """After a fit without them they need no mark."""
    X, y = rng.normal(size=(30, 4)), np.array(["cat", "dog", "unknown"] * 10)
    marked = np.where(y == "unknown", -1, y.astype(object))
    detector = GMMDetector().fit(X, marked)
    assert detector.score(X, y) == detector.score(X, marked)


def test_booleans(rng):
    X, y = rng.normal(size=(30, 4)), np.arange(30) < 5
    with pytest.warns(UserWarning, match="y is boolean") as record:
        detector = GMMDetector().fit(X, y)
    assert len(record) == 1
    assert "np.where(y, -1, 0)" in str(record[0].message)
    with pytest.warns(UserWarning, match="y is boolean"), pytest.warns(match="set to nan"):
        auroc_score(y, X[:, 0])
    assert detector.known_classes_.tolist() == [False, True]


@pytest.mark.filterwarnings("ignore:y holds no in-distribution")
@pytest.mark.parametrize(
    ("fitted", "scored"),
    [(["cat", "dog"], [0, 1]), ([0, 1], ["0", "1"])],
    ids=["numbers beside words", "words beside numbers"],
)
def test_labels_of_another_kind_than_the_classes(fitted, scored, rng):
    """{0, 1} are no "cat" and "dog": every row would be OOD."""
    X = rng.normal(size=(30, 4))
    detector = GMMDetector().fit(X, fitted * 15)
    with pytest.warns(UserWarning, match="All rows of such labels count as out-of-distribution"):
        detector.score(X, scored * 15)


SEARCH = """
import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from skood import GMMDetector
X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
for cv in (5, StratifiedKFold(4)):
    GridSearchCV(GMMDetector(), {"reg_covar": [0.1, 0.2]}, cv=cv, scoring=SCORING).fit(X, y)
"""


@pytest.mark.parametrize(
    ("scoring", "names"), [("None", "LeaveClassesOut"), ("'roc_auc'", "get_scorer('auroc')")]
)
def test_a_search_whose_scores_are_nan_says_why_once(scoring, names):
    """There were 40 warnings, and none of them named the remedy."""
    code = SEARCH.replace("SCORING", scoring)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count(names) == 1
    assert "egative" in found.stderr or scoring != "None"


@pytest.mark.parametrize(
    "detector",
    [
        GMMDetector(),
        ConformalDetector(GMMDetector(), method="loo"),
        EnsembleDetector([("gmm", GMMDetector())]),
        FitOnInliers(GMMDetector()),
    ],
    ids=lambda detector: type(detector).__name__,
)
def test_the_roc_auc_of_scikit_learn(detector, iris):
    """Right where one label is negative and one is not; else it is about something else."""
    X, y = iris
    detector.fit(X[y < 2], y[y < 2])
    roc_auc, right = sklearn_scorer("roc_auc"), np.where(y < 2, 1, -1)
    with pytest.warns(UserWarning, match="get_scorer"), pytest.raises(ValueError, match="class"):
        roc_auc(detector, X, y)
    with pytest.warns(UserWarning, match="get_scorer"):
        roc_auc(detector, X, (y > 0).astype(int))
    assert roc_auc(detector, X, right) == pytest.approx(detector.score(X, right))


def test_booleans_beside_classes():
    with pytest.warns(UserWarning, match="y is boolean"):
        assert is_ood([True, False], known_classes=["a", "b"]).all()
