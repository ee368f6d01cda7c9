"""The import of Lightning without what it imports and a run does not use."""

from semcorr.core.late_imports import postpone_compiler, postpone_metrics


def import_lightning() -> None:
    """Import Lightning, in a third of the time; our commands do so before anything else imports it."""
    postpone_metrics()
    with postpone_compiler():
        import lightning  # noqa: F401
