"""Where the repository is, and the options of the tiny drawn benchmark."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DRAWING = {"train": 3, "val": 2, "test": 3, "pixels": 96}
SMALL = [f"data.{key}={value}" for key, value in DRAWING.items()]
