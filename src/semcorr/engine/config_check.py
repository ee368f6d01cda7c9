"""What may stand in a run's config.yaml: the sections of a run, calls of what is known, and plain values."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from semcorr.core.errors import UserError
from semcorr.core.plain_yaml import Place, PlainDocument
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.known_targets import CONTROLS, KnownGroup, KnownTargets, call_controls

CALLED = ("data", "backbone", "head", "localise", "finetune", "trainer", "logger")  # sections that every run has had
NEEDED = (*CALLED, "seed", "provenance")
TRAINING = ("loss", "optimizer", "scheduler")  # all three of a training run, none of another
LATER = ("test", "augment", "pairs", "protocol", "pose", "store")  # that a run of before has not
GROUPS = {"test": "data"}  # of sections that are not called like their group
SEVERAL = ("logger", "callbacks")  # that hold any number of calls, by names
UNUSED = ("logger",)  # never built from a saved configuration: its options are free
SEEDS = 2**32
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # one that no backslash escapes
WORD = re.compile(r"[\w.:-]{1,64}")

TEXT, NUMBER, NOTHING = (str,), (int, float), (type(None),)
KINDS: Mapping[Place, tuple[tuple[type, ...], str]] = {  # of what is read without a constructor that would look at it
    ("seed",): ((int,), "a whole number"),
    ("name",): (TEXT, "text"),
    ("run_dir",): (TEXT, "text"),
    ("data_root",): (TEXT, "text"),
    ("checkpoint",): (TEXT + NOTHING, "text or null"),
    ("compile",): (TEXT + NOTHING, "text or null"),
    ("kap",): ((bool,), "true or false"),
    ("feature_dropout",): (NUMBER, "a number"),
    ("provenance",): ((dict,), "a section"),
    ("provenance", "backbone"): (TEXT, "text"),
    ("provenance", "weights_sha256"): (TEXT + NOTHING, "text or null"),
    ("data", "resize"): (TEXT, "text"),
    ("data", "root"): (TEXT, "text"),
    ("test", "resize"): (TEXT, "text"),
    ("test", "root"): (TEXT, "text"),
    ("backbone", "size"): ((int, *NOTHING), "a whole number or null"),
    ("store", "root"): (TEXT + NOTHING, "text or null"),
    ("trainer", "precision"): ((str, int, *NOTHING), "text or null"),
}
ALWAYS = {("data", "resize"), ("provenance", "backbone"), ("provenance", "weights_sha256")}


def check_config(path: Path, plain: PlainDocument, known: KnownTargets, replaced: frozenset[str] = frozenset()) -> None:
    """Refuse a saved configuration in which anything stands that semcorr would not have written.

    Args:
        path: Its file, for errors.
        plain: What the file holds.
        known: What may be called, with which options.
        replaced: Dotted keys whose values will not be used; they may be anything.

    Raises:
        UserError: It names the file, the line, the key and what is wrong with it.
    """
    values = plain.values
    if not isinstance(values, dict) or (absent := [key for key in NEEDED if key not in values]):
        lacks = f"no `{'`, `'.join(absent)}`" if isinstance(values, dict) else "it holds no sections"
        raise UserError(f"{path} is not of semcorr: {lacks}. Give the run_dir of a run.")
    training = [key for key in TRAINING if key in values]
    if training and len(training) < len(TRAINING):
        absent = [key for key in TRAINING if key not in values]
        raise UserError(f"{path} has `{training[0]}` and no `{'`, `'.join(absent)}`. Give the run_dir of a run.")
    checked = _Checked(path, plain.lines, known, replaced)
    checked.text((), values)
    checked.kinds(values)
    for name, node in values.items():
        if name == "callbacks" and name in replaced and isinstance(node, dict):
            continue
        if name in SEVERAL:
            checked.several(name, node)
        elif name in (*CALLED, *TRAINING, *LATER):
            checked.section(name, node)
        else:
            checked.uncalled((name,), node)


class _Checked:
    """Parts of a document, each refused by its place."""

    def __init__(self, path: Path, lines: Mapping[Place, int], known: KnownTargets, replaced: frozenset[str]) -> None:
        self.path, self.lines, self.known, self.replaced = path, lines, known, replaced

    def text(self, at: Place, value: object) -> None:
        """Nothing is looked up elsewhere, and nothing is left open."""
        if isinstance(value, str) and INTERPOLATION.search(value):
            raise self.refused(at, "is an interpolation, and a saved configuration has none")
        if value == "???":
            raise self.refused(at, "has no value")
        for key, each in _parts(value):
            if isinstance(key, str) and "${" in key:
                raise self.refused((*at, key), "is an interpolation, and a saved configuration has none")
            self.text((*at, key), each)

    def kinds(self, values: JsonMapping) -> None:
        """What is no section's own business."""
        for at, (kinds, said) in KINDS.items():
            section = values if len(at) == 1 else values.get(str(at[0]))
            if not isinstance(section, dict):
                continue
            if at[-1] not in section and at in ALWAYS:
                raise self.refused((at[0],), f"has no `{at[-1]}`")
            value = section.get(at[-1])
            if at[-1] in section and not _is_of(value, kinds):
                raise self.refused(at, f"must be {said}, got {_shown(value)}")
        if not 0 <= values["seed"] < SEEDS:
            raise self.refused(("seed",), f"must be from 0 to {SEEDS - 1}, got {values['seed']}")

    def section(self, name: str, node: object) -> None:
        """A section is a call."""
        if not isinstance(node, dict) or "_target_" not in node:
            raise self.refused((name,), "must be a section with a `_target_`")
        self.call((name,), node, self.known.group(GROUPS.get(name, name)) or KnownGroup())

    def several(self, name: str, node: object) -> None:
        """Calls by their names; the section of the loggers may be one itself."""
        if not isinstance(node, dict):
            raise self.refused((name,), "must be a section")
        known = self.known.group(name) or KnownGroup()
        inner = {key: each for key, each in node.items() if isinstance(each, dict) and "_target_" in each}
        if name in CALLED and ("_target_" in node or not inner):
            self.section(name, {key: each for key, each in node.items() if key not in inner})
        elif odd := next((key for key in node if key not in inner), None):
            raise self.refused((name, odd), "must be a section with a `_target_`")
        for key, each in inner.items():
            self.call((name, key), each, known)

    def call(self, at: Place, node: JsonObject, known: KnownGroup) -> None:
        """A node that Hydra makes a call of."""
        group, target = GROUPS.get(str(at[0]), at[0]), node["_target_"]
        own = _dotted((*at, "_target_")) in self.replaced
        if not own and not (isinstance(target, str) and target in known.targets):
            raise self.refused(
                (*at, "_target_"),
                f"is {_shown(target)}, which no installed file of the group {group} calls, and it is not called. If it "
                "is your own, type it on the command line",
            )
        usual = {frozenset(), frozenset({("_partial_", "True")})} if own else known.targets[target]
        if call_controls(node) not in usual:
            odd = next((key for key in CONTROLS[1:] if key in node), None)
            raise self.refused((*at, odd) if odd else at, "is not called as in the installed files")
        for key, value in node.items():
            if key not in CONTROLS:
                self.option((*at, key), key, value, known)

    def option(self, at: Place, key: str, value: object, known: KnownGroup) -> None:
        """An argument of a call, or a part of one."""
        replaced = _dotted(at) in self.replaced
        if isinstance(value, dict):
            if "_target_" in value and tuple("*" if isinstance(each, int) else each for each in at[1:]) in known.nested:
                return self.call(at, value, known)
            self.bare(at, value)
            if key not in known.mappings and at[0] not in UNUSED:
                raise self.refused(at, "is a mapping where none is expected")
        elif replaced:
            return None
        if isinstance(value, str) and not (key in known.options or at[0] in UNUSED or self.is_word(key, value, known)):
            raise self.refused(
                at, "is text for an option that no installed file names; if it is your own, type it on the command line"
            )
        for name, each in _parts(value):
            self.option((*at, name), key, each, known)
        return None

    def uncalled(self, at: Place, value: object) -> None:
        """What is not handed to any constructor."""
        if isinstance(value, dict):
            self.bare(at, value)
        for name, each in _parts(value):
            self.uncalled((*at, name), each)

    def bare(self, at: Place, node: JsonObject) -> None:
        """A mapping that is no call."""
        if odd := next((key for key in CONTROLS if key in node), None):
            raise self.refused((*at, odd), "stands where nothing is called")

    @staticmethod
    def is_word(key: str, value: str, known: KnownGroup) -> bool:
        """Tell whether an option that no file names may have this text."""
        return key in known.words and WORD.fullmatch(value) is not None

    def refused(self, at: Place, reason: str) -> UserError:
        """The error."""
        where = f", line {self.lines[at]}" if at in self.lines else ""
        return UserError(
            f"{self.path}{where}: `{_shown(_dotted(at))[1:-1]}` {reason}. Give a file as semcorr wrote it."
        )


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    """As isinstance, for which true is a number."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _parts(value: object) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _dotted(at: Place) -> str:
    return ".".join(map(str, at))


def _shown(value: object) -> str:
    """A value of the file, short and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
