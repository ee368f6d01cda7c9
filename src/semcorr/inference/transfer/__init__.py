"""Label a folder of images by a few that are annotated."""
