"""Time of scoring against n, D, the number of classes, the bank's size and k, as a plot."""

import statistics
from functools import partial

from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector, NACDetector
from tests.benchmarks.cases import BankOnly, classes
from tests.benchmarks.harness import seconds

# Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in gray.
STYLES = {
    "ASH": ("#E69F00", "o"),
    "GMM": ("#0072B2", "s"),
    "GradNorm head": ("#009E73", "^"),
    "NAC": ("#CC79A7", "D"),
    "NNGuide": ("#D55E00", "v"),
}
SETTING = {"n": 2_000, "D": 128, "C": 10, "bank": 10_000, "k": 10}
SWEEPS = {
    "n": [100, 1_000, 10_000, 100_000],
    "D": [32, 128, 512, 2_048],
    "C": [2, 10, 100, 1_000],
    "bank": [1_000, 10_000, 100_000],
    "k": [1, 10, 100, 1_000],
}
LABELS = {
    "n": "rows n",
    "D": "features D",
    "C": "classes C",
    "bank": "rows of the bank",
    "k": "neighbours k",
}


def score_times(names, n, D, C, bank, k, device):
    """Return the median of three times of scoring, for each detector."""
    X, _ = classes(n, D, seed=2, device=device)
    train, y = classes(bank, D, C, device=device)
    X, train, head = X.relu_(), train.relu_(), nn.Linear(D, C).to(device)
    detectors = {
        "ASH": ASHDetector(head),
        "GMM": GMMDetector(),
        "GradNorm head": GradNormDetector(head),
        "NAC": NACDetector(head),
        "NNGuide": BankOnly(head, k=k),
    }
    times = {}
    for name in names:
        score = partial(detectors[name].fit(train, y).score_samples, X)
        score()
        times[name] = statistics.median(seconds(score, device) for _ in range(3))
    return times


def sweep(device, quick):
    """Vary each size alone; return the times as nested dicts of lists."""
    results = {}
    for size, values in SWEEPS.items():
        names = ["NNGuide"] if size in ("bank", "k") else list(STYLES)
        values = values[:-1] if quick else values
        rows = [score_times(names, **{**SETTING, size: v}, device=device) for v in values]
        results[size] = {
            "values": values,
            "seconds": {name: [row[name] for row in rows] for name in names},
        }
    return results


def plot(results, path):
    """Draw a panel for each size, with logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.2), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for axes, (size, result) in zip(panels, results.items(), strict=True):
        for name, times in result["seconds"].items():
            color, marker = STYLES[name]
            axes.loglog(result["values"], times, color=color, marker=marker, label=name)
        axes.set_xticks(result["values"], [f"{value:,}" for value in result["values"]])
        axes.minorticks_off()
        axes.set_xlabel(LABELS[size])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds to score")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    fixed = ", ".join(f"{LABELS[name]} = {value:,}" for name, value in SETTING.items())
    figure.suptitle(f"Where it does not vary: {fixed}", fontsize="medium")
    figure.savefig(path, dpi=150)
