"""The report: its figures are those of the rows, it holds all it needs, and nothing runs in it."""

import re
import xml.etree.ElementTree as ET
from html import unescape

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skood
from skood import EnergyDetector, GMMDetector
from skood.calibration import ConformalDetector
from skood.metrics import auroc_score
from skood.open_set import OpenSetClassifier
from tests.networks import SmallCNN, seeded

EVIL = "<script>alert('&')</script>"


@pytest.fixture
def data(rng):
    y = np.arange(300) % 3
    X = rng.normal(size=(300, 4)) + 3 * np.eye(3, 4)[y]
    return X[:150], y[:150], X[150:], y[150:], {"far": 3 * rng.normal(size=(40, 4))}


def cells(html, title):
    """Return the rows of the first table behind a title."""
    table = re.search(r"<table>.*?</table>", html[html.index(title) :], re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [[unescape(c) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", r, re.DOTALL)] for r in rows]


def test_figures_are_those_of_the_rows(data, tmp_path):
    X, y, X_test, y_test, ood = data
    detector = GMMDetector().fit(X, y)
    report = skood.report(detector, X_test, y_test, ood)
    report.save(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report._repr_html_() in html and repr(report) == "<Report: GMMDetector on 150 rows>"
    scores, far = detector.score_samples(X_test), detector.score_samples(ood["far"])
    alarms = detector.predict(X_test) == -1
    assert f"<b>{100 * alarms.mean():.1f} % (" in html
    for label, n, share, _ in cells(html, "<h2>False alarms")[1:]:
        own = alarms[y_test == int(label)]
        assert int(n) == len(own) and share == f"{100 * own.mean():.1f} %"
    _, (name, n, auroc, fpr, found) = cells(html, "<h2>OOD sets")
    expected = auroc_score(np.repeat([1, -1], [150, 40]), np.r_[scores, far])
    assert (name, n) == ("far", "40") and auroc.startswith(f"{expected:.3f} (")
    assert found.startswith(f"{100 * (detector.predict(ood['far']) == -1).mean():.1f} % (")
    assert " % (" in fpr
    rate, threshold, alarms, share = cells(html, "<h2>Other thresholds")[3]
    assert (
        rate == "5.0 %" and alarms == f"{100 * np.mean(scores < np.quantile(scores, 0.05)):.1f} %"
    )
    assert share == f"{100 * np.mean(far < np.quantile(scores, 0.05)):.1f} %"
    assert threshold == f"{np.quantile(scores, 0.05):.4g}"
    lowest = [int(row[0]) for row in cells(html, "<h2>Test rows")[1:]]
    assert lowest == np.argsort(scores)[:8].tolist()
    highest = [int(row[0]) for row in cells(html, "<h2>OOD rows")[1:]]
    assert highest == np.argsort(-far)[:8].tolist()
    assert "covariance_type" in html and torch.__version__.partition("+")[0] in html


def test_a_page_is_safe_and_complete(data, tmp_path):
    X, y, X_test, y_test, ood = data
    names = np.array([EVIL, "b", "c"])
    detector = GMMDetector(class_of_names(EVIL)).fit(X, names[y])
    report = skood.report(
        detector,
        X_test,
        names[y_test],
        {EVIL: ood["far"]},
        classifier=lambda X: [EVIL] * len(X),
    )
    report.save(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    # All tags are closed, and nothing comes from elsewhere.
    body = page[page.index("<body") : page.index("</html>")]
    ET.fromstring(body)
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|http", body)
    assert "default-src 'none'" in page


def class_of_names(text):
    """Return a network whose class has a name that would be a tag."""
    return type(text, (nn.Sequential,), {})(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def test_images_are_shown_with_their_predicted_classes(images):
    X, y = images
    net = seeded(SmallCNN)
    names = np.array(["ape", "bee", "cat", "dog"])
    detector = EnergyDetector(net).fit(X, y)
    html = skood.report(detector, X, y, {"bright": 5 * X})._repr_html_()
    assert html.count("<img") == 16
    largest = net(torch.from_numpy(X)).argmax(1).numpy()
    rows = cells(html, "<h2>Test rows")[1:]
    assert [int(row[3]) for row in rows] == [largest[int(row[0])] for row in rows]
    assert [int(row[2]) for row in rows] == [y[int(row[0])] for row in rows]
    html = skood.report(detector, X, classifier=lambda X: names[:1].repeat(len(X)))._repr_html_()
    assert {row[2] for row in cells(html, "<h2>Test rows")[1:]} == {"ape"}
    assert "OOD sets" not in html and "class" not in cells(html, "<h2>Test rows")[0]
    loader = DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=5)
    assert "predicted" not in skood.report(detector, loader)._repr_html_()


@pytest.mark.parametrize(
    "detector",
    [
        make_pipeline(StandardScaler(), GMMDetector()),
        ConformalDetector(GMMDetector()),
        ConformalDetector(GMMDetector(), fdr="bh"),
        OpenSetClassifier(LogisticRegression(), GMMDetector()),
        IsolationForest(random_state=0),
    ],
    ids=["pipeline", "conformal", "fdr", "open set", "sklearn"],
)
def test_of_other_estimators(detector, data):
    X, y, X_test, y_test, ood = data
    html = skood.report(detector.fit(X, y), X_test, y_test, ood)._repr_html_()
    out = detector.predict(X_test) == -1
    assert f"<b>{100 * out.mean():.1f} % (" in html
    assert ("predicted" in html) == isinstance(detector, OpenSetClassifier)


def test_what_a_report_refuses(data):
    X, y, X_test, y_test, ood = data
    detector = GMMDetector().fit(X, y)
    with pytest.raises(ValueError, match="150 of 150 rows out-of-distribution"):
        skood.report(detector, X_test, y_test + 7)
    with pytest.raises(ValueError, match="150 rows and y_test 3 labels"):
        skood.report(detector, X_test, y_test[:3])
    with pytest.raises(ValueError, match="not fitted"):
        skood.report(GMMDetector(), X_test)
    maps = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    images = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="one number a row"):
        skood.report(EnergyDetector(maps).fit(images), images)


def test_bad_arguments_are_told(iris):
    X, y = iris
    detector = GMMDetector().fit(X, y)
    with pytest.raises(ValueError, match="confidence=95 must lie"):
        skood.report(detector, X, y, confidence=95)
    for ood in (X, {None: X}):
        with pytest.raises(ValueError, match="dict of names"):
            skood.report(detector, X, y, ood)


class Bare:
    """A detector that is no scikit-learn estimator; a third of the scores tie at the lowest."""

    def decision_function(self, X):
        """Return scores."""
        return np.maximum(np.asarray(X)[:, 0] - 5.5, 0)


def test_false_alarms_of_other_thresholds_are_those_they_give(iris):
    X, _ = iris
    html = skood.report(Bare(), X, ood={"new": X - 9})._repr_html_()
    table = html.split("Other thresholds")[1]
    rows = re.findall(r"<td[^>]*>([^<]*)</td>", table)[:4]
    assert rows[0] == "1.0 %" and rows[2] == "0.0 %", rows
