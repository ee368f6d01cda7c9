"""The packages that only some choices need, and the extras of semcorr that install them."""

from importlib.util import find_spec

from semcorr.core.errors import UserError


def require_extra(purpose: str, extra: str, *packages: str) -> None:
    """Refuse, before any work, what needs a package that is not installed.

    A folder of that name where the command was typed, as W&B leaves one, is not a package.

    Args:
        purpose: What the user chose, as `logger=wandb`.
        extra: The extra of semcorr that installs the packages.
        packages: The names they are imported by.

    Raises:
        UserError: A package is missing; the message names the extra.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{purpose} needs {' and '.join(missing)}, which {verb} not installed: pip install 'semcorr[{extra}]'"
        )


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported, without importing it.

    >>> is_installed("torch"), is_installed("no_such_package")
    (True, False)
    """
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a plain folder has no file of its own
