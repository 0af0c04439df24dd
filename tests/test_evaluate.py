"""Comparing detectors on one's own arrays: `evaluate`, and the command of this name."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch
from torch import nn
from torch.utils.data import TensorDataset

import skood
import skood.commands.evaluate as command
from skood import FeatureExtractor, GMMDetector, NNGuideDetector
from skood.benchmark import evaluate, run
from skood.commands import main
from skood.metrics import (
    aupr_in_score,
    aupr_out_score,
    auroc_score,
    confidence_interval,
    fpr_at_tpr_score,
)

METRICS = {
    "auroc": auroc_score,
    "aupr_in": aupr_in_score,
    "aupr_out": aupr_out_score,
    "fpr95": fpr_at_tpr_score,
}


def rows(n, shift=0.0, seed=0):
    """Return rows of three classes in 6 dimensions, all moved along the first."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = rng.normal(size=(n, 6))
    X[:, 1:4] += 4 * np.eye(3)[y]
    X[:, 0] += shift
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def data():
    ood_sets = {"near": rows(120, 2, seed=2)[0], "far": rows(80, 9, seed=3)[0]}
    return *rows(300), *rows(150, seed=1), ood_sets


def test_values_are_those_of_the_metrics(data):
    X_train, y_train, X_id, y_id, ood_sets = data
    detectors = {
        "gmm": GMMDetector(),
        "scaled": make_pipeline(StandardScaler(), IsolationForest(random_state=0)),
        "density": KernelDensity(),
    }
    table = evaluate(detectors, *data, n_resamples=200, random_state=0)
    assert isinstance(table, pd.DataFrame)
    assert list(zip(table["detector"], table["ood"], strict=True)) == [
        (name, ood) for name in detectors for ood in ood_sets
    ]
    for _, row in table.iterrows():
        detector, X_ood = detectors[row["detector"]], ood_sets[row["ood"]]
        detector.fit(X_train, y_train)
        y = np.repeat([0, -1], [len(X_id), len(X_ood)])
        scores = detector.score_samples(np.concatenate([X_id, X_ood]))
        assert (row["n_id"], row["n_ood"]) == (150, len(X_ood))
        intervals = confidence_interval(list(METRICS), y, scores, n_resamples=200, random_state=0)
        for name, metric in METRICS.items():
            assert row[name] == pytest.approx(metric(y, scores), abs=1e-9)
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            assert tuple(row[[f"{name}_low", f"{name}_high"]]) == pytest.approx(
                tuple(intervals[name]), abs=1e-9
            )
        if hasattr(detector, "predict"):
            assert row["false_alarms"] == np.mean(detector.predict(X_id) == -1)
        else:
            assert np.isnan(row["false_alarms"])
        assert row["fit_seconds"] > 0 and row["score_seconds"] > 0 and row["memory_mib"] >= 0


def test_nothing_given_is_fitted_and_frozen_stays(data):
    X_train, y_train, *_ = data
    unfitted, fitted = GMMDetector(), GMMDetector().fit(X_train[:60], y_train[:60])
    names = []
    table = evaluate(
        {"a": unfitted, "b": FrozenEstimator(fitted)}, *data, n_resamples=50, on_result=names.append
    )
    assert not hasattr(unfitted, "offset_") and names == ["a", "b"]
    scores = np.concatenate([fitted.score_samples(X) for X in (data[2], data[4]["near"])])
    expected = auroc_score(np.repeat([0, -1], [150, 120]), scores)
    assert table.loc[2, "auroc"] == expected != table.loc[0, "auroc"]


def test_more_metrics_and_levels(data):
    wide, narrow = (
        evaluate(GMMDetector(), *data, metrics=["detection_error", "auroc"], confidence_level=level)
        for level in (0.99, 0.5)
    )
    assert list(wide.columns[4:10]) == [
        f"{metric}{end}" for metric in ("detection_error", "auroc") for end in ("", "_low", "_high")
    ]
    near = wide["ood"] == "near"
    assert (wide["auroc_low"] < narrow["auroc_low"])[near].all()
    assert (wide["auroc_high"] > narrow["auroc_high"])[near].all()


def test_networks_and_data_sets(data):
    X_train, y_train, X_id, y_id, ood_sets = data
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    detectors = {
        "guide": NNGuideDetector(net, random_state=0),
        "forest": make_pipeline(FeatureExtractor(net), IsolationForest(random_state=0)),
    }
    expected = evaluate(detectors, *data, n_resamples=50, random_state=0)
    train = TensorDataset(torch.from_numpy(X_train), torch.from_numpy(y_train))
    found = evaluate(
        {"guide": detectors["guide"]},
        train,
        None,
        TensorDataset(torch.from_numpy(X_id)),
        None,
        {name: TensorDataset(torch.from_numpy(X)) for name, X in ood_sets.items()},
        n_resamples=50,
        random_state=0,
    )
    assert found["auroc"].tolist() == pytest.approx(expected["auroc"][:2].tolist(), abs=1e-6)


