"""Heads: from two feature maps and query points to similarity."""
