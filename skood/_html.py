"""The HTML by which results show themselves, in notebooks and reports."""

import base64
import math
import struct
import zlib
from html import escape

import numpy as np

# Of an image, in pixels.
SIZE = 72
# Fixed colours in a frame of their own: a notebook's theme may be dark while the browser's is not.
STYLE = """
<style>
.skood { --text: #1f2328; --quiet: #57606a; --back: #fff; --line: #d0d7de; --shade: #eaeef2;
  --red: #cf222e; --blue: #0969da; --alarm: #ffebe9; --calm: #dafbe1; --green: #116329;
  font: 13px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back);
  border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px; margin-bottom: 6px;
  max-width: 760px; box-sizing: border-box; }
@media (prefers-color-scheme: dark) {
  .skood { --text: #e6edf3; --quiet: #9198a1; --back: #0d1117; --line: #3d444d; --shade: #262c36;
    --red: #f85149; --blue: #4493f8; --alarm: #4a1d1d; --calm: #12351f; --green: #56d364; } }
.skood b { white-space: nowrap; }
.skood .wide { overflow-x: auto; }
.skood table { border-collapse: collapse; margin: 4px 0; font: inherit; }
.skood th, .skood td { padding: 1px 12px 1px 0; font-weight: 400; text-align: right;
  color: var(--text); background: var(--back); white-space: nowrap; }
.skood th { color: var(--quiet); white-space: normal; vertical-align: bottom; }
.skood th:first-child, .skood td:first-child, .skood .text td { text-align: left; }
.skood .text td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.skood .text td:first-child { white-space: nowrap; color: var(--quiet); }
.skood figure { display: inline-block; margin: 4px 8px 0 0; font-size: 11px;
  color: var(--quiet); text-align: center; vertical-align: top; }
.skood img { display: block; margin: auto; image-rendering: pixelated; }
.skood .quiet { color: var(--quiet); }
.skood svg { display: block; max-width: 100%; height: auto; fill: currentColor; }
</style>
"""


class Markup(str):
    """Text that is HTML already, in which nothing is to be escaped."""


def as_html(value):
    """Return any value as HTML."""
    return value if isinstance(value, Markup) else escape(str(value))


def number(value):
    """Write a number with three digits."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def percent(value):
    """Write a share."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def card(*parts):
    """Return pieces of HTML in a frame."""
    return f'<div class="skood">{"".join(parts)}</div>'


def table(rows, header=(), kind=""):
    """Return a table; its first column, and all where `kind` is "text", stand to the left."""
    head = "".join(f"<th>{as_html(name)}</th>" for name in header)
    lines = ["".join(f"<td>{as_html(cell)}</td>" for cell in row) for row in rows]
    lines = [f"<tr>{line}</tr>" for line in ([head] if header else []) + lines]
    return Markup(f'<div class="wide {kind}"><table>{"".join(lines)}</table></div>')


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


def figure(pixels, caption):
    """Return an image with a line below it."""
    height = round(SIZE * pixels.shape[0] / pixels.shape[1])
    return Markup(
        f'<figure><img src="{png(pixels)}" width="{SIZE}" height="{height}" '
        f'alt="{escape(caption)}"/>{escape(caption)}</figure>'
    )
