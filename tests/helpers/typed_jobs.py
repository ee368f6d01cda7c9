"""What a typed line runs: its verb, and the jobs that a sweep makes of its settings."""

from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from semcorr.cli.compose import expand_list_overrides


def split_verb(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The verb of a line and what follows it; None if the line runs another program."""
    words = [*words[1:]] if words[0] == "time" else [*words]
    if words[0] == "semcorr":
        return words[1], words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("semcorr."):
        return words[2].removeprefix("semcorr."), words[3:]
    if words[:2] == ["python", "scripts/predict_poses.py"]:  # takes the settings of evaluate
        return "evaluate", words[2:]
    return None


def swept_values(override: Override) -> list[str]:
    """The settings that a sweep makes of one: each of its choices, both ends of an interval or a range."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.is_choice_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    ends = override.value()
    values = (getattr(ends, "start", None), getattr(ends, "end", getattr(ends, "stop", None)))
    return [f"{key}={value:g}" for value in values]


def list_jobs(settings: Sequence[str]) -> Iterator[list[str]]:
    """The first job of a line, and one more for each other value of a setting."""
    overrides = OverridesParser.create().parse_overrides(expand_list_overrides(settings))
    values = [swept_values(override) for override in overrides]
    first = [each[0] for each in values]
    yield first
    for i, each in enumerate(values):
        yield from ([*first[:i], other, *first[i + 1 :]] for other in each[1:])
