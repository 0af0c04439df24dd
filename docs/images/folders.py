"""Draw which folder of skood imports from which: ``python -m docs.images.folders``."""

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from PIL import Image

from tests.test_house import MODULES, ORDER, imports_of, name_of


def count_imports():
    """Return how many files of a folder import from another one."""
    found = Counter()
    for path in MODULES:
        here, *_ = [*name_of(path).split(".")[1:], ""]
        there = {name.split(".")[1] for name in imports_of(path) if "." in name}
        found.update((here, folder) for folder in there & set(ORDER) - {here})
    return found


def draw():
    """Return a figure: folders in a row, an arc for each pair, as wide as files that import."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots()
    for (here, there), n_files in count_imports().items():
        if here not in ORDER:
            # A public path such as `skood.ensemble`, or the command.
            continue
        right, left = ORDER.index(here), ORDER.index(there)
        middle, height = (left + right) / 2, 0.55 * abs(right - left)
        arc = Curve([(right, 0.28), (middle, 2 * height), (left, 0.28)], [1, 3, 3])
        color = "#0072B2" if left < right else "#D55E00"
        axes.add_patch(PathPatch(arc, fill=False, color=color, alpha=0.5, lw=0.6 + 0.35 * n_files))
    for place, folder in enumerate(ORDER):
        box = {"boxstyle": "round,pad=0.35", "facecolor": "0.95", "edgecolor": "0.5"}
        axes.text(place, 0, folder, ha="center", va="center", fontsize=10, bbox=box)
    axes.set(xlim=(-0.6, len(ORDER) - 0.4), ylim=(-0.5, 6.5))
    axes.set_axis_off()
    return figure


if __name__ == "__main__":
    picture = Path(__file__).with_name("folders.png")
    draw().savefig(picture, dpi=110)
    Image.open(picture).convert("RGB").quantize().save(picture, optimize=True)