def test_what_cannot_be_evaluated(data):
    X_train, y_train, X_id, y_id, ood_sets = data
    with pytest.raises(ValueError, match="ood_sets is empty"):
        evaluate(GMMDetector(), X_train, y_train, X_id, y_id, {})
    with pytest.raises(ValueError, match=r"y_id labels 51 of 150 rows .*: 7, -1 are negative"):
        labels = np.where(y_id == 0, 7, y_id)
        labels[1] = -1
        evaluate(GMMDetector(), X_train, y_train, X_id, labels, ood_sets)
    with pytest.raises(ValueError, match="several detectors of class GMMDetector"):
        evaluate([GMMDetector(), GMMDetector()], *data)
    with pytest.raises(ValueError, match="nonsense"):
        evaluate(GMMDetector(), *data, metrics=["nonsense"])


@pytest.mark.parametrize("missing", ["pandas", "psutil"])
def test_without_pandas_or_psutil(missing, data, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'{missing}: pip install "skood\[evaluate\]"'):
        evaluate(GMMDetector(), *data)


def test_no_detector_pays_for_being_the_first(data, monkeypatch):
    """What first calls load takes 4 s here, on a clock of the test's own."""
    now, loaded = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Slow(GMMDetector):
        def fit(self, X, y=None):
            now[0] += 0.2 if loaded else 4
            loaded.append(len(X))
            return super().fit(X, y)

    table = evaluate({"one": Slow(), "two": Slow()}, *data, n_resamples=10)
    np.testing.assert_allclose(table["fit_seconds"], 0.2)
    assert loaded == [256, 300, 256, 300]
    loaded.clear()
    bunch = Bunch(X_train=data[0], y_train=data[1], X_test=data[2], ood=data[4])
    results = run({"one": Slow(), "two": Slow()}, bunch)
    np.testing.assert_allclose([result.fit_seconds for result in results], 0.2)


# The command


@pytest.fixture
def files(data, tmp_path):
    """Write the rows to files; return the arguments that name them."""
    X_train, y_train, X_id, y_id, ood_sets = data
    np.savez(tmp_path / "train.npz", X=X_train, y=y_train)
    np.savez(tmp_path / "id.npz", features=X_id)
    np.save(tmp_path / "near.npy", ood_sets["near"])
    np.savez(tmp_path / "far.npz", X=ood_sets["far"])
    named = [
        f"{name}={tmp_path / file}" for name, file in (("near", "near.npy"), ("f r", "far.npz"))
    ]
    return [
        *("evaluate", "--train", str(tmp_path / "train.npz"), "--id", str(tmp_path / "id.npz")),
        *("--ood", named[0], "--ood", named[1]),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".md"])
def test_the_command_writes_what_evaluate_returns(suffix, files, data, tmp_path, capsys):
    path = tmp_path / f"table{suffix}"
    chosen = ["--detectors", "GMMDetector", "IsolationForest"]
    assert main([*files, *chosen, "--output", str(path), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    ood_sets = dict(zip(["near", "f r"], data[4].values(), strict=True))
    detectors = [GMMDetector(), IsolationForest(random_state=1)]
    expected = evaluate(detectors, *data[:4], ood_sets, random_state=1)
    if suffix == ".csv":
        found = pd.read_csv(path)
    elif suffix == ".json":
        found = pd.DataFrame(json.loads(path.read_text()))
    else:
        lines = path.read_text().splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found = pd.DataFrame(cells[2:], columns=cells[0])
        found = found.apply(lambda column: pd.to_numeric(column, errors="coerce").fillna(column))
    columns = [c for c in expected.columns if not c.endswith(("seconds", "mib"))]
    assert list(found.columns) == list(expected.columns)
    pd.testing.assert_frame_equal(
        found[columns], expected[columns], check_dtype=False, atol=5.1e-5, rtol=0
    )
    row = expected.iloc[0]
    assert f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]" in printed
    assert "f r" in printed and str(path) in printed


def test_the_command_runs_every_detector_by_default(files, capsys):
    assert main(files) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in command.names_of_detectors())


def test_the_command_without_labels(files, tmp_path, data, capsys):
    np.save(tmp_path / "train.npy", data[0])
    files[2] = str(tmp_path / "train.npy")
    assert main(files) == 0
    printed = capsys.readouterr().out
    assert "GMMDetector" in printed and "IsolationForest" in printed and "ASH" not in printed


