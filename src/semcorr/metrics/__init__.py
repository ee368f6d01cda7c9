"""Metrics of keypoint predictions."""
