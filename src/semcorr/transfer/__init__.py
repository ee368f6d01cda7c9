"""Labels of a few images carried over to all the others of their category.

coco: what is annotated and what is not ─> cut: objects by their boxes ─> carry: every source's answer ─> vote
─> labels: COCO again. folder: a whole folder so.
"""

__all__ = ["main"]


def main() -> None:
    """The command."""
    from semcorr.transfer.command import app

    app(prog_name="semcorr transfer")
