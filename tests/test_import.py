"""What ``import skood`` brings along."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import skood

OPTIONAL = {
    "dask",
    "faiss",
    "matplotlib",
    "onnxscript",
    "pandas",
    "polars",
    "safetensors",
    "skorch",
    "tqdm",
    "transformers",
}


def imported(statement):
    """Return the top-level packages that a fresh interpreter holds after a statement."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_nothing_optional_is_imported():
    # torch imports tqdm, and scikit-learn pandas where it is installed.
    needed = imported(
        "import torch, sklearn.base, sklearn.linear_model, sklearn.cluster, sklearn.metrics"
    )
    more = imported("import skood") - needed
    assert "skood" in more
    assert not more & OPTIONAL


def test_modules_without_an_import_of_their_own(monkeypatch):
    monkeypatch.delattr(skood, "metrics", raising=False)
    assert skood.metrics.auroc_score([1, -1], [1.0, 0.0]) == 1
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        _ = skood.metric


def test_show_versions(capsys):
    skood.show_versions()
    lines = capsys.readouterr().out.splitlines()
    shown = {line[:18].strip(): line[18:].strip() for line in lines}
    assert shown["skood"] == skood.__version__
    assert shown["torch"] == version("torch")
    assert shown["scikit-learn"] == version("scikit-learn")
    assert {"python", "machine", "faiss-cpu", "CUDA of torch", "GPUs"} < shown.keys()


def test_show_versions_tells_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("skood._versions.PACKAGES", ["no-such-package"])
    skood.show_versions()
    assert "no-such-package    None" in capsys.readouterr().out
