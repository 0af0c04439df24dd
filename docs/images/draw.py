"""Draw the pictures of the guide, each in the example that it comes from, into this folder."""

import runpy
from pathlib import Path

from PIL import Image

PICTURES = {"comparison": "comparing_detectors", "score_map": "score_maps"}

if __name__ == "__main__":
    folder = Path(__file__).parent
    for picture, example in PICTURES.items():
        made = runpy.run_path(str(folder.parents[1] / "examples" / f"{example}.py"))
        path = folder / f"{picture}.png"
        made[picture].figure_.savefig(path, dpi=120)
        # 256 colours are enough, and a third of the bytes.
        Image.open(path).convert("RGB").quantize().save(path, optimize=True)
