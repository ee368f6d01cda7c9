"""Inference: matching a user's own pictures with the same parts that benchmarks are scored by.

encoded: a picture's features ─> matcher: points, maps and flows ─> dense: between cells ─> matches: results
"""

from semcorr.inference.matcher import Matcher

__all__ = ["Matcher"]
