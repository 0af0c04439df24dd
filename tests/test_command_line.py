"""`python -m skood fit` and `score`: what they write, what they refuse, and their examples."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skood
from skood import GMMDetector, KNNDetector
from skood.calibration import ConformalDetector
from skood.commands import evaluate as evaluate_command
from skood.commands import fit as fit_command
from skood.commands import main
from skood.commands import score as score_command
from skood.datasets import load_image_list
from skood.model_selection import FitOnInliers
from skood.open_set import OpenSetClassifier


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(n, shift=0.0):
    rng = np.random.default_rng(n)
    y = np.arange(n) % 3
    return (rng.normal(size=(n, 4)) + 4 * np.eye(4)[y] + shift).astype(np.float32), y


def scores_in(path):
    if path.endswith(".csv"):
        return pd.read_csv(path)
    with open(path) as lines:
        return pd.DataFrame(map(json.loads, lines))


def run(line):
    """Run a command as a shell would; return its status."""
    try:
        return main(shlex.split(line))
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("out", ["s.csv", "s.jsonl"])
@pytest.mark.parametrize("kind", ["a.npz", "a.npy", "a.csv", "a.parquet", "plain.csv", "order.npy"])
def test_from_rows_to_scores(kind, out, here, capsys):
    X, y = rows(90)
    fit_file = {"a.npz": "a.npz", "a.npy": "a.npy --labels y.npy"}.get(
        kind, f"{kind} --label-column label" if kind.startswith("a.") else f"{kind} --labels y.npy"
    )
    np.savez_compressed("a.npz", X=X, y=y)
    np.save("a.npy", X), np.save("y.npy", y), np.save("order.npy", np.asfortranarray(X))
    table = pd.DataFrame(X.astype(float), columns=list("abcd"))
    table.to_csv("plain.csv", header=False, index=False)
    table["label"], table["id"] = y, "text"
    table.to_csv("a.csv", index=False), table.to_parquet("a.parquet")
    ignore = "--ignore id" if kind in ("a.csv", "a.parquet") else ""
    assert run(f"fit --features {fit_file} {ignore} --detector gmm --out d.safetensors") == 0
    assert "GMMDetector learned from 90 rows of shape 4, of 3 classes" in capsys.readouterr().out
    assert run(f"score d.safetensors {kind} {kind} --out {out}") == 0
    found, error = scores_in(out), capsys.readouterr().err
    detector = GMMDetector().fit(X, y)
    expected = detector.score_samples(X)
    assert list(found.columns) == ["file", "row", "score", "decision"] and set(found.file) == {kind}
    assert found.row.tolist() == [*range(90)] * 2
    np.testing.assert_allclose(found.score, np.tile(expected, 2), rtol=1e-6)
    decisions = np.tile(detector.decision_function(X), 2)
    np.testing.assert_allclose(found.decision, decisions, atol=1e-4)
    n_ood = 2 * np.count_nonzero(detector.predict(X) == -1)
    assert f"{n_ood} of 180 rows are out-of-distribution" in error and out in error


@pytest.mark.parametrize("kind", ["a.npz", "a.npy", "a.csv"])
def test_in_chunks_it_learns_and_scores_the_same(kind, here, monkeypatch):
    X, y = rows(500)
    np.savez("a.npz", X=X), np.save("a.npy", X), np.save("y.npy", y)
    pd.DataFrame(X).to_csv("a.csv", index=False, header=False)
    for command in (fit_command, score_command):
        monkeypatch.setattr(command, "CHUNK_BYTES", 1600)
    learned = []
    partial_fit = GMMDetector.partial_fit
    monkeypatch.setattr(
        GMMDetector, "partial_fit", lambda *a: learned.append(len(a[1])) or partial_fit(*a)
    )
    assert run(f"fit --features {kind} --labels y.npy --detector gmm --out d.safetensors") == 0
    assert sum(learned) == 500 and len(learned) >= 5
    assert run(f"score d.safetensors {kind} --out s.csv") == 0
    expected = GMMDetector().fit(X, y)
    found = scores_in("s.csv")
    np.testing.assert_allclose(found.score, expected.score_samples(X), rtol=1e-4)
    assert found.row.tolist() == [*range(500)]


@pytest.mark.parametrize("what", ["Pipeline", "FitOnInliers", "OpenSetClassifier", "conformal"])
def test_decisions_are_those_of_the_detector_inside(what, here, capsys):
    X, y = rows(90)
    made = {
        "Pipeline": make_pipeline(StandardScaler(), GMMDetector()),
        "FitOnInliers": FitOnInliers(GMMDetector()),
        "OpenSetClassifier": OpenSetClassifier(LogisticRegression(), GMMDetector()),
        "conformal": ConformalDetector(GMMDetector(), method="loo", fdr="bh"),
    }[what].fit(X, y)
    if what == "FitOnInliers":
        made.estimator_.set_threshold(false_alarm_rate=0.3)
    skood.save(made, "d.safetensors")
    np.save("x.npy", X)
    assert run("score d.safetensors x.npy --out s.csv") == 0
    decides = made.detector_ if what == "OpenSetClassifier" else made
    expected = decides.predict(X) == -1
    np.testing.assert_array_equal(scores_in("s.csv").decision < 0, expected)
    assert f"{expected.sum()} of 90 rows are out-of-distribution" in capsys.readouterr().err
    assert what != "FitOnInliers" or expected.sum() > 10


def test_columns_are_found_by_their_names(here, capsys):
    X, _ = rows(60)
    table = pd.DataFrame(X.astype(float), columns=list("abcd"))
    table.to_csv("a.csv", index=False)
    table.assign(more="text")[["more", *"dcba"]].to_csv("b.csv", index=False)
    assert run("fit --features a.csv --detector gmm --out d.safetensors") == 0
    for name in "ab":
        assert run(f"score d.safetensors {name}.csv --out {name}_scores.csv") == 0
    one, two = (scores_in(f"{name}_scores.csv").score for name in "ab")
    np.testing.assert_array_equal(one, two)
    table.drop(columns="c").to_csv("c.csv", index=False)
    assert run("score d.safetensors c.csv") == 1
    assert "c.csv, rows 0 to 59: it lacks the columns c" in capsys.readouterr().err


def test_settings_and_methods_that_need_a_head(here):
    X, y = rows(200)
    np.savez("a.npz", X=X, y=y)
    line = "fit --features a.npz --detector NNGuideDetector --out d.safetensors"
    assert run(f"{line} --set k=3 energy_weighted=False --set false_alarm_rate=.2") == 0
    detector = skood.load("d.safetensors")
    assert (detector.k, detector.energy_weighted, detector.false_alarm_rate) == (3, False, 0.2)
    assert (
        run("fit --features a.npz --detector gmm --set covariance_type=tied --out e.safetensors")
        == 0
    )
    assert skood.load("e.safetensors").covariance_type == "tied"


@pytest.mark.parametrize("n_bytes", [400, 2**22])
def test_rows_that_are_not_learned_from_are_told(n_bytes, here, capsys, monkeypatch):
    monkeypatch.setattr(fit_command, "CHUNK_BYTES", n_bytes)
    X, y = rows(90)
    np.savez("a.npz", X=X, y=np.where(np.arange(90) < 70, y, -1))
    assert run("fit --features a.npz --detector gmm --out d.safetensors") == 0
    out = capsys.readouterr().out
    assert "learned from 70 rows of shape 4, of 3 classes.\n20 with a negative label were" in out


def test_messages_name_the_options_of_the_shell(images, here, capsys):
    skood.save(GMMDetector().fit(*rows(90)), "d.safetensors")
    np.save("a.npy", rows(9)[0])
    assert run("score d.safetensors a.npy --network net.pt2") == 2
    assert "holds all of its GMMDetector: it takes no --network." in capsys.readouterr().err
    line = "fit --features images/train --network net.pt2 --detector knn --out e.safetensors"
    assert run(f"{line} --set layer=none") == 2
    error = capsys.readouterr().err
    assert "the network has no layer 'none'" in error and "GraphModule" not in error


def bad_files():
    """Write files that cannot be used."""
    X, y = rows(60)
    np.savez("a.npz", X=X, y=y), np.save("y.npy", y[:9]), np.save("narrow.npy", X[:, :2])
    np.save("object.npy", np.array([[{}, 1]], dtype=object))
    wrong = X.copy()
    wrong[40, 1] = np.nan
    np.save("nan.npy", wrong)
    names = list("abcd")
    pd.DataFrame(wrong, columns=names).to_csv("nan.csv", index=False)
    pd.DataFrame(X, columns=names).assign(d="x").to_csv("text.csv", index=False)
    with open("a.npz", "rb") as whole, open("cut.npy", "wb") as cut:
        np.save(cut, X)
        cut.truncate(400)
        open("cut.npz", "wb").write(whole.read()[:300])
    for name in ("empty.npy", "empty.csv", "empty.safetensors", "empty.parquet"):
        open(name, "w").close()
    open("header.csv", "w").write("a,b\n")
    open("list.txt", "w").write("a.png 1\n")


FIT = "fit --detector gmm --out out.safetensors --features"
SCORE = "score d.safetensors --out out.csv"


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (f"{FIT} missing.npz", 2, "cannot read 'missing.npz': No such file"),
        (f"{FIT} cut.npz", 2, "cannot read 'cut.npz': it must be an .npz or .npy file"),
        (f"{FIT} object.npy", 2, "X in 'object.npy' must hold numbers in rows"),
        (f"{FIT} empty.csv", 2, "cannot read 'empty.csv': No columns"),
        (f"{FIT} header.csv", 2, "'header.csv' holds no rows"),
        (f"{FIT} nan.npy", 2, "nan.npy, row 40: it holds NaN or infinity"),
        (f"{FIT} nan.csv", 2, "nan.csv, row 40: it holds NaN or infinity"),
        (f"{FIT} text.csv", 2, "X has columns without numbers: d. .* --ignore leaves it out"),
        (f"{FIT} nan.csv --label-column z", 2, "'nan.csv' has no column 'z'; it has a, b, c, d"),
        (f"{FIT} a.npz --labels y.npy", 2, "'y.npy' has 9 labels for 60 rows"),
        (f"{FIT} a.npz --labels a.csv", 2, "cannot read 'a.csv': No such file"),
        (f"{FIT} a.npz --detector none", 2, "argument --detector: 'none' is none of actsub, "),
        (f"{FIT} a.npz --set k=3", 2, "--set k: GMMDetector has the parameters layer, "),
        (f"{FIT} a.npz --set reg_covar=x", 2, "The 'reg_covar' parameter of GMMDetector must"),
        (f"{FIT} a.npz --set reg_covar", 2, "argument --set: 'reg_covar' is not NAME=VALUE"),
        (f"{FIT} a.npz --out d.pkl", 2, "argument --out: 'd.pkl' does not end in .safetensors"),
        (f"{FIT} a.npz --network cut.npz", 2, "cut.npz cannot be read: .*torch.export.save"),
        (f"{FIT} list.txt", 2, "'list.txt' holds images, which need a network: --network"),
        (f"{SCORE} missing.npy", 2, "cannot read 'missing.npy': No such file"),
        (f"{SCORE} empty.npy", 2, "cannot read 'empty.npy': it must be an .npz or .npy"),
        (f"{SCORE} empty.parquet", 2, "cannot read 'empty.parquet': "),
        ("score empty.safetensors a.npz", 2, "empty.safetensors is damaged, or not from skood"),
        ("score d.safetensors a.npz --out no/s.csv", 2, "cannot write 'no/s.csv': No such file"),
        ("score d.safetensors nan.csv --out nan.csv", 2, "--out: nan.csv is one of the files"),
        (f"{SCORE} a.npz narrow.npy", 1, "narrow.npy, rows 0 to 59: X has 2 features, but GMM"),
        (f"{SCORE} a.npz cut.npy", 1, "'cut.npy' is cut off: it has fewer than 60 rows"),
        (f"{SCORE} a.npz nan.npy", 1, "nan.npy, row 40: it holds NaN or infinity"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_written(
    line, status, message, here, capsys
):
    bad_files()
    skood.save(GMMDetector().fit(*rows(90)), "d.safetensors")
    assert run(line) == status
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not list(here.glob("out*")) and not list(here.glob(".skood*"))


@pytest.fixture
def images(here):
    """Write images of three colours and noise, lists of them, and a network's file."""
    rng = np.random.default_rng(0)
    lines = {"train.txt": [], "test.txt": [], "dtd.txt": []}
    for split, n in {"train": 24, "test": 12, "new": 6, "dtd": 12}.items():
        for number in range(n):
            pixels = rng.integers(0, 60 if split != "dtd" else 256, (9, 12, 3))
            label = number % 3 if split != "dtd" else -1
            pixels[..., label] += 120 if split != "dtd" else 0
            folder = here / "images" / split / (f"class{label}" if split != "dtd" else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
            path = (folder / f"{number}.png").relative_to(here / "images").as_posix()
            lines.get(f"{split}.txt", []).append(f"{path} {label}")
    for name, of in lines.items():
        (here / name).write_text("\n".join(of))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 3)).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC, **dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)},)
    example = torch.rand(2, 3, 16, 17)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=shapes), "net.pt2")
    return net


