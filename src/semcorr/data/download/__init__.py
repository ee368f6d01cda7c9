"""From an archive on the web to a checked benchmark on this disk."""
