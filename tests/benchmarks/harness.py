"""Timing functions in turn, and measuring memory."""

import contextlib
import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import threadpoolctl
import torch

# Reads the memory of the process given, each millisecond until its input ends: a process of its
# own, as a thread would wait for the interpreter's lock while the peak passes.
SAMPLER = """
import os, re, select, sys
def anonymous():
    with open(f"/proc/{sys.argv[1]}/status") as status:
        return int(re.search(r"RssAnon:\\s+(\\d+)", status.read())[1])
start = peak = anonymous()
print(flush=True)
while not select.select([sys.stdin], [], [], 1e-3)[0]:
    peak = max(peak, anonymous())
print(max(peak, anonymous()) - start)
"""


# From malloc.h.
M_MMAP_THRESHOLD = -3


@dataclass
class Pair:
    """Two functions to time in turn; the figure is the ratio of the first to the second."""

    name: str
    ours: Callable
    yardstick: Callable
    target: float | None = None


@dataclass
class Figure:
    """A function that returns the figure, or a list of them."""

    name: str
    compute: Callable
    target: float | None = None
    unit: str = ""


@dataclass
class Setting:
    """Where and how long to measure."""

    device: str = "cpu"
    quick: bool = False
    threads: int = 2  # of the wall ratios; 1: none

    @property
    def pairs(self):
        """How many pairs to time."""
        return 3 if self.quick else 9

    def pick(self, full, quick):
        """Return a size."""
        return quick if self.quick else full


def synchronize(device):
    """Wait until the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def cpu_seconds():
    """Return the processor time of this process and of those that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def seconds(function, device="cpu", clock=None):
    """Time one call: processor time on a CPU, wall time on a GPU."""
    clock = clock or (cpu_seconds if device == "cpu" else time.perf_counter)
    synchronize(device)
    start = clock()
    function()
    synchronize(device)
    return clock() - start


def spread(values):
    """Return the median and the quartiles."""
    q1, median, q3 = statistics.quantiles(values, method="inclusive") if values[1:] else values * 3
    return {"value": median, "q1": q1, "q3": q3}


def in_turn(pair, n_pairs, device, clock=None):
    """Time both functions n_pairs times; which goes first alternates."""
    times = {pair.ours: [], pair.yardstick: []}
    for i in range(n_pairs):
        for function in list(times)[:: -1 if i % 2 else 1]:
            times[function].append(seconds(function, device, clock))
    ours, yardstick = times.values()
    return {
        **spread([a / b for a, b in zip(ours, yardstick, strict=True)]),
        "seconds": statistics.median(ours),
        "yardstick_seconds": statistics.median(yardstick),
    }


@contextlib.contextmanager
def n_threads(n):
    """Compute with n threads, in every library."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    with threadpoolctl.threadpool_limits(n):
        yield
    torch.set_num_threads(before)


def measure(item, setting):
    """Return the figures of a `Pair` or a `Figure` as a dict."""
    result = {"name": item.name, "target": item.target, "unit": getattr(item, "unit", "")}
    if isinstance(item, Figure):
        values = item.compute()
        result.update(spread(values if isinstance(values, list) else [values]))
    else:
        item.ours()
        item.yardstick()
        # Three pairs where they give but an impression: no target, or wall time on shared cores.
        n_pairs = 3 if item.target is None else setting.pairs
        result.update(in_turn(item, n_pairs, setting.device))
        if setting.threads > 1 and setting.device == "cpu":
            with n_threads(setting.threads):
                result["wall"] = in_turn(item, 3, "cpu", time.perf_counter)
    if item.target is not None:
        result["reached"] = abs(result["value"]) <= item.target
    return result


def peak_mib(function, device="cpu"):
    """Return by how many MiB memory grows at most while a function runs, its result included."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    gc.collect()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send_peak, args=(function, sender))
    child.start()
    # Where the child fails, reading ends with an error.
    sender.close()
    grown = receiver.recv()
    child.join()
    return grown / 2**10


def send_peak(function, sender):
    """Run a function and send by how many KiB the memory of this process, a copy, grew."""
    # Else what earlier calls have freed is used again unseen: what is large comes from the system
    # and goes back at once, and a new thread has a heap of its own for the rest.
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**16)
    thread = threading.Thread(target=lambda: sender.send(grown_kib(function)))
    thread.start()
    thread.join()


def grown_kib(function):
    """Run a function on one thread and return by how many KiB memory grew at most."""
    command = [sys.executable, "-IS", "-c", SAMPLER, str(os.getpid())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with n_threads(1), subprocess.Popen(command, text=True, **pipes) as sampler:
        sampler.stdout.readline()
        result = function()
        grown, _ = sampler.communicate()
        del result
    return int(grown)


def machine():
    """Describe the machine and the versions of what is measured."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), model)
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scikit-learn", "faiss-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    described = {"cpu": model, "cores": os.cpu_count(), "capability": cpu_capability()}
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return {"machine": described, "versions": versions}


def cpu_capability():
    """Return which vector instructions torch uses."""
    return torch.backends.cpu.get_cpu_capability()


def describe(setting):
    """Return what the results depend on."""
    return {**machine(), "setting": {**asdict(setting), "pairs": setting.pairs}}
