"""Watching a stream: the evidence, what is counted, saved and shown."""

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skood import GMMDetector, KNNDetector
from skood.calibration import ConformalDetector
from skood.decisions import evidence, watched
from skood.decisions.evidence import PATIENCE, POWERS, SHARES, Evidence, pseudo_random
from skood.monitoring import Monitor


def rows(rng, n, shift=0.0, share=0.0):
    X = rng.normal(size=(n, 3))
    X[rng.random(n) < share] += shift
    return X


@pytest.fixture
def detector(rng):
    return GMMDetector().fit(rows(rng, 300))


@pytest.fixture
def monitor(detector, rng):
    return Monitor(detector, random_state=0).calibrate(rows(rng, 300))


def evidence_plain(calibration, scores):
    """Sum over which density is bet on when, as a forward pass over states."""
    seen, capital, values = list(calibration), np.array(SHARES), []
    for n, score in enumerate(scores):
        p = (1 + sum(s <= score for s in seen)) / (1 + len(seen))
        seen.append(score)
        move = 1 / (PATIENCE + n)
        capital = (1 - move) * capital + move * capital.sum() * np.array(SHARES)
        capital = capital * [k * p ** (k - 1) for k in POWERS]
        values.append(capital.sum())
    return values


def test_evidence_by_its_definition(rng):
    calibration = rng.normal(size=30)
    # Some are equal.
    scores = np.round(np.r_[rng.normal(size=50), rng.normal(-1.5, size=30)], 1)
    one = Evidence(calibration, seed=0)
    values = [one.add(score) for score in scores]
    np.testing.assert_allclose(values, evidence_plain(calibration, scores), rtol=1e-12)
    assert max(values) > 20


@pytest.mark.parametrize("largest", [evidence.POOL, 20])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_evidence_of_exchangeable_scores(largest, kind):
    """The mean is at most 1, and of 1 / .05 the share of runs at most .05; pools overflow too."""
    rng, ends, peaks = np.random.default_rng(1), [], []
    for run in range(300):
        scores = rng.normal(size=150)
        if kind == "ties":
            scores = np.round(scores)
        one = Evidence(scores[:20], seed=run, largest=largest)
        values = [one.add(score) for score in scores[20:]]
        ends.append(values[-1])
        peaks.append(max(values))
        assert len(one.pool) == min(largest, 150)
    error = np.std(ends) / len(ends) ** 0.5
    assert np.mean(ends) < 1 + 3 * error
    assert np.mean(np.array(peaks) >= 20) < 0.05


def test_ranks_in_a_full_pool_are_uniform_and_independent():
    """As the proof says, of scores that are not equal."""
    rng, n_pool = np.random.default_rng(0), 4
    places = []
    for run in range(4000):
        one = Evidence(rng.normal(size=n_pool), seed=run, largest=n_pool)
        own = []
        for score in rng.normal(size=3):
            own.append(sum(np.array(one.pool) <= score))
            one.add(score)
        places.append(own)
    table = np.zeros((5, 5))
    np.add.at(table, tuple(np.transpose(places)[:2]), 1)
    # Chi-square with 24 degrees of freedom: 51 is its quantile of .999.
    assert ((table - 160) ** 2 / 160).sum() < 51
    last = np.bincount(np.transpose(places)[2], minlength=5)
    assert ((last - 800) ** 2 / 800).sum() < 18


def test_pseudo_random_places_are_uniform():
    counts = np.bincount([pseudo_random(7, n, 10) for n in range(10_000)], minlength=10)
    assert len(counts) == 10 and abs(counts - 1000).max() < 130


@pytest.mark.parametrize("before", [0, 1000])
def test_a_shift_is_found(before):
    delays = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        detector = GMMDetector().fit(rows(rng, 300))
        monitor = Monitor(detector, random_state=0).calibrate(rows(rng, 300))
        if before:
            monitor.update(rows(rng, before))
        report = monitor.update(rows(rng, 400, shift=3, share=0.2))
        delays.append((report.alarm_at or math.inf) - before)
    assert np.median(delays) < 100


def test_rows_that_are_more_usual_raise_no_alarm(monitor, rng):
    report = monitor.update(0.3 * rows(rng, 2000))
    assert (
        not report.alarm
        and report.e_value < 1
        and report.p_value == pytest.approx(min(1, report.p_value))
    )


