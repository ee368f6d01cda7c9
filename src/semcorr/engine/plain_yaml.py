"""Reading of YAML of unknown origin as plain values: within limits, and without tags that build objects."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf._utils import get_yaml_loader

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.engine.renamed_targets import update_targets

BYTES = 2**20
DEPTH = 32
NODES = 10_000
DIGITS = 40  # of a number as it is written
INTEGERS = 2**63
KINDS = ("null", "bool", "int", "float", "str")
# What no path or name needs: control characters but tab and newline, and halves of characters.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

Place = tuple[str | int, ...]


class PlainDocument(NamedTuple):
    """A document and the lines of its parts.

    Attributes:
        values: Mappings with text for keys, lists, text, finite numbers, true, false and null.
        lines: The line of every value, counted from 1, by its keys and places in lists.
    """

    values: Any
    lines: Mapping[Place, int]


def read_plain_yaml(path: Path) -> PlainDocument:
    """Read one YAML document, with the types that OmegaConf gives its values.

    Raises:
        UserError: The file cannot be read, is larger than 1 MiB, is not UTF-8 or not YAML; it is empty or has several
            documents; it has anchors, aliases, tags, a key twice or one that is not text, a number that is not finite
            or does not fit into 64 bits, control characters, more than 10,000 values, or any nested deeper than 32.
    """
    text = _text(path)
    try:
        loader = get_yaml_loader()(text)
        try:
            return _Reader(loader).document()
        finally:
            loader.dispose()
    except _RefusedError as refused:
        reason, line = refused.args
    except yaml.MarkedYAMLError as error:
        reason, line = error.problem or "it is not YAML", error.problem_mark.line + 1 if error.problem_mark else None
    except yaml.YAMLError as error:  # the message names the character that YAML forbids by its number
        reason, line = str(error).splitlines()[0], None
    where = f"line {line}: " if line else ""
    raise UserError(f"{path} cannot be read ({where}{' '.join(reason.split())}). Give a file as semcorr wrote it.")


def read_plain_config(path: Path) -> JsonObject:
    """Read the config.yaml of a run as plain values, its targets under today's names.

    Raises:
        UserError: It is absent, damaged, or holds no mapping.
    """
    values = update_targets(read_plain_yaml(path).values)
    if not isinstance(values, dict):
        raise UserError(
            f"{path} must hold keys with values, and holds a {type(values).__name__}. Give a file as semcorr wrote it."
        )
    return values


class _RefusedError(Exception):
    """A reason for a refusal, and its line."""


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(BYTES + 1)
        if len(content) > BYTES:
            raise UserError(f"{path} cannot be read (it is larger than 1 MiB). Give a file as semcorr wrote it.")
        return content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Make it readable, or give another.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} cannot be read (it is not UTF-8). Give a file as semcorr wrote it.") from None


class _Reader:
    """Reader of YAML events as values, which stops at the first that is refused."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.loader, self.lines = loader, dict[Place, int]()

    def document(self) -> PlainDocument:
        self.loader.get_event()
        if self.loader.check_event(yaml.StreamEndEvent):
            raise _RefusedError("it is empty", None)
        self.loader.get_event()
        values = self.value(())
        self.loader.get_event()
        if not self.loader.check_event(yaml.StreamEndEvent):
            raise _RefusedError("it has more than one document", self.loader.peek_event().start_mark.line + 1)
        return PlainDocument(values, self.lines)

    def value(self, at: Place) -> object:
        event = self.loader.get_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _RefusedError("anchors and aliases are not taken", line)
        if event.tag is not None:
            raise _RefusedError("tags are not taken", line)
        self.lines[at] = line
        if len(at) > DEPTH:
            raise _RefusedError(f"it is nested deeper than {DEPTH}", line)
        if len(self.lines) > NODES:
            raise _RefusedError(f"it has more than {NODES:,} values", line)
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(at)
        return self.sequence(at) if isinstance(event, yaml.SequenceStartEvent) else self.scalar(event, line)

    def mapping(self, at: Place) -> JsonObject:
        values: JsonObject = {}
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.loader.peek_event()
            line = event.start_mark.line + 1
            key = self.value((*at, "")) if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent) else None
            if not isinstance(key, str):
                raise _RefusedError("a key must be text", line)
            if key in values:
                raise _RefusedError(f"the key {key[:40]!r} is there twice", line)
            values[key] = self.value((*at, key))
        self.loader.get_event()
        return values

    def sequence(self, at: Place) -> list[object]:
        values: list[object] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            values.append(self.value((*at, len(values))))
        self.loader.get_event()
        return values

    def scalar(self, event: yaml.ScalarEvent, line: int) -> object:
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        kind = tag.rpartition(":")[2]
        if kind not in KINDS:
            raise _RefusedError(f"{event.value[:40]!r} has a meaning of its own in YAML; put it in quotes", line)
        if kind in ("int", "float") and len(event.value) > DIGITS:
            raise _RefusedError(f"a number has more than {DIGITS} digits", line)
        try:
            value = self.loader.construct_object(yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark))
        except ValueError:
            raise _RefusedError(f"{event.value!r} is not a number", line) from None
        if (kind == "int" and abs(value) >= INTEGERS) or (kind == "float" and not math.isfinite(value)):
            raise _RefusedError(f"{event.value!r} is not finite, or too large", line)
        if kind == "str" and UNPRINTABLE.search(value):
            raise _RefusedError("it has control characters", line)
        return value
