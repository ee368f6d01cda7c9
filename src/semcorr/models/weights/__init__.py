"""Files of weights: recognised by their bytes, read without running code, converted and loaded into networks."""
