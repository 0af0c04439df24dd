"""Results as text."""

from __future__ import annotations

import textwrap

from skood.benchmark.results import METRICS, Result

_TABLE_WIDTH = 100
# At its defaults, over the tasks of docs/evidence.json.
BEST_ELSEWHERE = "MahalanobisDetector"

_KIND_WIDTH = sum(map(len, METRICS)) + 2 * (len(METRICS) - 1)


def _align(rows):
    """Align rows of str: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


def _metrics_block(results, kinds):
    """Return the lines of a block with the metrics of some OOD sets side by side."""
    rows = [["detector", *list(METRICS) * len(kinds)]]
    for result in results:
        values = [result.metrics[kind][name] for kind in kinds for name in METRICS]
        rows.append([result.label, *(f"{value:.3f}" for value in values)])
    titles = [f" {kind} ".center(_KIND_WIDTH, "-") for kind in kinds]
    return ["  ".join([" " * _label_width(results), *titles]), *_align(rows)]


def _costs_block(results):
    """Return the lines of the block with times and false alarms."""
    rows = [["detector", "mean AUROC", "fit ms", "score ms", "false alarms", "nominal"]]
    for result in results:
        nominal = "-" if result.nominal is None else f"{result.nominal:.1%}"
        rows.append(
            [
                result.label,
                f"{result.mean_auroc:.3f}",
                f"{1000 * result.fit_seconds:.0f}",
                f"{1000 * result.score_seconds:.0f}",
                f"{result.false_alarms:.1%}",
                nominal,
            ]
        )
    return _align(rows)


def _label_width(results):
    return max(len("detector"), *(len(result.label) for result in results))


def format_table(results: list[Result]) -> str:
    """Format results as plain text.

    Parameters
    ----------
    results : list of Result
        At least one, all of the same OOD sets.

    Returns
    -------
    table : str
        Blocks with one line a detector: first the metrics, with as many OOD sets side by side as
        100 characters hold, then times in milliseconds and false alarms beside their nominal
        share. Columns are separated by two blanks or more.
    """
    kinds = list(results[0].metrics)
    side_by_side = max(1, (_TABLE_WIDTH - _label_width(results)) // (_KIND_WIDTH + 2))
    blocks = [
        _metrics_block(results, kinds[start : start + side_by_side])
        for start in range(0, len(kinds), side_by_side)
    ]
    blocks.append(_costs_block(results))
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def format_advice(results: list[Result]) -> str:
    """Say which detector to try first, and why other data may give another answer.

    It is the one that was best elsewhere, where it is among the results, else the best of them.

    Parameters
    ----------
    results : list of Result
        At least one that is not a baseline.

    Returns
    -------
    advice : str
        Lines of at most 100 characters.
    """
    tried = [result for result in results if not result.baseline]
    best = max(tried, key=lambda result: result.mean_auroc)
    first = next((result for result in tried if result.name == BEST_ELSEWHERE), best)
    plain = ", ".join(f"{r.name} {r.mean_auroc:.3f}" for r in results if r.baseline)
    here = f"its mean AUROC in this run was {first.mean_auroc:.3f}"
    if best is first:
        here = f"its mean AUROC was the best in this run, {best.mean_auroc:.3f}"
    else:
        here += f", the best {best.mean_auroc:.3f} of {best.name}"
    if first.name == BEST_ELSEWHERE:
        here += ", and on networks and embeddings of other kinds it is among the best too"
    return textwrap.fill(
        f"Try {first.name} first: {here}"
        + (f" (plain baselines: {plain}). " if plain else ". ")
        + "Your numbers may differ, and so may the order: it depends on the network (its width, "
        "how long and how it was trained) and on how far the OOD rows are from yours. Other "
        "detectors suit tables, pixels, and few rows a class: skood.recommend(net, X, y) looks at "
        f"yours. Small differences are chance where there are {len(best.scores)} test rows.",
        _TABLE_WIDTH,
    )
