"""How a monitor looks in a notebook."""

import math
from html import escape

# Of the picture, in pixels.
WIDTH, HEIGHT, LEFT, BELOW = 560, 130, 40, 18
MAX_LINES, MAX_POINTS = 12, 200
STYLE = """
<style>
.skood-monitor { font: 13px system-ui, sans-serif; max-width: 640px; color: #1f2328;
  background: #fff; border: 1px solid #d0d7de; border-radius: 6px; padding: 10px 14px; }
.skood-monitor .skood-state { font-weight: 600; padding: 1px 8px; border-radius: 10px; }
.skood-monitor table { border-collapse: collapse; margin-top: 6px; }
.skood-monitor th, .skood-monitor td { text-align: right; padding: 1px 10px 1px 0; color: #1f2328;
  background: #fff; font-weight: 400; }
.skood-monitor th { color: #57606a; }
.skood-monitor svg text { font: 11px system-ui, sans-serif; fill: #57606a; }
</style>
"""


def number(value):
    """Write a number with three digits."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def percent(value):
    """Write a share."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


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
    parts = [f'<polygon points="{" ".join(upper + lower[::-1])}" fill="#0969da" opacity=".15"/>']
    parts.append(
        f'<polyline points="{" ".join(line)}" fill="none" stroke="#0969da" stroke-width="1.5"/>'
        if len(line) > 1
        else f'<circle cx="{middle[0]:.1f}" cy="{y(share[0]):.1f}" r="3" fill="#0969da"/>'
    )
    if expected is not None and expected <= top:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(expected):.1f}" y2="{y(expected):.1f}" '
            'stroke="#57606a" stroke-dasharray="3 3"/>'
        )
    if alarm_at is not None and alarm_at >= first:
        parts.append(
            f'<line x1="{x(alarm_at):.1f}" x2="{x(alarm_at):.1f}" y1="8" y2="{HEIGHT - BELOW}" '
            'stroke="#cf222e" stroke-width="1.5"/>'
        )
    for value in (0, top):
        parts.append(
            f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{100 * value:.0f} %</text>"
        )
    for row, anchor in ((first, "start"), (last, "end")):
        parts.append(
            f'<text x="{x(row):.1f}" y="{HEIGHT - 4}" text-anchor="{anchor}">{row:,}</text>'
        )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" '
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
    color = "#ffebe9;color:#a40e26" if monitor.alarm else "#dafbe1;color:#116329"
    word = "alarm" if monitor.alarm else "no alarm"
    share = monitor.n_ood / monitor.n_rows if monitor.n_rows else math.nan
    facts = [
        f"{monitor.n_rows:,} rows",
        f"{percent(share)} out-of-distribution",
        f"evidence {number(monitor.e_value)}, alarm from {number(1 / monitor.level)}",
    ]
    if monitor.alarm:
        facts.append(f"alarm at row {monitor.alarm_at:,}")
    name = escape(type(monitor._final()).__name__)
    html = [
        STYLE,
        f'<div class="skood-monitor"><b>Monitor of {name}</b> '
        f'<span class="skood-state" style="background:{color}">{word}</span>'
        f"<div>{' · '.join(facts)}</div>",
    ]
    if windows["start"]:
        expected = getattr(monitor._final(), "false_alarm_rate", None)
        html.append(chart(windows, monitor.alarm_at, expected))
        html.append(
            f"<div>Share of out-of-distribution rows in windows of {monitor.window} rows, with "
            f"{100 * monitor.confidence:g} % intervals"
            + ("; dashed: the false alarm rate" if expected is not None else "")
            + "</div>"
        )
    if groups["group"]:
        order = sorted(range(len(groups["group"])), key=lambda i: -groups["share"][i])[:MAX_LINES]
        rows = "".join(
            f"<tr><td>{escape(str(groups['group'][i]))}</td><td>{groups['n_rows'][i]:,}</td>"
            f"<td>{percent(groups['share'][i])}</td>"
            f"<td>{percent(groups['low'][i])} to {percent(groups['high'][i])}</td>"
            f"<td>{number(groups['e_value'][i])}</td></tr>"
            for i in order
        )
        more = len(groups["group"]) - len(order)
        html.append(
            "<table><tr><th>group</th><th>rows</th><th>out</th><th>interval</th><th>evidence</th>"
            f"</tr>{rows}</table>" + (f"<div>and {more} more</div>" if more else "")
        )
    return "".join(html) + "</div>"
