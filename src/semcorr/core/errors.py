"""The error for users: what was given, what is allowed, what to do.

The entry points print its text without a traceback and exit with code 2. Everything else that
is raised is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input: a missing file, an annotation that does not add up, weights that do not fit."""
