"""Keypoints to numbers."""
