"""Every detector on one benchmark, or on one's own arrays: ``python -m skood``."""

import argparse
import inspect
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from tqdm import tqdm

import skood
from skood import benchmark
from skood.benchmark.digits import N_EPOCHS
from skood.benchmark.evaluation import import_for_evaluate
from skood.datasets import load_digits_ood

NOTES = """\
AUROC: 0.5 is guessing, 1 is perfect. AUPR-out: OOD rows are the positive class. FPR95: OOD rows
accepted where 95 % of the in-distribution rows are. ms: {n_train} rows to fit, {n_scored} to score.

False alarms: fresh in-distribution rows that predict calls -1. More than the nominal share is to
be expected: the thresholds come from rows that the network was trained on, and it is surer of
these than of fresh ones. Where the share has to hold, fit a detector on rows set aside.

The network's training was chosen with these OOD images in view, so others may be harder to tell.
Another --seed moves an AUROC by about 0.01, those of GradNorm and of far images by more."""


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors take one line."""

    def error(self, message):
        """Print the message and exit with 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def seed(text):
    """Parse --seed."""
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2**32 - 1")
    return int(text)


def device(text):
    """Parse --device, and use it once."""
    try:
        torch.ones(1, device=text).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = textwrap.shorten(str(error), 100, placeholder=" ...")
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from error
    return text


def output(text, suffixes=(".png",)):
    """Parse --output, and open the file once."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from error
    if not existed:
        path.unlink()
    return path


def table_output(text):
    """Parse --output of evaluate, and open the file once."""
    return output(text, tuple(WRITERS))


def read_rows(path):
    """Read a file of rows; raise a ValueError that says what is wrong with it.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
        The array "X", or the only one.
    y : ndarray of shape (n_samples,) or None
        The array "y".
    """
    try:
        # Never pickles: a file from elsewhere could run code.
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"X": loaded}
    except OSError as error:
        reason = error.strerror or "it is neither .npz nor .npy"
        raise ValueError(f"cannot read {path!r}: {reason}") from error
    except MemoryError as error:
        raise ValueError(f"cannot read {path!r}: that takes more memory than there is") from error
    except Exception as error:
        # numpy, zipfile, zlib and ast each have errors of their own for damaged content.
        raise ValueError(
            f"cannot read {path!r}: it must be an .npz or .npy file of numbers, written by "
            "numpy.savez(file, X=..., y=...) or numpy.save (no pickled objects)"
        ) from error
    y = arrays.pop("y", None)
    if "X" not in arrays and len(arrays) != 1:
        names = textwrap.shorten(", ".join(arrays) or "nothing", 100, placeholder=" ...")
        raise ValueError(f"{path!r} holds {names}: one array must be called X")
    X = arrays.get("X", next(iter(arrays.values())))
    if X.ndim < 2 or X.dtype.kind not in "biuf" or len(X) == 0:
        raise ValueError(
            f"X in {path!r} must hold numbers in rows, (n_samples, n_features); it has shape "
            f"{X.shape} and dtype {X.dtype}"
        )
    if y is not None and y.shape != X.shape[:1]:
        raise ValueError(
            f"y in {path!r} has shape {y.shape}; X has {len(X)} rows, each needs one label"
        )
    return X, y


def named_file(text):
    """Parse NAME=FILE."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, such as textures=t.npz")
    return name, path


def names_of_detectors():
    """List the classes that evaluate takes."""
    return [*benchmark.default_detectors(None), "IsolationForest"]


def make_detectors(names, seed):
    """Make detectors on features, by the names of their classes."""
    made = {}
    for name in names:
        detector = {"IsolationForest": IsolationForest}.get(name) or getattr(skood, name)
        random = "random_state" in inspect.signature(detector).parameters
        made[name] = detector(random_state=seed) if random else detector()
    return made


def add_evaluate(commands):
    """Add the command that compares detectors on one's own arrays."""
    parser = commands.add_parser(
        "evaluate",
        help="compare detectors on your own features",
        description="Fit detectors on features of your own, and tell with confidence intervals "
        "how well they separate fresh in-distribution rows from OOD sets. Files are .npz with "
        "arrays X, (n_samples, n_features), and y, (n_samples,), or .npy with X alone.",
    )
    parser.add_argument("--train", required=True, metavar="FILE", help="X and y to fit")
    parser.add_argument("--id", required=True, metavar="FILE", help="fresh in-distribution rows")
    parser.add_argument(
        "--ood",
        type=named_file,
        required=True,
        action="append",
        metavar="NAME=FILE",
        help="OOD rows; may be given several times",
    )
    parser.add_argument(
        "--detectors",
        nargs="+",
        choices=names_of_detectors(),
        metavar="NAME",
        help=f"some of {', '.join(names_of_detectors())} (default: all that can do with the "
        "labels there are)",
    )
    parser.add_argument(
        "--output",
        type=table_output,
        metavar="FILE",
        help="where to write all figures: .csv, .md or .json",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of what is drawn (default: 0)")
    parser.set_defaults(run=run_evaluate)


# What writes a table to a file of this ending.
WRITERS = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".md": lambda table, path: table.to_markdown(path, index=False, floatfmt=".4f"),
    ".json": lambda table, path: table.to_json(path, orient="records", indent=2),
}


