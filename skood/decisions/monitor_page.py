"""How a monitor looks in a notebook."""

import math

from skood._html import STYLE, card, number, percent, table
from skood.decisions.reading import last_step

# Of the picture, in units of its text's 11.
WIDTH, HEIGHT, LEFT, BELOW = 420, 120, 40, 18
MAX_LINES, MAX_POINTS = 12, 200


def chart(windows, alarm_at, expected):
    """Return a picture of the shares of windows and their intervals, as SVG."""
    step = max(1, -(-len(windows["start"]) // MAX_POINTS))
    start, stop, share, low, high = (
        list(windows[name])[::step] for name in ("start", "stop", "share", "low", "high")
    )
    first, last = start[0], max(stop[-1], start[0] + 1)
    top = min(1.0, max(0.1, 1.15 * max(share), 0.6 * max(high)))

    def x(row):
        return LEFT + (WIDTH - LEFT - 8) * (row - first) / (last - first)

    def y(value):
        return 8 + (HEIGHT - BELOW - 8) * (1 - min(value, top) / top)

    middle = [x((a + b) / 2) for a, b in zip(start, stop, strict=True)]
    upper = [f"{at:.1f},{y(value):.1f}" for at, value in zip(middle, high, strict=True)]
    lower = [f"{at:.1f},{y(value):.1f}" for at, value in zip(middle, low, strict=True)]
    line = [f"{at:.1f},{y(value):.1f}" for at, value in zip(middle, share, strict=True)]
    band = " ".join(upper + lower[::-1])
    parts = [f'<polygon points="{band}" fill="var(--blue)" opacity=".15"/>']
    parts.append(
        f'<polyline points="{" ".join(line)}" fill="none" stroke="var(--blue)" stroke-width="1.5"/>'
        if len(line) > 1
        else f'<circle cx="{middle[0]:.1f}" cy="{y(share[0]):.1f}" r="3" fill="var(--blue)"/>'
    )
    if expected is not None and expected <= top:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(expected):.1f}" y2="{y(expected):.1f}" '
            'stroke="var(--quiet)" stroke-dasharray="3 3"/>'
        )
    if alarm_at is not None and alarm_at >= first:
        parts.append(
            f'<line x1="{x(alarm_at):.1f}" x2="{x(alarm_at):.1f}" y1="8" y2="{HEIGHT - BELOW}" '
            'stroke="var(--red)" stroke-width="1.5"/>'
        )
    text = 'class="quiet" font-size="11" fill="currentColor"'
    for value in (0, top):
        parts.append(
            f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end" {text}>'
            f"{100 * value:.0f} %</text>"
        )
    for row, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{x(row):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}" {text}>{row:,}</text>'
        )
    return (
        f'<svg width="{WIDTH}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Share of out-of-distribution rows">{"".join(parts)}</svg>'
    )


def page(monitor, windows, groups):
    """Return a monitor as HTML.

    Parameters
    ----------
    monitor : Monitor
        What it is about.
    windows, groups : dict of str to list
        Its tables.
    """
    color = "var(--alarm);color:var(--red)" if monitor.alarm else "var(--calm);color:var(--green)"
    word = "alarm" if monitor.alarm else "no alarm"
    share = monitor.n_ood / monitor.n_rows if monitor.n_rows else math.nan
    facts = [
        f"{monitor.n_rows:,} rows",
        f"{percent(share)} out-of-distribution",
        f"evidence {number(monitor.e_value)}, alarm from {number(1 / monitor.level)}",
    ]
    if monitor.alarm:
        facts.append(f"alarm at row {monitor.alarm_at:,}")
    html = [
        f"<b>Monitor of {type(last_step(monitor.detector)).__name__}</b> "
        f'<b style="padding:1px 8px;border-radius:10px;background:{color}">{word}</b>'
        f"<div>{' · '.join(facts)}</div>",
    ]
    if windows["start"]:
        expected = getattr(last_step(monitor.detector), "false_alarm_rate", None)
        html.append(chart(windows, monitor.alarm_at, expected))
        html.append(
            '<div class="quiet">Share of out-of-distribution rows in windows of '
            f"{monitor.window} rows, with {100 * monitor.confidence:g} % intervals"
            + ("; dashed: the false alarm rate" if expected is not None else "")
            + "</div>"
        )
    if groups["group"]:
        order = sorted(range(len(groups["group"])), key=lambda i: -groups["share"][i])[:MAX_LINES]
        rows = [
            (
                groups["group"][i],
                f"{groups['n_rows'][i]:,}",
                percent(groups["share"][i]),
                f"{percent(groups['low'][i])} to {percent(groups['high'][i])}",
                number(groups["e_value"][i]),
            )
            for i in order
        ]
        more = len(groups["group"]) - len(order)
        html.append(table(rows, ("group", "rows", "out", "interval", "evidence")))
        html.append(f'<div class="quiet">and {more} more</div>' if more else "")
    return STYLE + card(*html)
