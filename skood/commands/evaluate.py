"""``python -m skood evaluate``: detectors compared on one's own rows, or images."""

import argparse
import inspect
import sys

from sklearn.ensemble import IsolationForest
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import skood
from skood import FeatureExtractor, benchmark
from skood.benchmark.evaluation import import_for_evaluate
from skood.commands.arguments import named, output, seed
from skood.commands.arrays import read_rows
from skood.commands.images import IMAGE_OPTIONS, add_image_options, load_images, read_network

DESCRIPTION = """\
Fit detectors on features of your own, and tell with confidence intervals how well they separate
fresh in-distribution rows from OOD sets. Files are .npz with arrays X, (n_samples, n_features),
and y, (n_samples,), or .npy with X alone.
"""
EXAMPLES = """\
examples:
  python -m skood evaluate --train a.npz --id b.npz --ood near=c.npz --ood far=d.npy
  python -m skood evaluate --images train=train.txt id=test.txt textures=dtd.txt --root images \\
      --network net.pt2 --size 32 --output table.md
"""


def names_of_detectors():
    """List the classes that evaluate takes."""
    return [*benchmark.default_detectors(None), "IsolationForest"]


def table_output(text):
    """Parse --output, and open the file once."""
    return output(text, tuple(WRITERS))


def make_detectors(names, seed, head=None):
    """Make detectors on features, by the names of their classes, with a linear head or without."""
    made = {}
    for name in names:
        detector = {"IsolationForest": IsolationForest}.get(name) or getattr(skood, name)
        parameters = inspect.signature(detector).parameters
        given = {"random_state": seed, "model": head}
        made[name] = detector(**{key: given[key] for key in given.keys() & parameters.keys()})
    return made


def add_evaluate(commands):
    """Add the command that compares detectors on one's own arrays."""
    parser = commands.add_parser(
        "evaluate",
        help="compare detectors on your own features, or images",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train", metavar="FILE", help="X and y to fit")
    parser.add_argument("--id", metavar="FILE", help="fresh in-distribution rows")
    parser.add_argument(
        "--ood",
        type=named,
        default=[],
        action="append",
        metavar="NAME=FILE",
        help="OOD rows; may be given several times",
    )
    parser.add_argument(
        "--images",
        type=named,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help="in place of --train, --id and --ood: images called train, id, and what OOD sets are "
        "called; without train, a random half of id is",
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
    add_image_options(parser)
    parser.set_defaults(run=run_evaluate)


# What writes a table to a file of this ending.
WRITERS = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".md": lambda table, path: table.to_markdown(path, index=False, floatfmt=".4f"),
    ".json": lambda table, path: table.to_json(path, orient="records", indent=2),
}


def run_evaluate(parser, options):
    """Compare detectors on one's own arrays; return the exit status."""
    check_arguments(parser, options)
    try:
        import_for_evaluate()
        # What is wrong with the arguments is told before anything is read.
        read = read_images if options.images else read_arrays
        X_train, y_train, X_id, y_id, ood_sets, head = read(options)
    except (ImportError, ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    for name, X in {"--id": X_id, **{f"--ood {name}": X for name, X in ood_sets.items()}}.items():
        if X.shape[1:] != X_train.shape[1:]:
            parser.error(
                f"{name} has rows of shape {X.shape[1:]}, --train of shape {X_train.shape[1:]}"
            )
    names = options.detectors
    if names is None:
        # A head is fitted on labels.
        has_logits = head is not None or y_train is not None
        names = names_of_detectors() if has_logits else ["GMMDetector", "IsolationForest"]
    try:
        with tqdm(total=len(names), desc="detectors", leave=False, disable=None) as bar:
            table = benchmark.evaluate(
                make_detectors(names, options.seed, head),
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


def check_arguments(parser, options):
    """Exit unless there are rows of each kind, with names of their own."""
    rows = {"--train": options.train, "--id": options.id, "--ood": options.ood}
    for argument, pairs in {"--ood": options.ood, "--images": options.images}.items():
        if len(dict(pairs)) < len(pairs):
            parser.error(f"argument {argument}: each set needs a name of its own")
    if not options.images:
        if missing := [name for name, given in rows.items() if not given]:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        for name in ("network", *IMAGE_OPTIONS):
            if getattr(options, name) is not None:
                parser.error(f"argument --{name}: only with --images")
    elif any(rows.values()):
        parser.error("argument --images: not allowed with --train, --id and --ood")
    elif "id" not in dict(options.images) or not dict(options.images).keys() - {"id", "train"}:
        parser.error("argument --images: needs id=PATH, and PATH of an OOD set under another name")
    elif options.network is None:
        parser.error("argument --images: needs a network: --network FILE.pt2")


def read_arrays(options):
    """Return the rows and labels to fit, those of fresh rows, OOD rows by name, and no head."""
    ood_sets = {name: read_rows(path)[0] for name, path in options.ood}
    return *read_rows(options.train), *read_rows(options.id), ood_sets, None


def read_images(options):
    """Return features and labels of images, as `read_arrays` does, and the network's last layer.

    Each image goes through the network once.
    """
    images = {name: load_images(path, options) for name, path in options.images}
    network = read_network(options.network)
    extractor = FeatureExtractor(network, verbose=True).fit(images["id"])
    X = {name: extractor.transform(data) for name, data in images.items()}
    y = {name: data.labels for name, data in images.items()}
    X_id, y_id = X.pop("id"), y["id"]
    if "train" in X:
        X_train, y_train = X.pop("train"), y["train"]
        if images["id"].classes != images["train"].classes:
            # Of other folders the numbers are others.
            y_id = None
    else:
        labelled = y_id is not None
        halves = train_test_split(
            X_id, *[y_id] * labelled, train_size=0.5, random_state=options.seed
        )
        X_train, X_id, y_train, y_id = halves if labelled else (*halves, None, None)
    try:
        head = extractor.head
    except ValueError:
        # What a network without one returns is features.
        head = None
    return X_train, y_train, X_id, y_id, X, head


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
