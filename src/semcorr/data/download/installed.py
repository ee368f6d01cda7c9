"""A benchmark's folder: whether it is complete, how extracted parts become it, and the notes in it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from semcorr.core.errors import UserError
from semcorr.core.files import write_text
from semcorr.core.text_files import JsonMapping, JsonObject, read_mapping
from semcorr.data.download.recipe import DownloadRecipe

PREPARED, VERIFIED = "prepared.json", "verify.json"


@runtime_checkable
class TreeReport(Protocol):
    """The result of checking a complete tree; `semcorr.data.download.verify` makes it."""

    @property
    def failed(self) -> bool: ...  # noqa: D102

    def table(self) -> object: ...  # noqa: D102

    def as_json(self) -> JsonObject: ...  # noqa: D102


Check = Callable[[Path], TreeReport]  # raises a UserError if the tree cannot be read


def is_complete(name: str, recipe: DownloadRecipe, root: Path, check: Check) -> bool:
    """Return whether `root` is the benchmark (True) or free (False); anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        if root.is_mount():
            raise UserError(f"{root} is a mount point, which cannot be replaced. Give a folder in it with --root DIR")
        return False
    remedy = "Move it away, or choose another place with --root DIR"
    if not (root / recipe.landmark).exists():
        raise UserError(f"{root} is not empty and is not a whole {name} tree: no {recipe.landmark}. {remedy}")
    if (root / PREPARED).is_file():
        return True
    try:
        failed = _check_counts(recipe, root, check).failed
    except UserError as error:
        raise UserError(f"{root} is not a whole {name} tree: {error} {remedy}") from None
    if failed:
        raise UserError(f"{root} does not have {name}'s official counts; --verify shows them. {remedy}")
    return True


def _check_counts(recipe: DownloadRecipe, root: Path, check: Check) -> TreeReport:
    """Check a tree unpacked by hand, which may lack only what we add to the official files."""
    try:
        return check(root)
    except UserError:
        if recipe.convert is None:
            raise
        recipe.convert(root)
        return check(root)


def has_official_counts(root: Path) -> bool:
    """Return whether a complete tree has the official counts; one prepared by hand has just been checked."""
    noted = root / PREPARED
    return not noted.is_file() or bool(read_mapping(noted, "Prepare it again.").get("official_counts"))


def find_dataset_folder(name: str, recipe: DownloadRecipe, staging: Path) -> Path:
    """Find the shallowest folder with the marker file; move what was unpacked beside or above into it."""
    folders = sorted((Path(folder) for folder, _, _ in os.walk(staging)), key=lambda path: (len(path.parts), path))
    tree = next((folder for folder in folders if (folder / recipe.landmark).exists()), None)
    if tree is None:
        files = ", ".join(archive.file for archive in recipe.archives)
        raise UserError(f"{files}: not {name}'s official archive, there is no {recipe.landmark} in it.")
    above = tree
    while above != staging:
        for path in sorted(set(above.parent.iterdir()) - {above}):
            if (tree / path.name).exists():
                raise UserError(f"{name}: {path.name} is in its archives twice. Give the official ones.")
            path.rename(tree / path.name)
        above = above.parent
    return tree


def convert_and_check(name: str, recipe: DownloadRecipe, tree: Path, root: Path, check: Check) -> TreeReport:
    """Convert and check a tree. Its present folder is temporary: messages name the final one."""
    try:
        if recipe.convert:
            recipe.convert(tree)
        return check(tree)
    except UserError as error:
        message = str(error).replace(str(tree), root.name)
        raise UserError(f"the archives do not make a whole {name} tree: {message}") from None


def write_note(path: Path, content: JsonMapping) -> None:
    """Write a JSON file for people and programs."""
    write_text(path, json.dumps(content, indent=1) + "\n")
