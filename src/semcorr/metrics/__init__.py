"""Metrics: from predicted keypoints, dense matches, masks and tracks to scores."""
