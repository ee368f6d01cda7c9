"""Anyone's pictures, matched by the parts that benchmarks are scored by.

encoded: a picture's features ─> matcher: points, maps and flows ─> subcell, flow: between cells ─> found: the answers
"""

from semcorr.inference.matcher import Matcher

__all__ = ["Matcher"]
