"""Draw the pictures of the guide, each in the example that it comes from, into this folder."""

import runpy
from pathlib import Path

PICTURES = {"comparison": "comparing_detectors", "score_map": "score_maps"}

if __name__ == "__main__":
    folder = Path(__file__).parent
    for picture, example in PICTURES.items():
        made = runpy.run_path(str(folder.parents[1] / "examples" / f"{example}.py"))
        made[picture].figure_.savefig(folder / f"{picture}.png", dpi=120)
