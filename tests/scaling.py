"""Learning and scoring on a cluster of two processes: ``python -m tests.scaling``.

Prints whether what a cluster learns is what one process learns, the peak of each process's memory,
how the time of ``fit`` grows with the rows, and what 10⁹ rows would take by the costs of a block.
"""

import argparse
import math
import pickle
import resource
import time

import dask
import numpy as np
import torch
from dask import array as da
from dask.distributed import Client, LocalCluster

from skood import GMMDetector, NNGuideDetector
from skood.distributed import FAN_IN, learn_block

N_FEATURES, N_CLASSES = 128, 10
MEANS = np.random.default_rng(0).normal(size=(N_CLASSES, N_FEATURES)) / 4


def draw(number, n_rows):
    """Draw the labels and the rows of a block."""
    random = np.random.default_rng(number)
    y = random.integers(N_CLASSES, size=n_rows)
    return y, (MEANS[y] + random.normal(size=(n_rows, N_FEATURES))).astype(np.float32)


def collections(n_rows, block_rows):
    """Return X and y as dask arrays that are made block by block."""
    pairs = [dask.delayed(draw, nout=2)(i, block_rows) for i in range(n_rows // block_rows)]
    X = [da.from_delayed(X, (block_rows, N_FEATURES), np.float32) for _, X in pairs]
    y = [da.from_delayed(y, (block_rows,), np.int64) for y, _ in pairs]
    return da.concatenate(X), da.concatenate(y)


def detectors(bank_size):
    """Return the detectors, by name."""
    head = torch.nn.Linear(N_FEATURES, N_CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(MEANS))
        head.bias.copy_(torch.from_numpy(-(MEANS**2).sum(1) / 2))
    return {
        "GMM": GMMDetector(),
        f"NNGuide, bank {bank_size}": NNGuideDetector(head, bank_size=bank_size, random_state=0),
    }


def difference(one, two):
    """Return the largest difference, relative to scores larger than 1."""
    return float((np.abs(one - two) / np.maximum(1, np.abs(two))).max())


def timed(call, *args):
    """Return what a call gives and the seconds it takes."""
    start = time.perf_counter()
    result = call(*args)
    return result, time.perf_counter() - start


def check_equal(name, detector, bank_size):
    """Print how blocks learned from on the cluster compare to all of them in one process."""
    block_rows = bank_size // 5
    X, y = collections(4 * block_rows, block_rows)
    rows, labels = dask.compute(X, y)
    cluster = pickle.loads(pickle.dumps(detector)).fit(X, y)
    alone = detector.fit(rows, labels)
    scores = cluster.score_samples(X).compute()
    print(
        f"{name}: on 4 blocks of {block_rows} rows the scores differ from those of one process by "
        f"{difference(scores, alone.score_samples(rows)):.1e}, the threshold by "
        f"{difference(cluster.offset_, alone.offset_):.1e}"
    )


def peaks(client):
    """Return the largest memory that each process has had, in MiB."""

    def own():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10

    return [own(), *client.run(own).values()]


def block_costs(name, detector, block_rows, n_rows):
    """Print what blocks of so many rows in all would move."""
    X, y = (part[: 2 * block_rows] for part in collections(2 * block_rows, block_rows))
    begun = pickle.loads(pickle.dumps(detector)).partial_fit(X[:1000].compute(), y[:1000].compute())
    labels, rows = draw(0, block_rows)
    learned, seconds = timed(learn_block, rows, labels, begun, n_rows // 4)
    size, n_blocks = len(pickle.dumps(learned)), n_rows // block_rows
    depth = math.ceil(math.log(n_blocks, FAN_IN))
    merges = sum(math.ceil(n_blocks / FAN_IN**level) for level in range(1, depth + 1))
    print(
        f"{name}, {n_rows:.0e} rows in {n_blocks} blocks: a block is learned from in "
        f"{seconds:.2f} s, {n_blocks * seconds / 3600:.1f} h of one core in all; its state takes "
        f"{size / 2**20:.2f} MiB, {n_blocks * size / 2**30:.2f} GiB are moved at most, into "
        f"{merges} merges, {depth} deep"
    )


def main():
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--block-rows", type=int, default=50_000)
    parser.add_argument("--bank-size", type=int, default=50_000)
    args = parser.parse_args()
    # dask lets workers give memory back at once, and glibc then maps each tile of a search anew.
    dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25})
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        for name, detector in detectors(args.bank_size).items():
            check_equal(name, detector, args.bank_size)
            seconds = []
            for part in (8, 4, 2, 1):
                X, y = collections(args.rows // part, args.block_rows)
                seconds.append(timed(detector.fit, X, y)[1])
                print(f"{name}: fit to {len(X)} rows in {seconds[-1]:.1f} s", flush=True)
            millions = args.rows / np.array([8, 4, 2, 1]) / 1e6
            slope, fixed = np.polyfit(millions, seconds, 1)
            error = np.abs(fixed + slope * millions - seconds).max()
            print(f"{name}: {fixed:.1f} s and {slope:.1f} s a million rows, to {error:.1f} s")
            labels, rows = draw(0, args.block_rows)
            first = detector.score_samples(X[: args.block_rows]).compute()
            here = difference(first, detector.score_samples(rows))
            scores, taken = timed(detector.decision_function(X).compute)
            print(
                f"{name}: {len(scores)} rows scored in {taken:.1f} s, {(scores < 0).mean():.2%} of "
                f"them called OOD; a block scored in this process differs by {here:.1e}"
            )
            print(
                f"{name}: largest memory of this process and of the workers, MiB: {peaks(client)}",
                flush=True,
            )
    for name, detector in detectors(args.bank_size).items():
        block_costs(name, detector, args.block_rows, 10**9)


if __name__ == "__main__":
    main()
