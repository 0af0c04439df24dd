"""``python -m skood score``: rows, or images, to a line each with its score and decision."""

import argparse
import contextlib
import csv
import json
import os
import sys

import numpy as np
from tqdm import tqdm

import skood
from skood.commands.arguments import Failure, output
from skood.commands.images import add_image_options, read_network
from skood.commands.rows import CHUNK_BYTES, KINDS, open_rows, telling
from skood.decisions.reading import scored
from skood.files.storage import replacing

EXAMPLES = """\
examples:
  python -m skood score d.safetensors new.npy
  python -m skood score d.safetensors monday.csv tuesday.csv --out scores.csv
  python -m skood score d.safetensors new.npz --format jsonl | head
  python -m skood score d.safetensors images/new --network net.pt2 --out scores.jsonl

For each row a line: its file and number in it, from 0; score, higher for rows like those of fit;
decision, the score minus the threshold: negative for out-of-distribution rows. For images the file
is that of the image. Memory does not grow with the files.

exit status: 0 done; 1 failed on the way, and what was written is not complete (--out is left as it
was); 2 arguments or files refused before anything was written.
"""
COLUMNS = ["file", "row", "score", "decision"]


def add_score(commands):
    """Add the command."""
    parser = commands.add_parser(
        "score",
        help="score files of rows, or images, with a detector from fit",
        description="Score rows with a detector that fit, or skood.save, has written.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", help="a .safetensors file of fit or skood.save")
    parser.add_argument("files", nargs="+", help=KINDS)
    parser.add_argument(
        "--out", type=scores_file, metavar="FILE", help="in place of the screen: .csv or .jsonl"
    )
    parser.add_argument(
        "--format",
        choices=["csv", "jsonl"],
        help="CSV, or a JSON object a line (default: as --out ends, else csv)",
    )
    add_image_options(parser)
    parser.set_defaults(run=run_score)


def scores_file(text):
    """Parse --out."""
    return output(text, (".csv", ".jsonl"))


def run_score(parser, options):
    """Score all rows; return the exit status."""
    try:
        model = read_network(options.network)
        detector = load(options.detector, model)
        files = [open_rows(path, options) for path in options.files]
    except (ImportError, ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    if options.out is not None and any(
        os.path.samefile(options.out, path)
        for path in (options.detector, *options.files)
        if options.out.exists()
    ):
        parser.error(f"argument --out: {options.out} is one of the files to read")
    form = options.format or ("csv" if options.out is None else options.out.suffix[1:].lower())
    try:
        with contextlib.ExitStack() as stack:
            if options.out is None:
                out = sys.stdout
            else:
                draft = stack.enter_context(replacing(options.out))
                out = stack.enter_context(open(draft, "w", encoding="utf-8", newline=""))
            n_rows, n_ood = write_scores(detector, files, WRITERS[form](out))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(f"cannot go on: {error.strerror or error}") from error
    share = f"{n_ood:,} of {n_rows:,} rows are out-of-distribution ({n_ood / n_rows:.1%})"
    print(share + ("" if options.out is None else f": {options.out}"), file=sys.stderr)
    return 0


def load(path, model):
    """Return a detector from a file."""
    detector = skood.load(path, model)
    if not hasattr(detector, "score_samples"):
        raise ValueError(f"{path} holds a {type(detector).__name__}, which is no detector")
    return detector


def write_scores(detector, files, write):
    """Score the rows of files and write them; return how many there are, and how many are OOD."""
    n_rows = n_ood = 0
    known = [rows.n_rows for rows in files]
    total = None if None in known else sum(known)
    with tqdm(total=total, desc="score", unit="row", unit_scale=True, disable=None) as bar:
        for rows in files:
            for start, names, scores, threshold in score_chunks(detector, rows):
                decisions = scores.astype(float) - threshold
                numbers = range(start, start + len(scores))
                write(
                    names, numbers, scores.astype(str), decisions.astype(scores.dtype).astype(str)
                )
                n_rows += len(scores)
                n_ood += int(np.count_nonzero(decisions < 0))
                bar.update(len(scores))
    return n_rows, n_ood


def score_chunks(detector, rows):
    """Yield the first row, the names, the scores and the threshold of chunks of a file."""
    start = 0
    try:
        for X, _ in rows.chunks(CHUNK_BYTES):
            with telling(rows, start, X):
                X = by_name(X, detector)
            with telling(rows, start, X):
                scores, threshold, _ = scored(detector, X)
            if scores.ndim > 1:
                raise ValueError(f"{rows.path}: each row has a map of scores, for which no line is")
            stop = start + len(scores)
            yield start, rows.names(start, stop), scores, threshold
            start = stop
    except ValueError as error:
        raise Failure(str(error)) from error


def by_name(X, detector):
    """Return the columns of a table that a detector learned from, where both have names."""
    expected = getattr(detector, "feature_names_in_", None)
    if expected is None or not hasattr(X, "columns"):
        return X
    missing = [name for name in expected if name not in X.columns]
    if missing:
        raise ValueError(f"it lacks the columns {', '.join(missing)[:200]}, which fit learned from")
    return X[list(expected)]


def csv_writer(out):
    """Return what writes columns as lines of CSV."""
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(COLUMNS)
    return lambda *columns: lines.writerows(zip(*columns, strict=True))


def json_writer(out):
    """Return what writes columns as a JSON object a line."""

    def write(names, *columns):
        # Numbers stay as short as they were written.
        out.writelines(
            f'{{"file": {json.dumps(name)}, "row": {row}, "score": {score}, '
            f'"decision": {decision}}}\n'
            for name, row, score, decision in zip(names, *columns, strict=True)
        )

    return write


WRITERS = {"csv": csv_writer, "jsonl": json_writer}
