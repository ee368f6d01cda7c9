"""Files of weights: told by their bytes, read without running code, converted and loaded into networks."""
