"""What a report of a bug needs to say of its machine."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from skood._version import __version__

PACKAGES = [
    *("torch", "scikit-learn", "numpy", "scipy", "joblib", "skorch", "tqdm"),
    *("dask", "distributed", "faiss-cpu", "matplotlib", "onnxruntime", "pandas", "polars"),
    *("pillow", "safetensors", "transformers"),
]


def versions():
    """Return the versions of skood and of what it uses, and the devices of torch, by name."""
    return {
        "skood": __version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        **{name: _version_of(name) for name in PACKAGES},
        "threads of torch": torch.get_num_threads(),
        "CUDA of torch": torch.version.cuda,
        "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or None,
    }


def show_versions() -> None:
    """Print the versions of skood and of what it uses, and the devices of torch.

    Examples
    --------
    >>> import skood
    >>> skood.show_versions()
    skood              ...
    """
    for name, value in versions().items():
        print(f"{name:18} {value}")


def _version_of(name):
    """Return the version of a package, without importing it; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
