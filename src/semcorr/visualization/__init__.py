"""Visualization of predictions."""