def test_counts_windows_and_intervals(monitor, detector, rng):
    X = rows(rng, 250, shift=3, share=0.1)
    report = monitor.update(X[:130])
    monitor.update(X[130:])
    called = detector.predict(X) == -1
    assert (report.n_rows, report.n_ood) == (130, called[:130].sum())
    assert report.interval[0] < report.share < report.interval[1]
    table = monitor.to_frame()
    assert list(table.columns) == [
        "start",
        "stop",
        "n_rows",
        "n_ood",
        "share",
        "low",
        "high",
        "e_value",
    ]
    assert table[["start", "stop"]].values.tolist() == [[0, 100], [100, 200], [200, 250]]
    assert table.n_ood.tolist() == [
        part.sum() for part in (called[:100], called[100:200], called[200:])
    ]
    assert ((table.low <= table.share) & (table.share <= table.high)).all()
    assert table.e_value.iloc[-1] == monitor.e_value
    assert (monitor.n_rows, monitor.n_ood) == (250, called.sum())
    assert len(monitor.to_frame(by="group")) == 0


def test_interval_of_clopper_and_pearson():
    share, low, high = watched.share_interval([0, 5, 10], [10, 10, 10], 0.95)
    np.testing.assert_allclose(share, [0, 0.5, 1])
    np.testing.assert_allclose(low, [0, 0.1871, 0.6915], atol=1e-4)
    np.testing.assert_allclose(high, [0.3085, 0.8129, 1], atol=1e-4)


@pytest.mark.parametrize("pool", [evidence.POOL, 250])
def test_chunks_and_resuming_make_no_difference(pool, detector, rng, monkeypatch):
    monkeypatch.setattr(watched, "POOL", pool)
    monkeypatch.setattr(watched, "GROUP_POOL", 60)
    X, calibration = rows(rng, 330, shift=2, share=0.1), rows(rng, 200)

    def start():
        monitor = Monitor(detector, by_sign, window=40, history=5, random_state=3)
        return monitor.calibrate(calibration)

    whole, parts = start(), start()
    whole.update(X)
    for i, part in enumerate(np.array_split(X, 7)):
        parts.update(part)
        if i == 2:
            state = json.loads(json.dumps(parts.to_dict()))
            parts = Monitor.from_dict(detector, state, by_sign)
        if i == 4:
            parts = pickle.loads(pickle.dumps(parts))
    assert parts.to_dict() == whole.to_dict() and parts.e_value == whole.e_value
    for by in ("window", "group"):
        pd.testing.assert_frame_equal(parts.to_frame(by), whole.to_frame(by))
    assert len(whole.to_frame()) == 5
    assert len(whole.to_dict()["evidence"]["pool"]) == min(pool, 530)
    assert whole.reset().update(X) == start().update(X)


def by_sign(X):
    return np.where(X[:, 0] > 0, "right", "left")


def test_one_sub_population_changes(detector, rng):
    monitor = Monitor(detector, by_sign, random_state=0).calibrate(rows(rng, 500))
    X = rows(rng, 500)
    X[(X[:, 0] > 0) & (np.arange(500) % 4 == 0), 2] += 4
    monitor.update(X)
    table = monitor.to_frame("group").set_index("group")
    assert table.n_rows.to_dict() == {name: (by_sign(X) == name).sum() for name in table.index}
    assert monitor.alarm and table.e_value["right"] > 20 > table.e_value["left"]
    both = monitor._watched.evidence.value, table.e_value.mean()
    assert monitor.e_value == pytest.approx(max(both) / 2)


def test_sub_populations_without_calibration_are_counted(detector, rng, monkeypatch):
    monkeypatch.setattr(watched, "MAX_GROUPS", 3)
    monitor = Monitor(detector, random_state=0)
    monitor.update(rows(rng, 50), groups=np.arange(50) % 5)
    monitor.update(rows(rng, 5))
    table = monitor.to_frame("group")
    assert table.group.tolist() == [0, 1, 2, "(others)"]
    assert table.n_rows.tolist() == [10, 10, 10, 20] and table.e_value.isna().all()
    assert monitor.n_rows == 55


def test_a_classifier_tells_sub_populations(iris):
    X, y = iris
    classifier = LogisticRegression(max_iter=1000).fit(X[::2], y[::2])
    detector = GMMDetector().fit(X[::2], y[::2])
    monitor = Monitor(detector, classifier).calibrate(X[1::4], y[1::4])
    monitor.update(X[3::4])
    assert monitor.to_frame("group").group.tolist() == [0, 1, 2]
    assert not monitor.to_frame("group").e_value.isna().any()