def bad_files(folder):
    """Write files that cannot be used; return for each its name and what is said of it."""
    X = np.zeros((4, 6))
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.npz").write_text("a,b\n1,2\n")
    (folder / "cut.npz").write_bytes((folder / "train.npz").read_bytes()[:200])
    np.savez(folder / "object.npz", X=np.array([{}, 1], dtype=object))
    np.savez(folder / "two.npz", a=X, b=X)
    np.savez(folder / "flat.npz", X=np.zeros(4))
    np.savez(folder / "none.npz", X=X[:0])
    np.savez(folder / "words.npz", X=np.array([["a", "b"]]))
    np.savez(folder / "labels.npz", X=X, y=np.zeros(3))
    np.savez(folder / "narrow.npz", X=X[:, :5])
    np.savez(folder / "nan.npz", X=X * np.nan)
    np.savez(folder / "ood.npz", X=X, y=[0, 1, -1, -1])
    np.savez(folder / "many.npz", **{f"array{n}": X for n in range(999)})
    np.savez_compressed(folder / "zlib.npz", X=np.random.default_rng(0).normal(size=(99, 6)))
    content = bytearray((folder / "zlib.npz").read_bytes())
    content[200:300] = bytes(100)
    (folder / "zlib.npz").write_bytes(content)
    # What the entry says of itself stands in front of it and in the list at the end.
    for name, at, value in (("encrypted", (6, 8), 1), ("method", (8, 10), 93)):
        content = bytearray((folder / "narrow.npz").read_bytes())
        for offset in (at[0], content.rindex(b"PK\1\2") + at[1]):
            content[offset : offset + 2] = value.to_bytes(2, "little")
        (folder / f"{name}.npz").write_bytes(content)
    for name, header in {
        "huge": "{'descr': '<f8', 'fortran_order': False, 'shape': (8000000000000, 1)}",
        "nested": "{'descr': '<f8', 'fortran_order': False, 'shape': %s}" % ("(" * 4000),
        "minus": "{'descr': '<f8', 'fortran_order': False, 'shape': %s1}" % ("-" * 9000),
    }.items():
        magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        (folder / f"{name}.npy").write_bytes(magic + header.encode())
    unreadable = "must be an .npz or .npy file of numbers"
    return {
        "missing.npz": "No such file",
        "empty.npz": unreadable,
        "text.npz": unreadable,
        "cut.npz": unreadable,
        "object.npz": unreadable,
        "two.npz": "holds a, b: one array must be called X",
        "flat.npz": "has shape (4,)",
        "none.npz": "it has shape (0, 6)",
        "words.npz": "dtype <U1",
        "labels.npz": "has shape (3,); X has 4 rows",
        "narrow.npz": "--id has rows of shape (5,), --train of shape (6,)",
        "nan.npz": "contains NaN",
        "ood.npz": "y_id labels 2 of 4 rows",
        "many.npz": "holds array0, array1, array2, ",
        "zlib.npz": unreadable,
        "encrypted.npz": unreadable,
        "method.npz": unreadable,
        "huge.npy": "that takes more memory than there is",
        "nested.npy": unreadable,
        "minus.npy": "that takes more memory than there is",
    }


def test_bad_files_are_told_in_one_line(files, tmp_path, capsys):
    for name, message in bad_files(tmp_path).items():
        arguments = [*files[:4], str(tmp_path / name), *files[5:]]
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        printed = capsys.readouterr().err
        assert stopped.value.code == 2, name
        assert message in printed, (name, printed)
        assert printed.startswith("python -m skood: error: "), (name, printed)
        assert printed.count("\n") == 1 and len(printed) < 700, (name, printed)


@pytest.mark.parametrize("missing", ["pandas", "psutil"])
def test_what_the_command_needs_is_told_before_anything_is_read(
    missing, files, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(command, "read_rows", None)
    with pytest.raises(SystemExit):
        main(files)
    assert f'needs {missing}: pip install "skood[evaluate]"\n' in capsys.readouterr().err


def test_a_table_that_cannot_be_written_any_more(files, tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.csv"
    monkeypatch.setattr(command, "table_output", lambda text: tmp_path / "gone" / text)
    assert main([*files, "--detectors", "GMMDetector", "--output", "t.csv"]) == 1
    out, error = capsys.readouterr()
    assert "GMMDetector" in out and not path.exists()
    assert error.startswith(f"Cannot write {tmp_path / 'gone' / 't.csv'}: ")
    assert "None" not in error and error.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"skood {skood.__version__}\n"


def test_bad_arguments(files, tmp_path, capsys):
    for arguments, message in {
        ("--ood", "near"): "is not NAME=FILE",
        ("--ood", files[-1]): "each set needs a name of its own",
        ("--output", "table.txt"): "does not end in .csv or .md or .json",
        ("--detectors", "Nonsense"): "invalid choice: 'Nonsense'",
    }.items():
        with pytest.raises(SystemExit):
            main([*files, *arguments])
        assert message in capsys.readouterr().err


def test_the_command_from_a_shell(files):
    done = subprocess.run(
        [sys.executable, "-m", "skood", *files, "--detectors", "GMMDetector"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "GMMDetector" in done.stdout
