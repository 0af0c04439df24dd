"""The command that measures all detectors on a folder of real data, on one made up."""

import json

import numpy as np
import pytest
import torch

from skood import EnergyDetector, GMMDetector, LayersDetector
from tests import evidence
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
    # Means further out are found by densities.
    assert report["GMMDetector"]["features"]["auroc"]["mnist"] > 0.9
    assert "mean over the sets" in capsys.readouterr().out


def test_every_detector_that_can_be_made_is_measured():
    found = evidence.detectors()
    assert {EnergyDetector, GMMDetector, LayersDetector} <= set(found)


def test_the_network_computes_what_it_did(tmp_path):
    write(tmp_path)
    X = torch.from_numpy(evidence.normalised(np.full((2, 32, 32, 3), 128, dtype=np.uint8)))
    assert torch.equal(evidence.cifar_network(tmp_path)(X), seeded(CIFARResNet20).eval()(X))
    # 128 of 255, less the mean and over the deviation of the first channel.
    assert float(X[0, 0, 0, 0]) == pytest.approx((128 / 255 - 0.485) / 0.229, rel=1e-5)
