"""Match points of one synthetic cat on another. Needs no network: pip install semcorr."""

from pathlib import Path

from semcorr import Matcher
from semcorr.data.synthetic import write_synthetic

root = write_synthetic(Path("creatures"), images={"trn": 0, "val": 0, "test": 2}, categories=["cat"])
a, b = sorted((root / "JPEGImages" / "cat").glob("*.jpg"))

matcher = Matcher.load()  # or "dinov2", "runs/my_run", "backbone=dinov3 localise.window=9"
match = matcher.match(a, b, points=[(120, 80), (150, 120)])
for (x, y), score, sure in zip(match.points.tolist(), match.scores.tolist(), match.consistent.tolist(), strict=True):
    print(f"{x:.1f} {y:.1f}   cosine {score:.2f}   {'comes back' if sure else 'does not come back'}")
