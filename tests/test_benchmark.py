"""The main job, `python -m skood`: its parts, its table, its picture, its errors."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal
from scipy.stats import rankdata
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.utils import Bunch

import skood
import skood.commands.digits as command
from skood import FeatureExtractor, GMMDetector, benchmark
from skood.commands import main
from skood.commands.arguments import output
from skood.datasets import load_digits_ood

KINDS = ["near", "textures", "noise"]
N_EPOCHS = 5
METRICS = ["AUROC", "AUPR-out", "FPR95"]
METHODS = list(benchmark.default_detectors(None))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Batches this small wait for other processes where they use two threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def data():
    return load_digits_ood()


@pytest.fixture(scope="module")
def net(data):
    return benchmark.train_digits_network(data.X_train, data.y_train, max_epochs=N_EPOCHS)


@pytest.fixture(scope="module")
def results(net, data):
    return benchmark.run(
        benchmark.default_detectors(net.module_, random_state=0),
        data,
        baselines=benchmark.default_baselines(net.module_, random_state=0),
    )


def made_up(name="Some", baseline=False, kinds=("near",), shift=2.0, nominal=0.05):
    """Return a result with scores of two normal distributions `shift` apart."""
    scores = normal.ppf((np.arange(200) + 0.5) / 200)
    return benchmark.Result(
        name=name,
        baseline=baseline,
        fit_seconds=0.0123,
        score_seconds=4.5678,
        threshold=-1.5,
        false_alarms=0.07,
        nominal=nominal,
        scores=scores,
        ood_scores={kind: scores - shift - n for n, kind in enumerate(kinds)},
    )


# The network


def test_network_shape():
    net = benchmark.DigitsNetwork(n_classes=4).eval()
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 4)
    assert net.fc.in_features == 64
    assert isinstance(net.body[-1], torch.nn.ReLU)


def test_random_affine_acts_in_training_only():
    images = torch.rand(50, 1, 8, 8)
    augment = benchmark.RandomAffine()
    assert augment.eval()(images) is images
    moved = augment.train()(images)
    assert moved.shape == images.shape
    assert (moved - images).abs().amax((1, 2, 3)).min() > 0.01


def test_random_affine_of_no_strength_changes_nothing():
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(benchmark.RandomAffine(0, 0)(images), images)


def test_random_affine_shifts_by_its_unit():
    # One bright pixel in the middle of 65: a shift of 0.2 half images is 6.5 pixels.
    images = torch.zeros(2000, 1, 65, 65)
    images[:, :, 32, 32] = 1
    moved = benchmark.RandomAffine(linear=0, shift=0.2)(images)
    columns = moved.sum((1, 2)) @ torch.arange(65.0) / moved.sum((1, 2, 3))
    assert columns.std().item() == pytest.approx(6.5, rel=0.1)


def test_training_learns_repeats_and_leaves_the_random_state(net, data):
    assert net.score(data.X_test, data.y_test) > 0.5
    torch.manual_seed(1)
    before = torch.get_rng_state()
    state = net.module_.state_dict()
    for seed, equal in ((0, True), (1, False)):
        again = benchmark.train_digits_network(
            data.X_train, data.y_train, seed=seed, max_epochs=N_EPOCHS
        )
        same = [torch.equal(v, state[name]) for name, v in again.module_.state_dict().items()]
        assert all(same) == equal
    assert torch.equal(torch.get_rng_state(), before)


def test_training_calls_back_each_epoch_and_pickles_without(data):
    calls = []
    X, y = data.X_train[:64], data.y_train[:64]
    benchmark.train_digits_network(X, y, max_epochs=3, on_epoch=lambda: calls.append(1))
    assert len(calls) == 3
    net = benchmark.train_digits_network(X, y, max_epochs=1)
    assert pickle.loads(pickle.dumps(net)).predict(X).shape == (64,)


# The detectors


def test_a_detector_of_each_kind_is_there(results):
    assert set(METHODS) < set(skood.__all__) and len(METHODS) == 9
    assert [r.name for r in results] == [*METHODS, "energy", "max softmax", "IsolationForest"]
    assert [r.baseline for r in results] == [False] * len(METHODS) + [True] * 3
    assert results[-2].label == "max softmax (baseline)"


def test_baselines_are_plain(net, data, results):
    with torch.no_grad():
        logits = net.module_.eval()(torch.from_numpy(data.X_test)).numpy().astype(float)
    exps = np.exp(logits)
    energy, softmax, forest = results[-3:]
    np.testing.assert_allclose(energy.scores, np.log(exps.sum(1)), rtol=1e-5)
    np.testing.assert_allclose(
        softmax.scores, (exps / exps.sum(1, keepdims=True)).max(1), rtol=1e-5
    )
    features = FeatureExtractor(net.module_).fit(data.X_train)
    train, test = (features.transform(X) for X in (data.X_train, data.X_test))
    plain = IsolationForest(contamination=0.05, random_state=0).fit(train)
    np.testing.assert_allclose(forest.scores, plain.score_samples(test))
    assert forest.threshold == pytest.approx(plain.offset_)


def test_detectors_leave_the_network_alone(net, data):
    detectors = benchmark.default_detectors(FrozenEstimator(net))
    detectors["NACDetector"].fit(data.X_train, data.y_train)
    assert not hasattr(detectors["NACDetector"], "model_")


# The measurements


def test_results_against_a_plain_computation(net, data, results):
    detector = GMMDetector(net.module_).fit(data.X_train, data.y_train)
    result = results[METHODS.index("GMMDetector")]
    inside = detector.score_samples(data.X_test)
    np.testing.assert_allclose(result.scores, inside, rtol=1e-4)
    assert result.threshold == pytest.approx(detector.offset_, rel=1e-4)
    assert result.false_alarms == np.mean(detector.predict(data.X_test) == -1)
    assert result.nominal == 0.05
    for kind, X in data.ood.items():
        outside = detector.score_samples(X)
        ranks = rankdata(np.concatenate([inside, outside]))
        n, m = len(inside), len(outside)
        auroc = (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)
        # The highest threshold that accepts 95 % of the in-distribution rows.
        accepted = np.sort(inside)[::-1][int(np.ceil(0.95 * n)) - 1]
        assert result.metrics[kind]["AUROC"] == pytest.approx(auroc, abs=1e-4)
        assert result.metrics[kind]["FPR95"] == pytest.approx(
            np.mean(outside >= accepted), abs=0.003
        )
    assert result.mean_auroc == pytest.approx(
        np.mean([result.metrics[kind]["AUROC"] for kind in KINDS])
    )


def test_aupr_is_that_of_the_ood_rows():
    result = made_up(shift=50.0)
    assert result.metrics == {"near": {"AUROC": 1, "AUPR-out": 1, "FPR95": 0}}
    # Constant scores: the precision is the share of OOD rows.
    result.ood_scores = {"few": np.zeros(50)}
    result.scores = np.zeros(200)
    del result.metrics
    assert result.metrics["few"]["AUPR-out"] == pytest.approx(0.2)


def test_run_takes_any_outlier_detector(net):
    rng = np.random.default_rng(0)
    data = Bunch(
        X_train=rng.normal(size=(200, 4)).astype(np.float32),
        y_train=np.repeat([0, 1], 100),
        X_test=rng.normal(size=(100, 4)).astype(np.float32),
        ood={"far": rng.normal(9, 1, size=(30, 4)).astype(np.float32)},
    )
    forest = IsolationForest(random_state=0)
    pipeline = make_pipeline(FeatureExtractor(), GMMDetector())
    seen = []
    found = benchmark.run(
        {"forest": forest}, data, baselines={"pipeline": pipeline}, on_result=seen.append
    )
    assert seen == found and [r.name for r in found] == ["forest", "pipeline"]
    assert found[0].threshold == pytest.approx(forest.offset_)
    assert found[1].threshold == pytest.approx(pipeline[-1].offset_, rel=1e-5)
    assert [r.nominal for r in found] == [None, None]
    assert all(r.metrics["far"]["AUROC"] > 0.99 for r in found)


def test_run_without_baselines_may_use_a_name_twice(data):
    small = Bunch(
        X_train=data.X_train[:60].reshape(60, -1),
        y_train=data.y_train[:60],
        X_test=data.X_test[:20].reshape(20, -1),
        ood={"noise": data.ood["noise"][:20].reshape(20, -1)},
    )
    detector = GMMDetector(covariance_type="diag")
    found = benchmark.run({"a": detector}, small, baselines={"a": detector})
    assert [r.label for r in found] == ["a", "a (baseline)"]


def test_run_says_what_a_detector_lacks(data):
    with pytest.raises(AttributeError, match="decision_function"):
        benchmark.run({"density": KernelDensity()}, load_digits_ood(as_images=False))


# The table


def parse(table):
    """Read a table back: a list of blocks, each a dict of label to list of cells, and a header."""
    blocks = []
    for block in table.split("\n\n"):
        rows = [re.split(r"  +", line.strip()) for line in block.splitlines()]
        titles = rows.pop(0) if rows[0][0] != "detector" else []
        blocks.append(([t.strip("- ") for t in titles], rows[0], {r[0]: r[1:] for r in rows[1:]}))
    return blocks


def test_table_reads_back(results):
    table = benchmark.format_table(results)
    assert max(map(len, table.splitlines())) <= 100
    (titles, header, metrics), (_, costs_header, costs) = parse(table)
    assert titles == KINDS
    assert header == ["detector", *METRICS * 3]
    costs_columns = ["mean AUROC", "fit ms", "score ms", "false alarms", "nominal"]
    assert costs_header == ["detector", *costs_columns]
    assert list(metrics) == list(costs) == [r.label for r in results]
    for result in results:
        expected = [result.metrics[kind][name] for kind in KINDS for name in METRICS]
        np.testing.assert_allclose([float(v) for v in metrics[result.label]], expected, atol=5.1e-4)
        mean, fit, score, alarms, nominal = costs[result.label]
        assert float(mean) == pytest.approx(result.mean_auroc, abs=5.1e-4)
        assert float(fit) == pytest.approx(1000 * result.fit_seconds, abs=0.51)
        assert float(score) == pytest.approx(1000 * result.score_seconds, abs=0.51)
        assert float(alarms.strip("%")) == pytest.approx(100 * result.false_alarms, abs=0.051)
        assert nominal == ("-" if result.nominal is None else "5.0%")


def test_table_columns_stand_below_each_other(results):
    for block in benchmark.format_table(results).split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(" ")]
        ends = [[m.end() for m in re.finditer(r"\S+(?: \S+)*", line)][1:] for line in lines]
        assert all(e == ends[0] for e in ends)


def test_table_breaks_into_blocks():
    kinds = ("a", "b", "c", "d", "e")
    table = benchmark.format_table(
        [made_up(kinds=kinds, nominal=None), made_up("Longer", kinds=kinds)]
    )
    assert max(map(len, table.splitlines())) <= 100
    blocks = parse(table)
    assert [titles for titles, _, _ in blocks] == [["a", "b", "c"], ["d", "e"], []]
    assert blocks[2][2]["Some"] == [*blocks[2][2]["Longer"][:-1], "-"]
    assert blocks[2][2]["Longer"][1:] == ["12", "4568", "7.0%", "5.0%"]


def test_advice_names_the_best_that_is_no_baseline():
    found = [made_up("Poor", shift=1), made_up("Good", shift=3), made_up("Plain", True, shift=9)]
    advice = benchmark.format_advice(found)
    assert advice.startswith("Try Good first")
    assert f"{found[1].mean_auroc:.3f}" in advice and "Plain 1.000" in advice.replace("\n", " ")
    assert max(map(len, advice.splitlines())) <= 100
    assert "baseline" not in benchmark.format_advice(found[:2])


def test_advice_begins_with_what_is_best_elsewhere():
    found = [made_up("MahalanobisDetector", shift=1), made_up("Good", shift=3)]
    advice = benchmark.format_advice(found).replace("\n", " ")
    assert advice.startswith("Try MahalanobisDetector first")
    assert f"the best {found[1].mean_auroc:.3f} of Good" in advice and "skood.recommend" in advice
    assert "the best in this run" in benchmark.format_advice(found[:1]).replace("\n", " ")


# The picture


def test_plot_draws_what_it_says(results, tmp_path):
    path = tmp_path / "picture.png"
    figure = benchmark.plot(results, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 2 * len(results) + 1
    for result, histograms, roc in zip(
        results, figure.axes[:-1:2], figure.axes[1:-1:2], strict=True
    ):
        assert histograms.get_title() == result.label
        assert histograms.get_xlabel() == "decision_function"
        texts = [text.get_text() for text in histograms.texts]
        assert texts == ["AUROC", *(f"{result.metrics[kind]['AUROC']:.3f}" for kind in KINDS)]
        low, high = histograms.get_xlim()
        together = np.concatenate([result.scores, *result.ood_scores.values()]) - result.threshold
        assert low <= together.min() + 1e-5 * abs(low) and high >= together.max() * (1 - 1e-5)
        # Every bar stays in its own row, and the rows have one colour each.
        steps = [patch for patch in histograms.patches if hasattr(patch, "get_data")]
        assert len({patch.get_facecolor() for patch in steps}) == 4
        for level, patch in enumerate(steps):
            values, edges, baseline = patch.get_data()
            assert baseline == level and level <= values.min() and values.max() < level + 1
            assert np.all(np.diff(edges) > 0)
        assert any(list(line.get_xdata()) == [0, 0] for line in histograms.lines)
        assert roc.get_xlabel() == "OOD rows accepted" and roc.get_xscale() == "log"
        curves = {line.get_label(): line for line in roc.lines if line.get_label() in KINDS}
        assert list(curves) == KINDS
        for kind, curve in curves.items():
            accepted = np.mean(result.ood_scores[kind] >= result.threshold)
            dots = [line for line in roc.lines if line.get_marker() == "o"]
            dot = next(line for line in dots if line.get_color() == curve.get_color())
            assert dot.get_xdata()[0] == pytest.approx(max(accepted, 1e-3))
            assert dot.get_ydata()[0] == np.mean(result.scores >= result.threshold)
            # The dot lies on its curve.
            x, y = curve.get_xdata(), curve.get_ydata()
            assert np.min(np.hypot(x - dot.get_xdata()[0], y - dot.get_ydata()[0])) < 1e-9
    first = figure.axes[0]
    assert [t.get_text() for t in first.get_yticklabels()] == [*KINDS[::-1], "in-distribution"]
    assert figure.axes[1].get_ylabel() == "in-distribution\nrows accepted"
    legend = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert legend[:5] == ["in-distribution", *KINDS, "threshold"]


@pytest.mark.parametrize("n_results", [1, 3, 4, 8])
def test_plot_of_any_number(n_results):
    figure = benchmark.plot([made_up(str(n), kinds=("a", "b")) for n in range(n_results)])
    figure.canvas.draw()
    assert len(figure.axes) == 2 * n_results + 1


def test_plot_of_extreme_scores():
    huge, constant = made_up("huge"), made_up("constant")
    huge.ood_scores = {"near": np.linspace(-1e30, -1e29, 50)}
    constant.scores, constant.ood_scores, constant.threshold = np.ones(9), {"near": np.ones(9)}, 1.0
    benchmark.plot([huge, constant]).canvas.draw()


def test_plot_does_not_touch_pyplot(results):
    code = (
        "import sys, pickle; from skood import benchmark; r = pickle.load(sys.stdin.buffer); "
        "assert not {'matplotlib', 'skorch'} & set(sys.modules); benchmark.plot(r); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps(results[:1]), check=True)


def test_plot_without_matplotlib_gives_the_hint(monkeypatch, results, tmp_path, capsys):
    for name in ("matplotlib", *filter(re.compile(r"matplotlib\.").match, sys.modules)):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "skood\[plot\]"'):
        benchmark.plot(results)
    path = tmp_path / "picture.png"
    assert command.save_picture(results, path) == 0
    assert 'pip install "skood[plot]"' in capsys.readouterr().out
    assert not path.exists()


def test_picture_that_cannot_be_written_any_more(results, tmp_path, capsys):
    path = tmp_path / "gone" / "picture.png"
    assert command.save_picture(results[:1], path) == 1
    assert capsys.readouterr().err == f"Cannot write {path}: No such file or directory\n"


# The command


def invoke(*arguments, cwd):
    """Run the command; without a terminal nothing but errors goes to stderr."""
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "skood", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_help(tmp_path):
    done = invoke("--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    for option in ("--help", "--seed", "--device", "--output"):
        assert option in done.stdout
    assert "skood-demo.png" in done.stdout


def test_bad_option_of_the_command(tmp_path):
    done = invoke("--output", str(tmp_path / "none" / "a.png"), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"python -m skood: error: .*cannot write .*none.*\n", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "nonsense"], "argument --device: 'nonsense' cannot be used here: "),
        (["--device", "cuda:99"], "argument --device: 'cuda:99' cannot be used here: "),
        (["--device", "meta"], "argument --device: 'meta' cannot be used here: "),
        (["--output", "a.jpg"], "argument --output: 'a.jpg' does not end in .png"),
        (["--output", "folder.png"], "argument --output: cannot write 'folder.png': "),
        (["--output", "file/a.png"], "argument --output: cannot write 'file/a.png': "),
        (["--seed", "-1"], "argument --seed: '-1' is not an integer from 0 "),
        (["--seed", "x"], "argument --seed: 'x' is not an integer from 0 "),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_bad_options(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    # Told before anything is trained.
    monkeypatch.setattr(benchmark, "train_digits_network", None)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"python -m skood: error: {message}")
    assert error.count("\n") == 1 and len(error) < 250


def test_checking_the_output_leaves_files_as_they_are(tmp_path):
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_bytes(b"something")
    assert output(str(old)) == old and old.read_bytes() == b"something"
    assert output(str(new)) == new and not new.exists()
    link = tmp_path / "link.png"
    link.symlink_to(new)
    assert output(str(link)) == link and link.is_symlink() and not new.exists()


def test_without_pillow_there_is_a_hint(monkeypatch, capsys, tmp_path):
    def fail():
        raise ImportError("pip install pillow")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_digits_ood", fail)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "python -m skood: error: pip install pillow\n"


def test_main_prints_everything(monkeypatch, net, tmp_path, capsys):
    calls = []

    def train(X, y, *, seed, device, on_epoch):
        calls.append((len(X), seed, device))
        on_epoch()
        return net

    monkeypatch.setattr(benchmark, "train_digits_network", train)
    path = tmp_path / "demo.png"
    assert main(["--seed", "3", "--output", str(path)]) == 0
    # The training part alone.
    assert calls == [(649, 3, "cpu")]
    out, error = capsys.readouterr()
    assert error == "" and path.exists()
    assert max(len(line) for line in out.splitlines() if str(path) not in line) <= 100
    for text in (*METHODS, "energy (baseline)", "false alarms", "5.0%", "AUPR-out", str(path)):
        assert text in out
    assert re.search(r"\n\nTry \w+Detector first: ", out)
    assert "649 rows to fit, 2148 to score" in out
