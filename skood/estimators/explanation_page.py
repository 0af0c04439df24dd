"""How an explanation looks in a notebook."""

import base64
import struct
import zlib
from html import escape

import numpy as np

MAX_ROWS, MAX_PARTS, MAX_NEIGHBORS = 20, 8, 8
BAR = 120
# Of an image, in pixels.
SIZE = 72
STYLE = """
<style>
.skood-explained { font: 13px system-ui, sans-serif; color: #1f2328; background: #fff;
  border: 1px solid #d0d7de; border-radius: 6px; padding: 8px 14px; max-width: 760px;
  margin-bottom: 6px; }
.skood-explained table { border-collapse: collapse; margin: 4px 0; }
.skood-explained td { padding: 0 10px 0 0; color: #1f2328; background: #fff; text-align: left; }
.skood-explained td.number { text-align: right; }
.skood-explained figure { display: inline-block; margin: 4px 8px 0 0; font-size: 11px;
  color: #57606a; text-align: center; }
.skood-explained img { display: block; image-rendering: pixelated; }
</style>
"""


def png(pixels):
    """Return an image of shape (H, W, 3), dtype uint8, as the source of an ``img``."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def is_image(row):
    """Tell whether a row is an image (C, H, W), grey or coloured."""
    return row is not None and row.ndim == 3 and row.shape[0] in (1, 3) and min(row.shape[1:]) > 1


def scaled(values):
    """Return values between 0 and 1."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def picture(row):
    """Return an image (C, H, W) as pixels."""
    pixels = np.broadcast_to(255 * scaled(row), (3, *row.shape[1:]))
    return pixels.transpose(1, 2, 0).astype(np.uint8)


def heat(gradient):
    """Return the size of a gradient (C, H, W) as pixels, from white to red."""
    size = scaled(np.abs(gradient).sum(0))
    return np.stack([np.full_like(size, 255), *[255 * (1 - size)] * 2], 2).astype(np.uint8)


def figure(pixels, caption):
    """Return an image with a line below it."""
    height = round(SIZE * pixels.shape[0] / pixels.shape[1])
    return (
        f'<figure><img src="{png(pixels)}" width="{SIZE}" height="{height}" '
        f'alt="{escape(caption)}"/>{escape(caption)}</figure>'
    )


def bars(parts):
    """Return contributions as a table of bars: red lowers the score, blue raises it."""
    largest = max((abs(value) for _, value in parts), default=0) or 1.0
    lines = []
    for name, value in parts:
        color = "#cf222e" if value < 0 else "#0969da"
        width = max(1, round(BAR * abs(value) / largest))
        lines.append(
            f'<tr><td>{escape(str(name))}</td><td class="number">{value:+.3g}</td><td>'
            f'<div style="background:{color};width:{width}px;height:9px"></div></td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def section(explanation, i):
    """Return one row as HTML."""
    score, offset = float(explanation.scores[i]), explanation.offset
    word = "out-of-distribution" if score < offset else "in-distribution"
    facts = [f"score {score:.4g}", f"threshold {offset:.4g}", f"<b>{word}</b>"]
    if explanation.nearest_class is not None:
        facts.append(f"nearest class {escape(str(explanation.nearest_class[i]))}")
    html = [f'<div class="skood-explained"><b>Row {i}</b> · {" · ".join(facts)}<br/>']
    row = None if explanation.rows is None else explanation.rows[i]
    if is_image(row):
        html.append(figure(picture(row), "row"))
        if explanation.gradient is not None:
            html.append(figure(heat(explanation.gradient[i]), "gradient"))
    if explanation.distances is not None:
        n = min(MAX_NEIGHBORS, explanation.distances.shape[1])
        captions = [f"{distance:.3g}" for distance in explanation.distances[i, :n]]
        if explanation.neighbors is not None:
            captions = [
                f"row {at}: {text}" if at >= 0 else text
                for at, text in zip(explanation.neighbors[i], captions, strict=False)
            ]
        near = None if explanation.neighbor_rows is None else explanation.neighbor_rows[i]
        if near is not None and is_image(near[0]):
            pairs = zip(near, captions, strict=False)
            html.extend(figure(picture(image), caption) for image, caption in pairs)
        else:
            html.append(f"<div>distances to training rows: {', '.join(captions)}</div>")
    if explanation.contributions is not None:
        html.append(bars(explanation.top(i, MAX_PARTS)))
        n_more = explanation.contributions.shape[1] - MAX_PARTS
        base = float(explanation.base[i])
        rest = f"and {n_more} more" if n_more > 0 else ""
        rest += f"{' · ' if rest else ''}base {base:.3g}" if base else ""
        html.append(f"<div>{rest}</div>" if rest else "")
    elif explanation.gradient is not None and not is_image(row):
        flat = explanation.gradient[i].ravel()
        largest = np.argsort(-np.abs(flat), kind="stable")[:MAX_PARTS]
        html.append("<div>gradient</div>" + bars([(int(j), float(flat[j])) for j in largest]))
    return "".join(html) + "</div>"


def page(explanation):
    """Return an explanation as HTML, of the first rows."""
    shown = range(min(MAX_ROWS, len(explanation)))
    more = len(explanation) - len(shown)
    html = STYLE + "".join(section(explanation, i) for i in shown)
    return html + (f"<div>and {more} more rows</div>" if more else "")
