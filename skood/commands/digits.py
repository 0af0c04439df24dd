"""Detectors on digits: what ``python -m skood`` does without a command."""

import sys

import torch
from tqdm import tqdm

from skood import benchmark
from skood.benchmark.digits import N_EPOCHS
from skood.datasets import load_digits_ood

NOTES = """\
AUROC: 0.5 is guessing, 1 is perfect. AUPR-out: OOD rows are the positive class. FPR95: OOD rows
accepted where 95 % of the in-distribution rows are. ms: {n_train} rows to fit, {n_scored} to score.

False alarms: fresh in-distribution rows that predict calls -1. More than the nominal share is to
be expected: the thresholds come from rows that the network was trained on, and it is surer of
these than of fresh ones. Where the share has to hold, fit a detector on rows set aside.

The network's training was chosen with these OOD images in view, so others may be harder to tell.
Another --seed moves an AUROC by about 0.01, those of GradNorm and of far images by more."""


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