@pytest.mark.filterwarnings("ignore:The largest logit")
def test_images_from_fit_to_scores(images, here, capsys):
    how = "--network net.pt2 --size 6 --mean .5 .5 .5 --std 2 2 2"
    line = f"fit --features train.txt --root images {how} --detector knn --set k=2"
    assert run(f"{line} --out d.safetensors") == 0
    assert run(f"score d.safetensors images/new dtd.txt --root images {how} --out s.csv") == 0
    found = scores_in("s.csv")

    def transform(image):
        image = image.resize((6, 6), Image.Resampling.BILINEAR, box=(1.5, 0, 10.5, 9))
        return (torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 2

    train, new, dtd = (
        load_image_list(*where, transform=transform)
        for where in (("images", "train.txt"), ("images/new",), ("images", "dtd.txt"))
    )
    detector = KNNDetector(images, k=2).fit(train)
    expected = np.concatenate([detector.score_samples(data) for data in (new, dtd)])
    np.testing.assert_allclose(found.score, expected, rtol=1e-4, atol=1e-6)
    assert found.file.tolist() == [*new.paths, *dtd.paths]
    capsys.readouterr()
    assert run("score d.safetensors images/new") == 2
    assert "was fitted with a network: give it by --network" in capsys.readouterr().err
    assert run("score d.safetensors images/new --network net.pt2") == 1
    assert "Are --size, --mean and --std those of fit?" in capsys.readouterr().err


def test_images_of_two_sizes(images, here, capsys):
    fit = "fit --features images/train --network net.pt2 --detector vim"
    assert run(f"{fit} --out d.safetensors") == 0
    Image.new("RGB", (5, 6)).save("images/dtd/x.png")
    for line in (
        "score d.safetensors images/dtd",
        "fit --features images/dtd --detector gmm --out e.safetensors",
        "evaluate --images id=images/dtd new=images/new",
    ):
        assert run(f"{line} --network net.pt2") == (1 if line.startswith("score") else 2)
        message = "images/dtd has images of 12 × 9 and of 5 × 6 pixels: --size makes them equal"
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The largest logit", "ignore:false_alarm_rate")
def test_images_evaluated(images, here, capsys):
    pictures = (
        "evaluate --network net.pt2 --root images --detectors GMMDetector MSPDetector --images"
    )
    assert run(f"{pictures} train=train.txt id=test.txt dtd=dtd.txt --output t.csv") == 0
    table = pd.read_csv("t.csv")
    data = {name: load_image_list("images", f"{name}.txt") for name in ("train", "test", "dtd")}
    extractor = skood.FeatureExtractor(images).fit(data["train"])
    X = {name: extractor.transform(part) for name, part in data.items()}
    detectors = [GMMDetector(extractor.head), skood.MSPDetector(extractor.head)]
    expected = skood.benchmark.evaluate(
        detectors,
        X["train"],
        data["train"].labels,
        X["test"],
        None,
        {"dtd": X["dtd"]},
        n_resamples=10,
    )
    np.testing.assert_allclose(table.auroc, expected.auroc, atol=1e-6)
    np.testing.assert_allclose(table.false_alarms, expected.false_alarms)
    # A half of the images is learned from.
    assert run(f"{pictures} id=images/test noise=images/dtd") == 0
    assert "6 in-distribution rows" in capsys.readouterr().out
    for wrong, message in {
        "id=test.txt": "needs id=PATH, and PATH of an OOD set",
        "id=test.txt dtd=nowhere": "cannot read 'nowhere'|nowhere",
        "id=test.txt dtd=dtd.txt --train a.npz": "not allowed with --train",
    }.items():
        assert run(f"{pictures} {wrong}") == 2
        assert re.search(message, capsys.readouterr().err)


def examples():
    """List the examples in the commands' help."""
    texts = [fit_command.EXAMPLES, score_command.EXAMPLES]
    texts.append(evaluate_command.EXAMPLES)
    joined = "\n".join(texts).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.startswith("  python -m skood ")]


