"""How a report looks."""

import datetime
from html import escape

import numpy as np

from skood._html import (
    STYLE,
    as_html,
    card,
    figure,
    is_image,
    percent,
    picture,
    table,
)
from skood._versions import versions
from skood.estimators.printing import describe

N_BARS, HEIGHT = 60, 40
# The share of the rows at either end whose scores are drawn in the outermost bars.
BEYOND = 0.01
MAX_CLASSES = 30
REPORT_STYLE = """
<style>
.skood h1 { font-size: 20px; margin: 6px 0; }
.skood h2 { font-size: 15px; margin: 18px 0 4px; }
.skood .bars { position: relative; height: 40px; margin: 0 0 6px;
  border-bottom: 1px solid var(--line); }
.skood .bars svg { width: 100%; height: 100%; }
.skood .ends { display: flex; justify-content: space-between; }
</style>
"""
# Nothing is loaded and nothing runs, whatever a page holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title, html):
    """Return a page as a file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title></head>\n"
        f'<body style="max-width:760px;margin:12px auto;padding:0 8px">{html}</body></html>\n'
    )


def histograms(found):
    """Return the histograms of all sets on one axis, around the threshold."""
    scores, threshold = found["scores"], found["threshold"]
    # Linear near the threshold and logarithmic far from it: a likelihood falls without bound.
    width = abs(np.median(scores[None]) - threshold) or 1.0
    placed = {name: np.arcsinh((values - threshold) / width) for name, values in scores.items()}
    ends = [np.quantile(values, [BEYOND, 1 - BEYOND]) for values in placed.values()]
    low, high = min(-1.0, np.min(ends)), max(1.0, np.max(ends))
    at = -low / (high - low) * N_BARS
    parts = []
    for name, values in placed.items():
        counts, _ = np.histogram(np.clip(values, low, high), N_BARS, (low, high))
        tops = HEIGHT * (1 - 0.95 * counts / counts.max())
        bars = "".join(f"M{i} {HEIGHT}V{top:.2f}h1V{HEIGHT}z" for i, top in enumerate(tops))
        color = "var(--blue)" if name is None else "var(--red)"
        parts.append(
            f'<div>{title_of(name)} <span class="quiet">{len(values):,} rows</span></div>'
            f'<div class="bars"><svg viewBox="0 0 {N_BARS} {HEIGHT}" preserveAspectRatio="none" '
            f'role="img" aria-label="Histogram of the scores of {title_of(name)}">'
            f'<rect width="{at:.2f}" height="{HEIGHT}" fill="var(--shade)"/>'
            f'<path d="{bars}" fill="{color}"/><line x1="{at:.2f}" x2="{at:.2f}" y2="{HEIGHT}" '
            'stroke="currentColor" vector-effect="non-scaling-stroke"/></svg></div>'
        )
    left, right = (threshold + width * np.sinh(end) for end in (low, high))
    parts.append(
        f'<div class="ends quiet"><span>{left:.3g}</span><span>{right:.3g}</span></div>'
        f'<div class="quiet">Line: the threshold, {threshold:.4g}; grey: called '
        "out-of-distribution. The axis is linear near it, logarithmic far from it; the outermost "
        "bars hold what lies beyond.</div>"
    )
    return "".join(parts)


def title_of(name):
    """Return the name of a set as HTML."""
    return "in-distribution" if name is None else as_html(name)


def interval(value, low, high, write=percent):
    """Write a value with its interval."""
    return f"{write(value)} ({write(low)} to {write(high)})"


def ood_sets(found):
    """Return what is found of each OOD set, and what other thresholds would find."""
    rows = [
        (
            name,
            f"{found['shares'][name][0]:,}",
            interval(*auroc, "{:.3f}".format),
            interval(*fpr),
            interval(*found["shares"][name][1:]),
        )
        for name, (auroc, fpr) in found["metrics"].items()
    ]
    names = list(found["metrics"])
    rates = [
        (percent(rate), f"{threshold:.4g}", *map(percent, shares))
        for rate, threshold, shares in found["rates"]
    ]
    return (
        "<h2>OOD sets</h2>"
        + table(rows, ("", "rows", "AUROC", "FPR95", "found"))
        + '<div class="quiet">FPR95: OOD rows accepted where 95 % of the test rows are. Found: at '
        "the threshold of the detector.</div><h2>Other thresholds</h2>"
        + table(rates, ("asked for", "threshold", "false alarms", *names))
        + '<div class="quiet">By the scores of the test rows; what is found of each set.</div>'
    )


def false_alarms(found):
    """Return false alarms, overall and by class."""
    n_rows, *share = found["shares"][None]
    asked = "" if found["asked"] is None else f"; asked for: {percent(found['asked'])}"
    html = f"<h2>False alarms</h2><div><b>{interval(*share)}</b> of {n_rows:,} rows{asked}</div>"
    rows = [
        (label, f"{int(n):,}", percent(value), f"{percent(low)} to {percent(high)}")
        for label, n, value, low, high in found["classes"][:MAX_CLASSES]
    ]
    if rows:
        html += table(rows, ("class", "rows", "false alarms", "interval"))
    more = len(found["classes"]) - len(rows)
    return html + (f'<div class="quiet">and {more} more classes</div>' if more else "")


def worst(rows, title, columns):
    """Return the rows that are judged worst, with their pictures where they are images."""
    columns = [c for c in columns if any(row.get(c) is not None for row in rows)]
    rows = sorted(rows, key=lambda row: row["score"], reverse="set" in columns)
    images = [
        figure(picture(row["image"]), f"row {row['row']}")
        for row in rows
        if is_image(row.get("image"))
    ]
    lines = [[f"{row[c]:.4g}" if c == "score" else row.get(c, "") for c in columns] for row in rows]
    return f"<h2>{title}</h2>{''.join(images)}{table(lines, columns)}" if rows else ""


def settings(found):
    """Return parameters and versions."""
    detector = found["detector"]
    params = describe(detector.get_params()) if hasattr(detector, "get_params") else {}
    shown = [(name, f"{value!r:.300}") for name, value in sorted(params.items())]
    used = [(name, value) for name, value in versions().items() if value is not None]
    return (
        f"<h2>Settings of {as_html(type(detector).__name__)}</h2>{table(shown, kind='text')}"
        f"<h2>Versions</h2>{table(used, kind='text')}"
    )


def page(found):
    """Return a report as HTML.

    Parameters
    ----------
    found : dict
        What `report` found.
    """
    today = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    lowest, highest = found["worst"]
    return (
        STYLE
        + REPORT_STYLE
        + card(
            f"<h1>{as_html(found['title'])}</h1>",
            f'<div class="quiet">{today} · intervals hold {100 * found["confidence"]:g} %</div>',
            "<h2>Scores</h2>",
            histograms(found),
            false_alarms(found),
            ood_sets(found) if found["metrics"] else "",
            worst(lowest, "Test rows of the lowest scores", ("row", "score", "class", "predicted")),
            worst(highest, "OOD rows of the highest scores", ("row", "set", "score", "predicted")),
            settings(found),
        )
    )
