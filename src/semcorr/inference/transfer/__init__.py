"""Label transfer: keypoints of a folder of images from a few annotated ones."""
