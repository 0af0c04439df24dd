"""The command that measures all detectors on a folder of real data, on one made up."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from skood import EnergyDetector, GMMDetector, KNNDetector, LayersDetector
from skood.benchmark import Result
from tests import evidence, settings, training
from tests.networks import CIFARResNet20, seeded


def write(folder):
    """Write small files of every kind."""
    rng = np.random.default_rng(0)
    net = seeded(CIFARResNet20)
    weights = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": weights}, folder / "cifar10_resnet20.th")

    def rows(*shape):
        return (rng.normal(size=shape) + 1).astype(np.float16)

    pictures = {n: rng.integers(0, 256, (30, 32, 32, 3)).astype("u1") for n in ("train", "test")}
    y = np.arange(30) % 10
    pictures |= {"train_y": y, "test_y": y, "ood_flowers": pictures["test"][::-1]}
    np.savez(folder / "cifar10_images.npz", **pictures)
    features = {"train": rows(60, 64), "train_y": np.arange(60) % 10, "test": rows(30, 64)}
    features |= {"ood_mnist": 3 * rows(20, 64)}
    np.savez(folder / "cifar10_jpeg_resnet20_features.npz", **features)
    head = {"head_weight": rows(10, 64), "head_bias": rows(10)}
    np.savez(folder / "cifar10_resnet20_features.npz", **features, **head)
    names = np.array(["a", "b", "near: c", "numpy/scipy"])[np.arange(80) % 4]
    np.savez(folder / "text_minilm_features.npz", features=rows(80, 16), name=names)


def test_every_task_is_measured(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    monkeypatch.setattr(evidence, "N_TEXTS", 30)
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"KNNDetector": {"digits": {"auroc": {"near": 0.5}}}}))
    tasks = ["images", "features", "compressed", "texts"]
    given = ["--tasks", *tasks, "--detectors", "EnergyDetector", "GMMDetector"]
    monkeypatch.setattr("sys.argv", ["evidence", str(tmp_path), *given, "--json", str(path)])
    evidence.main()
    report = json.loads(path.read_text())
    assert report["KNNDetector"] == {"digits": {"auroc": {"near": 0.5}}}
    kinds = [["flowers", "noise"], ["mnist"], ["mnist"], ["near", "far"]]
    for name in ("EnergyDetector", "GMMDetector"):
        assert list(report[name]) == tasks
        for task, expected in zip(tasks, kinds, strict=True):
            assert list(report[name][task]["auroc"]) == expected
            assert 0 <= report[name][task]["false_alarms"] <= 1
            low, high = report[name][task]["auroc_interval"][expected[0]]
            assert low <= report[name][task]["auroc"][expected[0]] <= high
    # Means further out are found by densities.
    assert report["GMMDetector"]["features"]["auroc"]["mnist"] > 0.9
    assert "mean over the sets" in capsys.readouterr().out


def test_the_error_of_a_mean_over_sets_is_that_of_resampled_rows():
    rng = np.random.default_rng(0)
    inside = rng.normal(1, 1, 80)
    sets = {"near": rng.normal(0.3, 1, 60), "far": rng.normal(size=90)}
    result = Result("x", False, 0, 0, 0, None, inside, sets)

    def mean_of(inside, sets):
        values = [(inside[:, None] > rows).mean() for rows in sets]
        return np.mean(values)

    drawn = [
        mean_of(rng.choice(inside, 80), [rng.choice(rows, len(rows)) for rows in sets.values()])
        for _ in range(2000)
    ]
    assert evidence.error_of_mean(result) == pytest.approx(np.std(drawn), rel=0.1)


def test_settings_are_compared(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    monkeypatch.setattr(settings, "TASKS", ("features", "compressed_1k"))
    monkeypatch.setattr(settings, "GRIDS", {KNNDetector: {"k": (1, 5)}})
    path = tmp_path / "settings.json"
    monkeypatch.setattr("sys.argv", ["settings", str(tmp_path), "--json", str(path)])
    settings.main()
    report = json.loads(path.read_text())
    assert list(report) == ["GMMDetector", "MahalanobisDetector", "KNNDetector"]
    assert set(report["KNNDetector"]["k=5"]) == {"features", "compressed_1k"}
    # Means further out are found by densities.
    assert report["GMMDetector"]["default"]["features"] > 0.9
    assert "unit rows, tied, ridge 1 of the variance" in capsys.readouterr().out


def test_the_picture_shows_all_that_were_measured(tmp_path):
    of_task = {"auroc": {"far": 0.9}, "error_of_mean_auroc": 0.01}
    tasks = {task.__name__: of_task for task in evidence.MAIN}
    report = {"GMMDetector": tasks, "KNNDetector": {"digits": {"error": "no"}}}
    assert evidence.of_main_tasks(tasks) == pytest.approx((0.9, 0.01 / len(tasks) ** 0.5))
    assert np.isnan(evidence.of_main_tasks(report["KNNDetector"])).all()
    evidence.plot(report, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_every_detector_that_can_be_made_is_measured():
    found = evidence.detectors()
    assert {EnergyDetector, GMMDetector, LayersDetector} <= set(found)


def test_the_network_computes_what_it_did(tmp_path):
    write(tmp_path)
    X = torch.from_numpy(evidence.normalised(np.full((2, 32, 32, 3), 128, dtype=np.uint8)))
    assert torch.equal(evidence.images(tmp_path)[0](X), seeded(CIFARResNet20).eval()(X))
    # 128 of 255, less the mean and over the deviation of the first channel.
    assert float(X[0, 0, 0, 0]) == pytest.approx((128 / 255 - 0.485) / 0.229, rel=1e-5)


def test_images_are_moved_and_mirrored_for_training():
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    moved = training.augmented(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    crops = padded.unfold(2, 32, 1).unfold(3, 32, 1).flatten(2, 3)
    is_crop, is_mirrored = (
        (crops == kind[:, :, None]).all((-1, -2)).all(1).any(1) for kind in (moved, moved.flip(3))
    )
    assert (is_crop ^ is_mirrored).all()
    assert is_crop.any() and is_mirrored.any()


def test_a_network_is_trained_on_a_folder_of_images(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(10):
            folder = tmp_path / part / str(number)
            folder.mkdir(parents=True)
            for row in range(4):
                pixels = rng.integers(60, size=(32, 32, 3)) + 60 * (np.arange(3) == number % 3)
                Image.fromarray(pixels.astype("u1")).save(folder / f"{row}.png")
    monkeypatch.setattr(training, "BATCH", 20)
    monkeypatch.setattr(training, "resnet18", lambda: CIFARResNet20())
    out = tmp_path / "cifar10_resnet18.pth"
    monkeypatch.setattr("sys.argv", ["training", str(tmp_path), str(out), "--epochs", "2"])
    training.main()
    assert "epoch 2: loss" in capsys.readouterr().out
    network, train, *_ = evidence.resnet18(tmp_path)
    assert network(torch.from_numpy(train)).shape == (30, 10)
