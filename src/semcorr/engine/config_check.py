"""Check of a run's config.yaml: it may hold the sections of a run, calls of known targets, and plain values."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.engine.known_targets import CONTROLS, MULTIPLE_CALLS, KnownGroup, KnownTargets, call_controls
from semcorr.engine.plain_yaml import Place, PlainDocument

# Sections with a call that every run has had.
CALLED_SECTIONS = ("data", "backbone", "head", "localise", "finetune", "trainer", "logger")
REQUIRED_SECTIONS = (*CALLED_SECTIONS, "seed", "provenance")
TRAINING_SECTIONS = ("loss", "optimizer", "scheduler")  # all three of a training run, none of another
# Sections that older runs lack.
OPTIONAL_SECTIONS = ("test", "augment", "pairs", "protocol", "pose", "store", "corrupt")
GROUPS = {"test": "data"}  # groups of sections that have another name than their group
UNUSED_SECTIONS = ("logger",)  # sections never built from a saved configuration: their options are free
SEEDS = 2**32
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # not escaped by a backslash
WORD = re.compile(r"[\w.:-]{1,64}")
INSTALL = "install its package (docs/adding/your_package.md)"

TEXT, NUMBER, NOTHING = (str,), (int, float), (type(None),)
KINDS: Mapping[Place, tuple[tuple[type, ...], str]] = {  # of values that no constructor checks
    ("seed",): ((int,), "a whole number"),
    ("name",): (TEXT, "text"),
    ("objective",): (TEXT, "text"),
    ("run_dir",): (TEXT, "text"),
    ("data_root",): (TEXT, "text"),
    ("checkpoint",): (TEXT + NOTHING, "text or null"),
    ("start_from",): (TEXT + NOTHING, "text or null"),
    ("compile",): (TEXT + NOTHING, "text or null"),
    ("kap",): ((bool,), "true or false"),
    ("feature_dropout",): (NUMBER, "a number"),
    ("keep_from",): (NUMBER, "a number"),
    ("monitor",): (TEXT, "text"),
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
REQUIRED_KEYS = {("data", "resize"), ("provenance", "backbone"), ("provenance", "weights_sha256")}


def check_saved_config(
    path: Path,
    document: PlainDocument,
    known: KnownTargets,
    overridden: frozenset[str] = frozenset(),
    has_line: bool = False,
) -> None:
    """Refuse a saved configuration that holds anything that semcorr would not have written.

    Args:
        path: File of the configuration, for errors.
        document: Content of the file.
        known: Targets that may be called, with their options.
        overridden: Dotted keys whose values will not be used; they may be anything.
        has_line: Whether any section can be typed on the line of this command, as for train and evaluate.

    Raises:
        UserError: A value is refused; the message names the file, the line, the key and the problem.
    """
    values = document.values
    if not isinstance(values, dict) or (missing := [key for key in REQUIRED_SECTIONS if key not in values]):
        lacks = f"no `{'`, `'.join(missing)}`" if isinstance(values, dict) else "it holds no sections"
        raise UserError(f"{path} is not of semcorr: {lacks}. Give the run_dir of a run.")
    training = [key for key in TRAINING_SECTIONS if key in values]
    if training and len(training) < len(TRAINING_SECTIONS):
        missing = [key for key in TRAINING_SECTIONS if key not in values]
        raise UserError(f"{path} has `{training[0]}` and no `{'`, `'.join(missing)}`. Give the run_dir of a run.")
    checker = _ConfigChecker(path, document.lines, known, overridden)
    checker.remedy += " or type it on the command line" if has_line else ""
    checker.check_text((), values)
    checker.check_bare((), values)
    checker.check_kinds(values)
    for name, node in values.items():
        if name == "callbacks" and name in overridden and isinstance(node, dict):
            continue
        if name in MULTIPLE_CALLS:
            checker.check_several(name, node)
        elif name in (*CALLED_SECTIONS, *TRAINING_SECTIONS, *OPTIONAL_SECTIONS):
            checker.check_section(name, node)
        else:
            checker.check_uncalled((name,), node)


class _ConfigChecker:
    """Checks of the parts of a document; errors name the line and the key.

    Args:
        path: File of the document, for errors.
        lines: The line of every value, by its keys.
        known: Targets that may be called, with their options.
        replaced: Dotted keys whose values will not be used.
    """

    def __init__(self, path: Path, lines: Mapping[Place, int], known: KnownTargets, replaced: frozenset[str]) -> None:
        self.path, self.lines, self.known, self.replaced = path, lines, known, replaced
        self.remedy = INSTALL

    def check_text(self, keys: Place, value: object) -> None:
        """Refuse interpolations and missing values, in a value and all below it."""
        if isinstance(value, str) and INTERPOLATION.search(value):
            raise self.build_error(keys, "is an interpolation, and a saved configuration has none")
        if value == "???":
            raise self.build_error(keys, "has no value")
        for key, child in _iterate_items(value):
            if isinstance(key, str) and "${" in key:
                raise self.build_error((*keys, key), "is an interpolation, and a saved configuration has none")
            self.check_text((*keys, key), child)

    def check_kinds(self, values: JsonObject) -> None:
        """Check the types of values that no constructor checks, see `KINDS`."""
        for keys, (kinds, description) in KINDS.items():
            section: object = values if len(keys) == 1 else values.get(str(keys[0]))
            if not isinstance(section, dict):
                continue
            if keys[-1] not in section and keys in REQUIRED_KEYS:
                raise self.build_error((keys[0],), f"has no `{keys[-1]}`")
            value = section.get(keys[-1])
            if keys[-1] in section and not _has_type(value, kinds):
                raise self.build_error(keys, f"must be {description}, got {_format_value(value)}")
        if not 0 <= values["seed"] < SEEDS:
            raise self.build_error(("seed",), f"must be from 0 to {SEEDS - 1}, got {values['seed']}")

    def check_section(self, name: str, node: object) -> None:
        """Check a section that is a call."""
        if not isinstance(node, dict) or "_target_" not in node:
            raise self.build_error((name,), "must be a section with a `_target_`")
        self.check_call((name,), node, self.known.group(GROUPS.get(name, name)) or KnownGroup())

    def check_several(self, name: str, node: object) -> None:
        """Check a section of calls by their names; the section of the loggers may be a call itself."""
        if not isinstance(node, dict):
            raise self.build_error((name,), "must be a section")
        known = self.known.group(name) or KnownGroup()
        calls = {key: value for key, value in node.items() if isinstance(value, dict) and "_target_" in value}
        if name in CALLED_SECTIONS and ("_target_" in node or not calls):
            self.check_section(name, {key: value for key, value in node.items() if key not in calls})
        elif unexpected := next((key for key in node if key not in calls), None):
            raise self.build_error((name, unexpected), "must be a section with a `_target_`")
        for key, call in calls.items():
            self.check_call((name, key), call, known)

    def check_call(self, keys: Place, node: JsonObject, known: KnownGroup) -> None:
        """Check a node that Hydra makes a call of."""
        group, target = GROUPS.get(str(keys[0]), keys[0]), node["_target_"]
        is_replaced = _join_keys((*keys, "_target_")) in self.replaced
        if not is_replaced and not (isinstance(target, str) and target in known.targets):
            raise self.build_error(
                (*keys, "_target_"),
                f"is {_format_value(target)}, which no installed file of the group {group} calls, and it is not "
                f"called. If it is your own, {self.remedy}",
            )
        usual_controls = {frozenset(), frozenset({("_partial_", "True")})} if is_replaced else known.targets[target]
        if call_controls(node) not in usual_controls:
            unexpected = next((key for key in CONTROLS[1:] if key in node), None)
            raise self.build_error(
                (*keys, unexpected) if unexpected else keys, "is not called as in the installed files"
            )
        for key, value in node.items():
            if key not in CONTROLS:
                self.check_option((*keys, key), key, value, known)

    def check_option(self, keys: Place, key: str, value: object, known: KnownGroup) -> None:
        """Check an argument of a call, or a part of one.

        Args:
            keys: Keys of the value, from the root of the document.
            key: Name of the argument that the value is, or is a part of.
            value: The value.
            known: What the files of the section's group call, and with which options.
        """
        replaced = _join_keys(keys) in self.replaced
        if isinstance(value, dict):
            if (
                "_target_" in value
                and tuple("*" if isinstance(part, int) else part for part in keys[1:]) in known.nested
            ):
                return self.check_call(keys, value, known)
            self.check_bare(keys, value)
            if key not in known.mappings and keys[0] not in UNUSED_SECTIONS:
                raise self.build_error(keys, "is a mapping where none is expected")
        elif replaced:
            return None
        if isinstance(value, str) and not (
            key in known.options or keys[0] in UNUSED_SECTIONS or self.is_word(key, value, known)
        ):
            raise self.build_error(
                keys,
                f"is text for an option that no installed file names. If it is your own, {self.remedy}",
            )
        for name, child in _iterate_items(value):
            self.check_option((*keys, name), key, child, known)
        return None

    def check_uncalled(self, keys: Place, value: object) -> None:
        """Check a value that is not passed to any constructor."""
        if isinstance(value, dict):
            self.check_bare(keys, value)
        for name, child in _iterate_items(value):
            self.check_uncalled((*keys, name), child)

    def check_bare(self, keys: Place, node: JsonObject) -> None:
        """Refuse a mapping that has keys of a call where nothing is called."""
        if unexpected := next((key for key in CONTROLS if key in node), None):
            raise self.build_error((*keys, unexpected), "stands where nothing is called")

    @staticmethod
    def is_word(key: str, value: str, known: KnownGroup) -> bool:
        """Tell whether an option that no file names may have this text."""
        return key in known.words and WORD.fullmatch(value) is not None

    def build_error(self, keys: Place, reason: str) -> UserError:
        """Return the error that names the file, the line and the key of a value."""
        line = f", line {self.lines[keys]}" if keys in self.lines else ""
        return UserError(
            f"{self.path}{line}: `{_format_value(_join_keys(keys))[1:-1]}` {reason}. Give a file as semcorr wrote it."
        )


def _has_type(value: object, kinds: tuple[type, ...]) -> bool:
    """Tell whether a value has one of the types; other than for isinstance, a bool is not a number."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _iterate_items(value: object) -> Iterator[tuple[str | int, object]]:
    """Yield the keys and values of a mapping, or the positions and values of a list."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _join_keys(keys: Place) -> str:
    return ".".join(map(str, keys))


def _format_value(value: object) -> str:
    """Format a value of the file, short and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
