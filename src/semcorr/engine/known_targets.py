"""What the installed configuration files call, by group: all that a saved configuration may call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from semcorr.core.text_files import JsonMapping, JsonObject

CONTROLS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_", "_mode_")  # Hydra's, of a call
# Called by what the program itself puts into a configuration, for the short names of read-outs.
OWN = {"localise": {"_target_": "semcorr.matching.readout_names.parse_readout", "name": "window_15"}}
# Options that no file names and that take a word. Whatever else no file names may be a number or a switch: a word could
# be a path or a module to load, as timm's `checkpoint_path` and peft's `megatron_core` are.
WORDS = {
    "backbone": {"facet", "model_type"},
    "localise": {"outside"},
    "protocol": {"scaling", "lookup", "decode", "frame", "pooling"},
    "trainer": {"gradient_clip_algorithm", "max_time"},
    "finetune": {
        "bias", "init_weights", "variant", "decomposition_method", "config_A_B", "config_C", "config_D_E", "mask_type",
        "act_fn", "wavelet_family",
    },
}  # fmt: skip


@dataclass(frozen=True)
class KnownGroup:
    """What the files of a group hold.

    Attributes:
        targets: What is called, and with which of Hydra's controls.
        options: Names of arguments; those whose value is a mapping are also in `mappings`.
        nested: Where calls stand inside a call: keys, and * for a place in a list.
        words: Further options that take a word.
    """

    targets: dict[str, set[frozenset[tuple[str, str]]]] = field(default_factory=dict)
    options: set[str] = field(default_factory=set)
    mappings: set[str] = field(default_factory=set)
    nested: set[tuple[str, ...]] = field(default_factory=set)
    words: set[str] = field(default_factory=set)

    def add(self, node: JsonMapping, place: tuple[str, ...] = ()) -> None:
        """Take in a node of a file, and those inside it."""
        if "_target_" in node:
            self.targets.setdefault(str(node["_target_"]), set()).add(call_controls(node))
        for key, value in node.items():
            if key not in CONTROLS:
                self.options.add(key)
                self._add_value(key, value, (*place, key))

    def _add_value(self, key: str, value: object, place: tuple[str, ...]) -> None:
        if isinstance(value, list):
            for each in value:
                self._add_value(key, each, (*place, "*"))
        elif isinstance(value, dict) and "_target_" in value:
            self.nested.add(place)
            self.add(value, place)
        elif isinstance(value, dict):
            self.mappings.add(key)
            for name, each in value.items():
                self._add_value(key, each, (*place, str(name)))


def call_controls(node: JsonMapping) -> frozenset[tuple[str, str]]:
    """Hydra's controls of a call but for its target, with their values.

    >>> sorted(call_controls({"_target_": "f", "_partial_": True, "rank": 8}))
    [('_partial_', 'True')]
    """
    return frozenset((key, repr(node[key])) for key in CONTROLS[1:] if key in node)


class KnownTargets:
    """Known targets of the trees on a search path; each group is read when it is first asked for.

    Args:
        search: Addresses of trees as Hydra has them: a folder, `file://...`, `pkg://...`.
    """

    def __init__(self, search: Sequence[str]) -> None:
        path = ConfigSearchPathImpl()
        for address in search:
            path.append("semcorr", address)
        self.repository, self.groups = ConfigRepository(path), dict[str, KnownGroup]()

    def group(self, name: str) -> KnownGroup | None:
        """Return what is known of a group; None if there is no such group."""
        if not self.repository.group_exists(name):
            return None
        if name not in self.groups:
            known = self.groups[name] = KnownGroup(words=set(WORDS.get(name, ())))
            for node in (*self._files(name), *(each[name] for each in self._experiments if name in each)):
                if isinstance(node, dict):
                    known.add(node)
            if name in OWN:
                known.add(OWN[name])
        return self.groups[name]

    @cached_property
    def _experiments(self) -> list[JsonObject]:
        return list(self._files("experiment"))

    def _files(self, group: str) -> Iterator[JsonObject]:
        for name in self.repository.get_group_options(group, ObjectType.CONFIG):
            loaded = self.repository.load_config(f"{group}/{name}")
            if loaded is not None and isinstance(loaded.config, DictConfig):
                yield OmegaConf.to_container(loaded.config)  # type: ignore[misc]
        for name in self.repository.get_group_options(group, ObjectType.GROUP):
            yield from self._files(f"{group}/{name}")


@cache
def read_known_targets(search: tuple[str, ...]) -> KnownTargets:
    """Return the known targets of a search path; its files are read once in a process."""
    return KnownTargets(search)


def config_search_path(tree: str, sources: Sequence[Mapping[str, str]] | None = None) -> tuple[str, ...]:
    """Return the addresses of the trees that a command composes from.

    Args:
        tree: Of semcorr itself.
        sources: Those of the Hydra run that is on, as `hydra.runtime.config_sources` lists them: they have what
            `--config-dir` and `hydra.searchpath` added. Without a run, semcorr's own and those of installed plug-ins.
    """
    if sources is None:
        found = [each.path for each in create_config_search_path(tree).get_path() if each.path]
    else:
        found = [f"{each['schema']}://{each['path']}" for each in sources if each["path"]]
    return tuple(address for address in found if not address.startswith(("structured:", "pkg://hydra.conf")))


def conf_dir() -> Path:
    """The configuration tree: package data in a wheel, `conf/` in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"
