"""Targets that the installed configuration files call, by group: all that a saved configuration may call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import ConfigDefault
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from semcorr.core.text_files import JsonMapping, JsonObject

CONTROLS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_", "_mode_")  # keys of a call that Hydra reads
MULTIPLE_CALLS = ("logger", "callbacks")  # sections that hold any number of calls, by names that the user chooses
# Sections whose function is called later, with arguments that no configuration has.
LATER_CALLS = ("loss", "localise", "finetune", "optimizer", "scheduler")
REMOVABLE = ("loss", "head")  # sections whose options an experiment may give, and another choice may lack
# Calls that no file makes: those that the program itself puts into a configuration, for the short names of readouts,
# and those of earlier files, which are in the configurations of runs.
BUILTIN_CALLS: Mapping[str, JsonObject] = {
    "localise": {"_target_": "semcorr.matching.readouts.parse_readout", "name": "window_15"},
    "loss": {"_target_": "semcorr.models.losses.gaussian_cross_entropy", "_partial_": True},
}
# Options that no file names and that take a word. All other options that no file names may be a number or a switch: a
# word could be a path or a module to load, as for timm's `checkpoint_path` and peft's `megatron_core`.
WORDS = {
    "backbone": {"facet", "model_type"},
    "localise": {"outside"},
    "protocol": {"points", "scaling", "lookup", "normalise", "comparison", "decode", "frame", "alphas", "pooling"},
    "trainer": {"gradient_clip_algorithm", "max_time"},
    "finetune": {
        "bias",
        "init_weights",
        "variant",
        "decomposition_method",
        "config_A_B",
        "config_C",
        "config_D_E",
        "mask_type",
        "act_fn",
        "wavelet_family",
    },
}


@dataclass(frozen=True)
class KnownGroup:
    """Targets and options in the files of a group.

    Attributes:
        targets: Targets that are called, each with the combinations of Hydra's controls that it is called with.
        options: Names of arguments.
        mappings: Names of arguments whose value is a mapping.
        nested: Positions of calls inside a call: keys, and * for a position in a list.
        words: Further options that take a word.
    """

    targets: dict[str, set[frozenset[tuple[str, str]]]] = field(default_factory=dict)
    options: set[str] = field(default_factory=set)
    mappings: set[str] = field(default_factory=set)
    nested: set[tuple[str, ...]] = field(default_factory=set)
    words: set[str] = field(default_factory=set)

    def add(self, node: JsonMapping, path: tuple[str, ...] = ()) -> None:
        """Add a node of a file, and those inside it."""
        if "_target_" in node:
            self.targets.setdefault(str(node["_target_"]), set()).add(call_controls(node))
        for key, value in node.items():
            if key not in CONTROLS:
                self.options.add(key)
                self._add_value(key, value, (*path, key))

    def _add_value(self, key: str, value: object, path: tuple[str, ...]) -> None:
        if isinstance(value, list):
            for item in value:
                self._add_value(key, item, (*path, "*"))
        elif isinstance(value, dict) and "_target_" in value:
            self.nested.add(path)
            self.add(value, path)
        elif isinstance(value, dict):
            self.mappings.add(key)
            for name, item in value.items():
                self._add_value(key, item, (*path, str(name)))


def call_controls(node: JsonMapping) -> frozenset[tuple[str, str]]:
    """Return Hydra's controls of a call but for its target, with their values.

    >>> sorted(call_controls({"_target_": "f", "_partial_": True, "rank": 8}))
    [('_partial_', 'True')]
    """
    return frozenset((key, repr(node[key])) for key in CONTROLS[1:] if key in node)


class KnownTargets:
    """Known targets of the trees on a search path; each group is read when it is first needed.

    Args:
        search: Addresses of trees in Hydra's form: a folder, `file://...`, `pkg://...`.
    """

    def __init__(self, search: Sequence[str]) -> None:
        path = ConfigSearchPathImpl()
        for address in search:
            path.append("semcorr", address)
        self.repository, self.groups = ConfigRepository(path), dict[str, KnownGroup]()
        self._choices: dict[str, dict[str, JsonObject]] = {}

    def group(self, name: str) -> KnownGroup | None:
        """Return the known targets of a group; None if there is no such group."""
        if not self.repository.group_exists(name):
            return None
        if name not in self.groups:
            known = self.groups[name] = KnownGroup(words=set(WORDS.get(name, ())))
            for node in (
                *self._read_files(name),
                *(experiment[name] for experiment in self._experiments if name in experiment),
            ):
                if isinstance(node, dict):
                    known.add(node)
            if name in BUILTIN_CALLS:
                known.add(BUILTIN_CALLS[name])
            if name == "backbone":
                known.options.add("debias")
                for node in self._read_files("upsample"):
                    known.add({"upsample": node})
        return self.groups[name]

    @cached_property
    def _experiments(self) -> list[JsonObject]:
        return list(self._read_files("experiment"))

    def choices(self, group: str) -> dict[str, JsonObject]:
        """Return the content of each file of a group, with those of the same group that it extends.

        Interpolations stay as they are.

        Args:
            group: Name of the group, such as `backbone`.
        """
        if group not in self._choices:
            names = sorted({*self.repository.get_group_options(group, ObjectType.CONFIG)})
            self._choices[group] = {name: self._read_choice(group, name) for name in names}
        return self._choices[group]

    def _read_choice(self, group: str, name: str) -> JsonObject:
        """Read a file of a group with those of the same group that it extends."""
        loaded = self.repository.load_config(f"{group}/{name}")
        assert loaded is not None, "the repository has listed it"
        content: object = OmegaConf.to_container(loaded.config)
        options: JsonObject = {}
        for default in loaded.defaults_list or ():
            if not default.is_self() and isinstance(default, ConfigDefault):
                options |= self._read_choice(group, str(default.path))
        return options | (content if isinstance(content, dict) else {})

    def _read_files(self, group: str) -> Iterator[JsonObject]:
        """Yield the content of all files of a group, and of the groups inside it."""
        for name in self.repository.get_group_options(group, ObjectType.CONFIG):
            loaded = self.repository.load_config(f"{group}/{name}")
            if loaded is not None and isinstance(loaded.config, DictConfig):
                content: object = OmegaConf.to_container(loaded.config)
                assert isinstance(content, dict)
                yield content
        for name in self.repository.get_group_options(group, ObjectType.GROUP):
            yield from self._read_files(f"{group}/{name}")


@cache
def read_known_targets(search: tuple[str, ...]) -> KnownTargets:
    """Return the known targets of a search path; its files are read once in a process."""
    return KnownTargets(search)


def config_search_path(tree: str, sources: Sequence[Mapping[str, str]] | None = None) -> tuple[str, ...]:
    """Return the addresses of the trees that a command composes from.

    Args:
        tree: Address of semcorr's own tree.
        sources: Sources of the running Hydra command, as listed by `hydra.runtime.config_sources`, which include those
            added by `--config-dir` and `hydra.searchpath`; None for semcorr's own and those of installed plug-ins.
    """
    if sources is None:
        addresses = [element.path for element in create_config_search_path(tree).get_path() if element.path]
    else:
        addresses = [f"{source['schema']}://{source['path']}" for source in sources if source["path"]]
    return tuple(address for address in addresses if not address.startswith(("structured:", "pkg://hydra.conf")))


def conf_dir() -> Path:
    """Return the folder of the configuration tree: package data in a wheel, `conf/` in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"
