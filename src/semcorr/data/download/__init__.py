"""Installation of a benchmark: from an archive on the web to a checked folder."""
