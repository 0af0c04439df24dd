"""A pretended GPU: ``python -m pytest -p tests.pretended_gpu -m cuda tests`` runs what needs one.

Its tensors say that they lie on cuda:0, keep their values in the CPU's memory, and refuse what a
GPU's refuse: another device beside them, and numpy. That finds wrong moves between devices. It
cannot show speed, kernels, streams, rounding, or what threads do: torch's modes belong to one.

A plugin of pytest, which has to be named with ``-p``: torch looks for a GPU when it is imported.
"""

import ctypes
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

SOURCE = pathlib.Path(__file__).with_name("hooks.cpp")


def why_not(torch_folder):
    """Return why there can be no pretended GPU here, or None."""
    if (torch_folder / "lib" / "libtorch_cuda.so").exists():
        return "torch is built for GPUs: it needs the CPU build"
    if shutil.which("g++") is None:
        return "there is no compiler: it needs g++"
    return None


def compiled(torch_folder):
    """Return the library of hooks.cpp, compiled once for each torch."""
    key = SOURCE.read_bytes() + (torch_folder / "version.py").read_bytes() + bytes(torch_folder)
    name = f"pretended-gpu-{os.getuid()}-{hashlib.sha256(key).hexdigest()[:16]}.so"
    library = pathlib.Path(tempfile.gettempdir()) / name
    if not library.exists():
        # Renamed when it is complete: several sessions may start at once.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            draft, lib = pathlib.Path(folder, name), torch_folder / "lib"
            command = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}"]
            command += [str(SOURCE), "-o", str(draft)]
            command += [f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}"]
            subprocess.run(command, check=True)
            draft.rename(library)
    return library


def load():
    """Give torch the hooks before it is imported; return why that was not possible, or None."""
    torch_folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
    reason = why_not(torch_folder)
    if reason is None:
        ctypes.CDLL(str(compiled(torch_folder)))
    return reason


REASON = load()

if REASON is None:
    import torch

    from tests.pretended_gpu.device import pretended_gpu

    # What conftest and scikit-learn's checks ask before a test runs.
    torch.cuda.is_available = lambda: True
    torch.backends.cuda.is_built = lambda: True
    torch.cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(item):
        """Run tests marked cuda, and their fixtures, on the pretended GPU."""
        if "cuda" not in item.keywords:
            return (yield)
        with pretended_gpu():
            return (yield)


def pytest_report_header():
    """Say whether there is a pretended GPU."""
    return "pretended GPU: " + (f"none, since {REASON}" if REASON else "on")
