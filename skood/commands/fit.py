"""``python -m skood fit``: from rows, or images and a network, to a detector in a file."""

import argparse
import ast
import inspect
import itertools

import numpy as np
from tqdm import tqdm

import skood
from skood import detectors
from skood.commands.arguments import Failure, Parser, named, output
from skood.commands.arrays import read_labels
from skood.commands.images import Counted, ImageRows, add_image_options, read_network
from skood.commands.rows import CHUNK_BYTES, KINDS, open_rows, telling
from skood.data.labels import is_inside
from skood.files.storage import import_safetensors

EXAMPLES = """\
examples:
  python -m skood fit --features train.npz --detector gmm --out d.safetensors
  python -m skood fit --features a.npy --labels y.npy --detector knn --set k=5 --out d.safetensors
  python -m skood fit --features t.csv --label-column species --detector gmm --out d.safetensors
  python -m skood fit --features images/train --network net.pt2 --detector vim --out d.safetensors

A file of more than 4 MiB of numbers is learned from in chunks, by partial_fit, in memory that does
not grow with it; but for methods on logits without a network, which fit a linear head to all rows.
"""
# By the names that the command takes.
DETECTORS = {
    name.removesuffix("Detector").lower(): getattr(detectors, name) for name in detectors.__all__
}


def detector_class(text):
    """Parse --detector."""
    name = text.lower().removesuffix("detector")
    if name not in DETECTORS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(sorted(DETECTORS))}")
    return DETECTORS[name]


def setting(text):
    """Parse NAME=VALUE, the value as Python writes numbers, lists and None, or as text."""
    name, value = named(text, "VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value


def add_fit(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "fit",
        help="fit a detector to a file of features, or to images, and save it",
        description="Fit a detector and save it, as a file without any code, for score.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--features",
        required=True,
        metavar="FILE",
        help=f"in-distribution rows: {KINDS}. Labels in it, as y of .npz, are used",
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="FILE", help="a label for each row: .npy or .npz")
    labels.add_argument("--label-column", metavar="NAME", help="the column of a table with labels")
    parser.add_argument(
        "--ignore", nargs="+", metavar="NAME", help="columns of a table to leave out, such as id"
    )
    parser.add_argument(
        "--detector",
        type=detector_class,
        required=True,
        metavar="NAME",
        help=f"{', '.join(sorted(DETECTORS))}; gmm is a good one to start with",
    )
    parser.add_argument(
        "--set",
        type=setting,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the detector, such as percentile=0.9 false_alarm_rate=0.01",
    )
    parser.add_argument(
        "--out", type=safetensors_file, required=True, metavar="FILE", help="d.safetensors"
    )
    add_image_options(parser)
    parser.set_defaults(run=run_fit)


def safetensors_file(text):
    """Parse --out."""
    return output(text, (".safetensors",))


def run_fit(parser, options):
    """Fit a detector and save it; return the exit status."""
    try:
        import_safetensors()
        detector = make_detector(options)
        rows = open_rows(options.features, options)
        labels = None if options.labels is None else read_labels(options.labels)
        check_number(labels, rows.n_rows, options.labels)
        n_rows, n_learned = learn(detector, rows, labels, options.labels)
        # What is wrong with a threshold is told when it is asked for.
        offset = detector.offset_
    except (ImportError, ValueError, TypeError, OSError, MemoryError) as error:
        parser.error(str(error) or "that takes more memory than there is")
    try:
        skood.save(detector, options.out)
    except (OSError, TypeError, ValueError) as error:
        raise Failure(f"cannot save {options.out}: {error}") from error
    shape = " × ".join(map(str, detector._row_shape))
    known = getattr(detector, "known_classes_", None)
    classes = "without labels" if known is None else f"of {len(known)} classes"
    left_out = f"{n_rows - n_learned:,} with a negative label were left out.\n"
    print(
        f"{type(detector).__name__} learned from {n_learned:,} rows of shape {shape}, {classes}.\n"
        f"{left_out if n_learned < n_rows else ''}"
        f"Rows that score below {offset:.6g} are out-of-distribution: about "
        f"{detector.false_alarm_rate:.1%} of fresh in-distribution rows.\nSaved: {options.out}"
    )
    return 0


def make_detector(options):
    """Return the detector that the options describe."""
    cls, settings = options.detector, dict(options.set)
    names = [name for name in inspect.signature(cls).parameters if name != "model"]
    for name in settings:
        if name not in names:
            raise ValueError(f"--set {name}: {cls.__name__} has the parameters {', '.join(names)}")
    # A class that makes its own networks has no model.
    model = read_network(options.network)
    detector = cls(**({} if model is None else {"model": model}), **settings)
    detector._validate_params()
    return detector


def check_number(labels, n_rows, path):
    """Raise if there is not a label for each row, where the number of rows is known."""
    if labels is not None and n_rows is not None and len(labels) != n_rows:
        raise ValueError(f"{path!r} has {len(labels)} labels for {n_rows} rows")


def learn(detector, rows, labels, labels_path):
    """Let a detector learn; return how many rows there are, and how many are in-distribution."""
    if isinstance(rows, ImageRows):
        with tqdm(total=rows.n_rows, desc="fit", unit="image", disable=None) as bar:
            detector.fit(Counted(rows.images, bar), labels)
        y = rows.images.labels if labels is None else labels
        return rows.n_rows, int(is_inside(y, rows.n_rows, None).sum())
    chunks = labelled(rows, labels, labels_path)
    first = list(itertools.islice(chunks, 2))
    if len(first) < 2 or detector._fits_model:
        X, y = joined([*first, *chunks])
        with telling(rows, 0, X, y):
            detector.fit(X, y)
        return len(X), int(is_inside(y, len(X), None).sum())
    n_rows = 0
    with tqdm(total=rows.n_rows, desc="fit", unit="row", unit_scale=True, disable=None) as bar:
        for X, y in itertools.chain(iter(first), chunks):
            with telling(rows, n_rows, X, y):
                detector.partial_fit(X, y)
            bar.update(len(X))
            n_rows += len(X)
    return n_rows, detector.n_samples_seen_


def labelled(rows, labels, labels_path):
    """Yield chunks of rows with the labels that belong to them."""
    start = 0
    for X, y in rows.chunks(CHUNK_BYTES):
        stop = start + len(X)
        if labels is not None:
            y = labels[start:stop]
            check_number(labels[:stop], stop, labels_path)
        yield X, y
        start = stop
    check_number(labels, start, labels_path)


def joined(chunks):
    """Return all rows and labels as one."""
    X, y = zip(*chunks, strict=True)
    if len(X) == 1:
        return X[0], y[0]
    if hasattr(X[0], "iloc"):
        import pandas

        whole = pandas.concat(X)
    else:
        whole = np.concatenate(X)
    return whole, None if y[0] is None else np.concatenate(y)