@pytest.mark.filterwarnings("ignore")
def test_the_examples_of_the_help_run(images, here, capsys):
    for name, shift in {"train": 0, "a": 0, "b": 0, "c": 3, "new": 1}.items():
        X, y = rows(60, shift)
        np.savez(f"{name}.npz", X=X, y=y), np.save(f"{name}.npy", X), np.save("y.npy", y)
        table = pd.DataFrame(X, columns=list("abcd"))
        for day in ("monday", "tuesday"):
            table.to_csv(f"{day}.csv", index=False)
        table.assign(species=y).to_csv("t.csv", index=False)
    np.save("d.npy", X)
    lines = examples()
    assert len(lines) == 10
    for line in lines:
        arguments = line.removeprefix("python -m skood ").removesuffix(" | head")
        if arguments.startswith("score"):
            # With a detector that takes what is scored.
            source = "images/train --network net.pt2" if "images" in arguments else "train.npz"
            run(f"fit --features {source} --detector vim --out d.safetensors")
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)


def test_a_reader_that_leaves_sees_no_traceback(here):
    X, y = rows(30_000)
    np.save("a.npy", X)
    skood.save(GMMDetector().fit(X[:90], y[:90]), "d.safetensors")
    command = f"{sys.executable} -m skood score d.safetensors a.npy | head -2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("file,row,score,decision\na.npy,0,")
    assert done.stderr == ""
