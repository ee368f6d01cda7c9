"""Labels of a few images carried over to all the others of their category.

coco: what is annotated and what is not ─> cut: objects by their boxes ─> carry: every source's answer ─> vote
─> labels: COCO again. folder: a whole folder so.
"""

__all__ = ["main"]


def main() -> None:
    """The command."""
    from semcorr.cli.hydra_app import report_user_errors, run_app

    with report_user_errors("evaluate"):  # imports take seconds
        from semcorr.transfer.command import app

        run_app(app, prog_name="semcorr transfer")
