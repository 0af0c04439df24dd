"""What every detector becomes as a file: ``python -m tests.shipping``; ``--help`` lists more."""

import argparse
import contextlib
import os
import pathlib
import pickle
import random
import signal
import tempfile
import time
import warnings
from collections import Counter

import numpy as np
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from torch import nn

import skood
from skood import ASHDetector, FeatureExtractor, GMMDetector, NNGuideDetector
from tests.networks import SmallCNN, seeded
from tests.registry import EXTRACTORS, IN_NETWORKS, SETTINGS

FILES = pathlib.Path(__file__).parent / "files"


def outputs(estimator, X):
    """Return all that an estimator makes of X."""
    if isinstance(estimator, FeatureExtractor):
        return [estimator.transform(X)]
    return [estimator.score_samples(X), estimator.decision_function(X), estimator.predict(X)]


def fitted():
    """Return pairs of a fitted estimator, in every setting, and rows that it scores."""
    X, y = load_iris(return_X_y=True)
    X, names = X.astype(np.float32), np.array(["a", "b", "c"])[y]
    images = np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype(np.float32)
    cases = [(clone(detector).fit(X, names), X) for detector in SETTINGS + EXTRACTORS]
    cases.append((ASHDetector(seeded(nn.Linear, 4, 3)).fit(X), X))
    for detector in (*IN_NETWORKS, FeatureExtractor(layer="bn")):
        detector = clone(detector).set_params(model=seeded(SmallCNN))
        cases.append((detector.fit(images, np.arange(24) % 4), images))
    return cases


def architecture(estimator):
    """Return what `skood.load` asks for: a network of the same layers with other weights."""
    return SmallCNN() if isinstance(estimator.model, SmallCNN) else None


def write_files(folder):
    """Write the files that later versions must read, and what they give."""
    folder.mkdir(parents=True)
    results = {}
    for number, (estimator, X) in enumerate(fitted()):
        name = f"{number:02}-{type(estimator).__name__}"
        skood.save(estimator, folder / f"{name}.safetensors", include_model=True)
        results[name], results[f"{name}-X"] = outputs(estimator, X[:10])[0], X[:10]
    np.savez_compressed(folder / "results.npz", **results)


def run_graph(path, format):
    """Return a function that runs an exported graph on arrays."""
    if format == "torch":
        module = torch.export.load(path).module()
        return lambda X: [out.numpy() for out in module(torch.as_tensor(X))]
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert [out.name for out in session.get_outputs()] == ["score", "decision"]
    return lambda X: session.run(None, {"X": X})


def damage(content, generator):
    """Return changed bytes and what was done to them."""
    data, header = bytearray(content), 8 + int.from_bytes(content[:8], "little")
    kinds = ["cut", "flip", "flip header", "edit header", "insert", "zeros", "length"]
    kind = generator.choice(kinds)
    if kind == "cut":
        del data[generator.randrange(len(data)) :]
    elif kind in ("flip", "flip header"):
        end = len(data) if kind == "flip" else header
        for _ in range(generator.choice([1, 1, 1, 4, 30])):
            data[generator.randrange(end)] ^= 1 << generator.randrange(8)
    elif kind == "edit header":
        at = generator.randrange(8, header)
        if generator.random() < 0.7:
            at = generator.choice([i for i in range(8, header) if chr(data[i]).isdigit()])
        data[at] = generator.choice(b'0123456789-.eE"{}[],:\\ ')
    elif kind == "insert":
        at = generator.randrange(len(data))
        data[at:at] = generator.randbytes(generator.choice([1, 8, 100]))
    elif kind == "zeros":
        at = generator.randrange(len(data))
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    else:
        length = generator.choice([0, 1, header, 2**20, 2**24, 2**31, 2**63, 2**64 - 1])
        data[:8] = length.to_bytes(8, "little")
    return bytes(data), kind


def load_damaged(folder, n_files, seed=0):
    """Load damaged files; return how many of each kind were refused, or as good as before."""
    X, y = load_iris(return_X_y=True)
    detector = GMMDetector(covariance_type="diag").fit(X, np.array(["a", "b", "c"])[y])
    path, X = folder / "damaged", X[::15]
    skood.save(detector, path)
    content, generator, counts = path.read_bytes(), random.Random(seed), Counter()
    for _ in range(n_files):
        data, kind = damage(content, generator)
        # A file that is truncated instead is flushed to the disk: 3 ms.
        path.unlink()
        path.write_bytes(data)
        outcome = "refused" if data != content else "unchanged"
        try:
            twin = skood.load(path)
        except ValueError:
            assert data != content
        else:
            outcome = "equal"
            for one, other in zip(outputs(twin, X), outputs(detector, X), strict=True):
                assert_array_equal(one, other)
            assert_array_equal(twin.known_classes_, detector.known_classes_)
            assert str(twin) == str(detector)
        counts[kind, outcome] += 1
    return counts


