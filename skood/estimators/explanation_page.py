"""How an explanation looks in a notebook."""

import numpy as np

from skood._html import STYLE, Markup, as_html, card, figure, is_image, picture, scaled, table

MAX_ROWS, MAX_PARTS, MAX_NEIGHBORS = 20, 8, 8
# Of a bar, in pixels.
BAR = 120


def heat(gradient):
    """Return the size of a gradient (C, H, W) as pixels, from white to red."""
    size = scaled(np.abs(gradient).sum(0))
    return np.stack([np.full_like(size, 255), *[255 * (1 - size)] * 2], 2).astype(np.uint8)


def bars(parts, what):
    """Return numbers by name as a table of bars: red lowers the score, blue raises it."""
    largest = max((abs(value) for _, value in parts), default=0) or 1.0
    lines = []
    for name, value in parts:
        color = "var(--red)" if value < 0 else "var(--blue)"
        width = max(1, round(BAR * abs(value) / largest))
        style = f"background:{color};width:{width}px;height:9px"
        lines.append((name, f"{value:+.3g}", Markup(f'<div style="{style}"></div>')))
    return f'<div class="quiet">{what}</div>' + table(lines)


def neighbors(explanation, i):
    """Return the nearest training rows of a row."""
    distances = explanation.distances[i, :MAX_NEIGHBORS]
    captions = [f"{distance:.3g}" for distance in distances]
    if explanation.neighbors is not None:
        captions = [
            f"row {at}: {text}" if at >= 0 else text
            for at, text in zip(explanation.neighbors[i], captions, strict=False)
        ]
    near = None if explanation.neighbor_rows is None else explanation.neighbor_rows[i]
    if near is None or not is_image(near[0]):
        return f"<div>distances to training rows: {', '.join(captions)}</div>"
    pairs = zip(near, captions, strict=False)
    return "".join(figure(picture(image), caption) for image, caption in pairs)


def contributions(explanation, i):
    """Return what matters most in a row."""
    n_more = explanation.contributions.shape[1] - MAX_PARTS
    base = float(explanation.base[i])
    rest = [f"and {n_more} more"] * (n_more > 0) + [f"base {base:.3g}"] * (base != 0)
    return bars(explanation.top(i, MAX_PARTS), "adds to the score") + " · ".join(rest)


def section(explanation, i):
    """Return one row as HTML."""
    score, offset = float(explanation.scores[i]), explanation.offset
    word = "out-of-distribution" if score < offset else "in-distribution"
    facts = [f"score {score:.4g}", f"threshold {offset:.4g}", f"<b>{word}</b>"]
    if explanation.nearest_class is not None:
        facts.append(f"nearest class {as_html(explanation.nearest_class[i])}")
    html = [f"<div><b>Row {i}</b> · {' · '.join(facts)}</div>"]
    row = None if explanation.rows is None else explanation.rows[i]
    gradient = None if explanation.gradient is None else explanation.gradient[i]
    if is_image(row):
        html.append(figure(picture(row), "row"))
        if gradient is not None:
            html.append(figure(heat(gradient), "gradient"))
    if explanation.distances is not None:
        html.append(neighbors(explanation, i))
    if explanation.contributions is not None:
        html.append(contributions(explanation, i))
    if gradient is not None and explanation.columns is not None:
        largest = np.argsort(-np.abs(gradient), kind="stable")[:MAX_PARTS]
        steepest = [(explanation.columns[j], float(gradient[j])) for j in largest]
        html.append(bars(steepest, "gradient of the score by each column"))
    return card(*html)


def page(explanation):
    """Return an explanation as HTML, of the first rows."""
    shown = range(min(MAX_ROWS, len(explanation)))
    more = len(explanation) - len(shown)
    html = STYLE + "".join(section(explanation, i) for i in shown)
    return html + (f"<div>and {more} more rows</div>" if more else "")
