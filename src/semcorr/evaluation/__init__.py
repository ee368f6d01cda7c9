"""Evaluation: from a backbone with a head and the pairs of a split to scores and rows."""
