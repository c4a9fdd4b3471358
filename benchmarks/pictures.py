"""The pictures of README and docs, from the sample models: `python benchmarks/pictures.py [NAME…]`.

Each is a `curv` command whose report goes to `curv plot`; both lines are printed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {
    "spectrum": ("spectrum sample_models/digits_mlp.ckpt", ""),
    "run": ("spectrum sample_models/digits_run --all-steps", "--learning-rate 0.4"),
    "landscape": (
        "landscape sample_models/digits_mlp.ckpt --along eigenvector:1 --along filter-normalized --points 41", ""
    ),
    "influence": ("influence sample_models/digits_mlp.ckpt --label-perturb --queries 5:7 --scores {folder}/scores.npz "
                  "--num-examples 300", "--image-shape 8x8"),
    "compare": ("compare sample_models/digits_mlp.ckpt --num-examples 300", ""),
}  # fmt: skip


def main() -> None:
    """Draw those that are named, or all."""
    (ROOT / "docs/pictures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or PICTURES:
            asked, drawn = (line.format(folder=folder) for line in PICTURES[name])
            run(f"curv {asked} -q -o {folder}/{name}.json")
            run(f"curv plot {folder}/{name}.json {drawn} --dpi 75 -o docs/pictures/{name}.png")


def run(line: str) -> None:
    """A line of curv's, by this Python."""
    print(line, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "curvcli", *shlex.split(line)[1:]], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
