"""Parts of users' own packages: trees of configuration files that installed distributions announce.

A distribution with an entry point of the group `semcorr.conf`, whose value names the folder of its files as a package,
adds its backbones, heads, losses, benchmarks and experiments wherever a name is taken. No code of it is run until one
of them is built.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from hydra.core.object_type import ObjectType

from semcorr.core.errors import UserError
from semcorr.engine.known_targets import conf_dir, config_search_path, read_known_targets

GROUP = "semcorr.conf"


class ConfigTree(NamedTuple):
    """A folder of configuration files, and the distribution that it comes from."""

    distribution: str
    folder: Path


def list_config_trees() -> list[ConfigTree]:
    """List the configuration trees of installed packages, in the order of their distributions' names.

    Raises:
        UserError: A tree does not exist, or two trees have a file of the same name.
    """
    points = {
        (_distribution_name(point), point.value): point for point in entry_points(group=GROUP)
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


def _distribution_name(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.name


def _find_folder(point: EntryPoint) -> Path:
    """Return the folder of an entry point's tree, without importing the package that it is in."""
    package, *parts = point.value.split(".")
    entry = f'the installed package {_distribution_name(point)} (entry point {GROUP}: {point.name} = "{point.value}")'
    remedy = f"Correct the entry point and install it again, or pip uninstall {_distribution_name(point)}."
    spec = find_spec(package) if package else None
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        folder = Path(location, *parts)
        if folder.is_dir():
            return folder
    raise UserError(f"{entry} has no such folder. {remedy}")


def _refuse_collisions(trees: Iterable[ConfigTree]) -> None:
    """Refuse a file that has the name of another tree's: Hydra would read one and ignore the other."""
    owners: dict[Path, ConfigTree] = {}
    own = ConfigTree("semcorr", conf_dir())
    for tree in (own, *trees):
        for name in _iterate_files(tree.folder):
            if name in owners:
                raise UserError(
                    f"{tree.folder / name} of the installed package {tree.distribution} has the name of a file of "
                    f"{owners[name].distribution}. Rename it, or pip uninstall {tree.distribution}."
                )
            owners[name] = tree


def _iterate_files(folder: Path) -> Iterator[Path]:
    """Yield the paths of the configuration files of a tree, relative to it."""
    return (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
