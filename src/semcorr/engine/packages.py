"""Parts of users' own packages: trees of configuration files that installed distributions announce.

A distribution with an entry point of the group `semcorr.conf`, whose value names the folder of its files as a package,
adds its backbones, heads, losses, benchmarks and experiments wherever a name is taken. No code of it is run until one
of them is built.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from hydra.core.object_type import ObjectType

from semcorr.core.errors import UserError
from semcorr.engine.known_targets import conf_dir, config_search_path, read_known_targets

GROUP = "semcorr.conf"


class ConfigTree(NamedTuple):
    """A folder of configuration files, the distribution or option that it comes from, and its address on a line."""

    distribution: str
    folder: Path
    address: str = ""


def list_config_trees() -> list[ConfigTree]:
    """List the configuration trees of installed packages, in the order of their distributions' names.

    Raises:
        UserError: A tree does not exist, or two trees have a file of the same name.
    """
    points = {
        (_distribution_name(point), point.value): point for point in _read_entry_points(tuple(sys.path))
    }  # may list it twice
    trees = [ConfigTree(name, _find_folder(points[name, value])) for name, value in sorted(points)]
    if trees:
        _refuse_collisions(trees)
    return trees


def list_choices(group: str) -> list[str]:
    """List the names that a group of the configuration has, in semcorr and in installed packages.

    Args:
        group: Name of the group, such as `backbone`.
    """
    repository = read_known_targets(config_search_path(str(conf_dir()))).repository
    return sorted({*repository.get_group_options(group, ObjectType.CONFIG)})


def find_tree(address: str) -> Path | None:
    """Return the folder of a tree by its address, without importing the package that it is in; None if it is absent.

    Args:
        address: Address in Hydra's form: a folder, `file://...` or `pkg://...`.
    """
    scheme, _, path = address.rpartition("://")
    if scheme == "pkg":
        return _find_package_folder(path.replace("/", ".").strip("."))
    folder = Path(path)
    return folder if path and scheme in ("", "file") and folder.is_dir() else None


def check_line_trees(addresses: Sequence[str], option: str) -> None:
    """Refuse trees of a line that do not exist, hold no group, or have a file that another tree has.

    Args:
        addresses: Addresses in Hydra's form: a folder, `file://...` or `pkg://...`.
        option: Option that names them, such as `hydra.searchpath`.

    Raises:
        UserError: A tree is refused; the message says what it lacks.
    """
    groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
    trees = []
    for address in addresses:
        folder = find_tree(address)
        if folder is None:
            if address.startswith("pkg://"):
                reason = "is in no package that Python finds. Install the package, or put its folder on PYTHONPATH."
            else:
                reason = "is not a folder. Give one that exists, as file:///my/conf or pkg://my_package.conf."
            raise UserError(f"`{option}`: {address} {reason}")
        if not any((folder / group).is_dir() for group in groups):
            inner = sorted(path.parent for group in groups for path in folder.glob(f"*/{group}") if path.is_dir())
            separator = "." if address.startswith("pkg://") else "/"
            hint = f"Give the folder that holds them: {', '.join(groups)}."
            if inner:
                hint = f"Did you mean {address.rstrip('/.')}{separator}{inner[0].name}?"
            raise UserError(f"`{option}`: {address} has no folder of a group, as backbone. {hint}")
        if address.startswith("pkg://") and not (folder / "__init__.py").is_file():
            raise UserError(f"`{option}`: {address} has no __init__.py. Add one to {folder}, or give file://{folder}")
        trees.append(ConfigTree(f"`{option}`", folder, address))
    if trees:
        _refuse_collisions([*list_config_trees(), *trees])


@cache
def _read_entry_points(_: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of trees; a process reads what is installed on its `sys.path` once: it takes 10 ms."""
    return tuple(entry_points(group=GROUP))


def _distribution_name(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.name


def _find_folder(point: EntryPoint) -> Path:
    """Return the folder of an entry point's tree, without importing the package that it is in."""
    entry = f'the installed package {_distribution_name(point)} (entry point {GROUP}: {point.name} = "{point.value}")'
    remedy = f"Correct the entry point and install it again, or pip uninstall {_distribution_name(point)}."
    folder = _find_package_folder(point.value)
    if folder is None:
        raise UserError(f"{entry} has no such folder. {remedy}")
    return folder


def _find_package_folder(name: str) -> Path | None:
    """Return the folder of a package by its dotted name, without importing it; None if there is none."""
    package, *parts = name.split(".")
    try:
        spec = find_spec(package) if package else None
    except ValueError:  # of a module that is not a package, as __main__
        spec = None
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        folder = Path(location, *parts)
        if folder.is_dir():
            return folder
    return None


def _refuse_collisions(trees: Iterable[ConfigTree]) -> None:
    """Refuse a file that has the name of another tree's: Hydra would read one and ignore the other."""
    owners: dict[Path, ConfigTree] = {}
    folders = set[Path]()
    for tree in (ConfigTree("semcorr", conf_dir()), *trees):
        if tree.folder.resolve() in folders:  # named twice
            continue
        folders.add(tree.folder.resolve())
        for name in _iterate_files(tree.folder):
            if name in owners:
                origin = tree.distribution if tree.address else f"the installed package {tree.distribution}"
                remedy = f"leave {tree.address} out" if tree.address else f"pip uninstall {tree.distribution}"
                raise UserError(
                    f"{tree.folder / name} of {origin} has the name of a file of {owners[name].distribution}. "
                    f"Rename it, or {remedy}."
                )
            owners[name] = tree


def _iterate_files(folder: Path) -> Iterator[Path]:
    """Yield the paths of the configuration files of a tree, relative to it."""
    return (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