@contextlib.contextmanager
def saving(detectors, path):
    """While the block runs, a process saves detectors to a file in turn; then it is killed."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                for detector in detectors:
                    skood.save(detector, path)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def load_while_saving(folder, n_times):
    """Load while another process saves two detectors in turn; return how often each was found."""
    X = np.random.default_rng(0).normal(size=(90, 8))
    detectors = [NNGuideDetector(k=k).fit(X[: 9 * k]) for k in (9, 1)]
    path, counts = folder / "detector", Counter()
    skood.save(detectors[0], path)
    with saving(detectors, path):
        for _ in range(n_times):
            counts[f"k={skood.load(path).k}"] += 1
    return counts


def kill_while_saving(folder, n_times):
    """Kill processes that save two detectors in turn; return how often each was found whole."""
    X = np.random.default_rng(0).normal(size=(3000, 64))
    detectors = [NNGuideDetector(k=k).fit(X) for k in (1, 9)]
    scores = {detector.k: detector.score_samples(X[:5]) for detector in detectors}
    path, generator, counts = folder / "detector", random.Random(0), Counter()
    skood.save(detectors[0], path)
    for _ in range(n_times):
        with saving(detectors[::-1], path):
            time.sleep(generator.uniform(0.001, 0.03))
        found = skood.load(path)
        assert_array_equal(found.score_samples(X[:5]), scores[found.k])
        counts[f"k={found.k}"] += 1
        drafts = list(folder.glob(".*"))
        counts["with a draft left behind"] += bool(drafts)
        for draft in drafts:
            draft.unlink()
    return counts


def measured(call):
    """Return the median time of a call in milliseconds."""
    times = []
    for _ in range(9):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return np.median(times)


def table(folder):
    """Yield a row for each detector: sizes, times, and errors of exported graphs."""
    path = folder / "file"
    yield f"{'detector':78} {'file':>7} {'pickle':>7} {'load':>6} {'unpickle':>8} {'torch':>8} onnx"
    for estimator, X in fitted():
        model = architecture(estimator)
        skood.save(estimator, path, include_model=True)
        for one, other in zip(
            outputs(skood.load(path, model), X), outputs(estimator, X), strict=True
        ):
            assert_array_equal(one, other)
        pickled = pickle.dumps(estimator)
        sizes = f"{path.stat().st_size:7} {len(pickled):7}"
        load, unpickle = (
            measured(lambda: skood.load(path, model)),  # noqa: B023
            measured(lambda: pickle.loads(pickled)),  # noqa: B023
        )
        graphs = [graph_error(estimator, path, format, X) for format in ("torch", "onnx")]
        name = " ".join(str(estimator.set_params(model=None)).split())
        name += " on a network" if model else ""
        yield f"{name:78} {sizes} {load:6.2f} {unpickle:8.2f} {graphs[0]:>8} {graphs[1]}"


def graph_error(estimator, path, format, X):
    """Return the largest error of an exported graph by the largest score; or why it is none."""
    try:
        skood.export(estimator, path, X[:2], format=format)
        score, _ = run_graph(path, format)(X)
    except (TypeError, ImportError) as error:
        return str(error).partition(":")[2].strip().partition(".")[0] or "no detector"
    expected = estimator.score_samples(X)
    return f"{np.abs(score - expected).max() / np.abs(expected).max():.0e}"


def main():
    """Print the table, or do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill", type=int, help="kill so many processes that save")
    parser.add_argument("--load", type=int, help="load so often while another process saves")
    parser.add_argument("--damage", type=int, help="load so many damaged files")
    parser.add_argument("--write", action="store_true", help="write the files of this version")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if asked.write:
            write_files(FILES / skood.__version__)
        elif asked.kill:
            print(dict(kill_while_saving(folder, asked.kill)))
        elif asked.load:
            print(dict(load_while_saving(folder, asked.load)))
        elif asked.damage:
            for (kind, outcome), count in sorted(load_damaged(folder, asked.damage).items()):
                print(f"{kind:12} {outcome:8} {count:6}")
        else:
            for line in table(folder):
                print(line, flush=True)


if __name__ == "__main__":
    main()