def run_evaluate(parser, options):
    """Compare detectors on one's own arrays; return the exit status."""
    if len(dict(options.ood)) < len(options.ood):
        parser.error("argument --ood: each set needs a name of its own")
    try:
        import_for_evaluate()
        # What is wrong with the arguments is told before anything is read.
        X_train, y_train = read_rows(options.train)
        X_id, y_id = read_rows(options.id)
        ood_sets = {name: read_rows(path)[0] for name, path in options.ood}
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    for name, X in {"--id": X_id, **{f"--ood {name}": X for name, X in ood_sets.items()}}.items():
        if X.shape[1:] != X_train.shape[1:]:
            parser.error(
                f"{name} has rows of shape {X.shape[1:]}, --train of shape {X_train.shape[1:]}"
            )
    names = options.detectors
    if names is None:
        # A head is fitted on labels.
        names = names_of_detectors() if y_train is not None else ["GMMDetector", "IsolationForest"]
    try:
        with tqdm(total=len(names), desc="detectors", leave=False, disable=None) as bar:
            table = benchmark.evaluate(
                make_detectors(names, options.seed),
                X_train,
                y_train,
                X_id,
                y_id,
                ood_sets,
                random_state=options.seed,
                on_result=lambda name: bar.update(),
            )
    except (ValueError, TypeError, MemoryError) as error:
        parser.error(str(error))
    print(brief(table).to_markdown(index=False, disable_numparse=True, stralign="right"))
    print(f"\n{len(X_id)} in-distribution rows; in brackets 95 % intervals.")
    if options.output is not None:
        try:
            WRITERS[options.output.suffix.lower()](table, options.output)
        except OSError as error:
            # pandas has words of its own.
            print(f"Cannot write {options.output}: {error.strerror or error}", file=sys.stderr)
            return 1
        print(f"All figures: {options.output}")
    return 0


def brief(table):
    """Return a table of strings: what fits on a screen."""
    short = table[["detector", "ood"]].copy()
    for metric, title in {"auroc": "AUROC", "fpr95": "FPR95"}.items():
        values = table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy()
        short[title] = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in values]
    short["false alarms"] = [f"{share:.1%}" for share in table["false_alarms"]]
    for what in ("fit", "score"):
        short[f"{what} s"] = [f"{seconds:.2f}" for seconds in table[f"{what}_seconds"]]
    short["MiB"] = [f"{mib:.0f}" for mib in table["memory_mib"]]
    return short


def make_parser():
    """Make the parser of the command line."""
    parser = Parser(
        prog="python -m skood",
        description="Train a small network on digits and compare nine detectors on it, in less "
        "than a minute and without any download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skood {skood.__version__}")
    parser.add_argument("--seed", type=seed, default=0, help="of the network and the detectors")
    parser.add_argument("--device", type=device, default="cpu", help="such as cpu, cuda or cuda:1")
    parser.add_argument(
        "--output",
        type=output,
        default="skood-demo.png",
        metavar="PNG",
        help="where to draw score histograms and ROC curves",
    )
    parser.set_defaults(run=run_digits)
    add_evaluate(parser.add_subparsers(title="commands", metavar="", parser_class=Parser))
    return parser


def main(arguments=None):
    """Run the command and return its exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    return options.run(parser, options)


def run_digits(parser, options):
    """Compare detectors on digits; return the exit status."""
    # Batches this small gain nothing from a second thread, and threads that wait for each other
    # on busy cores took ten times as long.
    torch.set_num_threads(1)
    try:
        data = load_digits_ood()
    except ImportError as error:
        parser.error(str(error))
    n_ood = sum(map(len, data.ood.values()))
    with tqdm(total=N_EPOCHS, desc="training", leave=False, disable=None) as bar:
        net = benchmark.train_digits_network(
            data.X_train,
            data.y_train,
            seed=options.seed,
            device=options.device,
            on_epoch=bar.update,
        )
        accuracy = net.score(data.X_test, data.y_test)
        detectors = benchmark.default_detectors(net.module_, random_state=options.seed)
        baselines = benchmark.default_baselines(net.module_, random_state=options.seed)
        bar.set_description("detectors")
        bar.total += len(detectors) + len(baselines)
        results = benchmark.run(
            detectors, data, baselines=baselines, on_result=lambda result: bar.update()
        )
    sets = ", ".join(f"{name} ({len(X)})" for name, X in data.ood.items())
    print(
        f"A CNN trained on {len(data.X_train)} digits 0-5 is right on "
        f"{accuracy:.1%} of {len(data.X_test)} fresh ones. "
        f"How well are these told\nfrom OOD images: {sets}?\n"
    )
    print(benchmark.format_table(results), end="\n\n")
    print(NOTES.format(n_train=len(data.X_train), n_scored=len(data.X_test) + n_ood), end="\n\n")
    status = save_picture(results, options.output)
    print(benchmark.format_advice(results))
    return status


def save_picture(results, path):
    """Draw the results and say where; return 1 if that is not possible any more."""
    try:
        benchmark.plot(results, path)
    except ImportError as error:
        print(f"{error}\n")
    except OSError as error:
        print(f"Cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    else:
        print(f"Histograms and ROC curves: {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