def test_what_it_starts_from(detector, rng):
    X = rows(rng, 200)
    labels = np.where(np.arange(200) % 2, 0, -1)
    by_labels = Monitor(detector).calibrate(X, labels)
    inside = Monitor(detector).calibrate(X[labels == 0])
    assert by_labels._calibration == inside._calibration
    monitor = Monitor(detector)
    monitor.update(X)
    assert monitor._calibration == detector._kept_scores["scores"].tolist()
    detector.set_threshold(X)
    monitor = Monitor(detector)
    monitor.update(X)
    np.testing.assert_array_equal(monitor._calibration, np.sort(detector.score_samples(X)))


def test_detectors_of_all_kinds(rng):
    X, fresh = rows(rng, 300), rows(rng, 300, shift=4, share=0.2)
    forest = IsolationForest(random_state=0).fit(X[:200])
    with pytest.raises(ValueError, match="keeps no scores"):
        Monitor(forest).update(fresh)
    pipeline = make_pipeline(StandardScaler(), KNNDetector(normalize=False)).fit(X[:200])
    conformal = ConformalDetector(GMMDetector(), random_state=0).fit(X[:200])
    for one in (forest, pipeline, conformal, GMMDetector().partial_fit(X[:200])):
        monitor = Monitor(one).calibrate(X[200:])
        assert monitor.update(fresh).n_ood == (one.predict(fresh) == -1).sum()
        # P-values are few different numbers, which tell little.
        assert monitor.alarm or one is conformal
    assert Monitor(pipeline).update(fresh).alarm


def test_a_sample_of_many_calibration_rows(detector, rng, monkeypatch):
    monkeypatch.setattr("skood.decisions.monitor.POOL", 100)
    X = rows(rng, 300)
    one, two = (Monitor(detector, random_state=seed).calibrate(X) for seed in (0, 0))
    assert len(one._calibration) == 100 and one._calibration == two._calibration
    assert one._calibration == sorted(one._calibration)


def test_threads_count_every_row(monitor, rng):
    parts = [rows(rng, 20) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(monitor.update, parts))
    assert monitor.n_rows == 800 == monitor.to_frame().n_rows.sum()
    assert monitor.n_ood == sum(report.n_ood for report in reports)


def test_what_goes_wrong_leaves_it_as_it_was(monitor, rng):
    monitor.update(rows(rng, 10))
    before = monitor.to_dict()
    for bad in (np.full((3, 3), np.nan), rows(rng, 5)[:, :2]):
        with pytest.raises(ValueError):
            monitor.update(bad)
    with pytest.raises(ValueError, match="one for each of 5 rows"):
        monitor.update(rows(rng, 5), groups=[1, 2])
    with pytest.raises(ValueError, match="no in-distribution row"):
        monitor.calibrate(rows(rng, 2), [-1, -1])
    assert monitor.to_dict() == before
    with pytest.raises(ValueError, match="by must be"):
        monitor.to_frame("row")


def test_bad_parameters_and_states(detector, monitor):
    for bad in ({"level": 0}, {"level": 1}, {"confidence": "a"}, {"window": 0}, {"history": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Monitor(detector, **bad)
    with pytest.raises(TypeError, match="classifier"):
        Monitor(detector, 3)
    with pytest.raises(ValueError, match="not fitted"):
        Monitor(GMMDetector())
    state = monitor.to_dict()
    with pytest.raises(ValueError, match="format"):
        Monitor.from_dict(detector, {**state, "format": 2})
    for name in ("windows", "peak", "params", "evidence"):
        with pytest.raises(ValueError, match="damaged"):
            Monitor.from_dict(detector, {**state, name: "x"})


def test_display(detector, rng):
    monitor = Monitor(detector, lambda X: ["<b>"] * len(X))
    assert "no alarm" in repr(monitor) and "no alarm" in monitor._repr_html_()
    monitor.update(rows(rng, 1))
    assert "<circle" in monitor._repr_html_()
    monitor.update(rows(rng, 900, shift=5, share=0.5))
    html = monitor._repr_html_()
    assert "<polyline" in html and "&lt;b&gt;" in html and "<b>" not in html.split("<table>")[1]
    assert f"alarm at row {monitor.alarm_at}" in repr(monitor)
    assert "nan" not in html
