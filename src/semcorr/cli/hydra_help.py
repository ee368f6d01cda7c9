"""Help and shell completion of the commands that Hydra composes: what there is to choose, as files have it."""

from collections.abc import Iterable, Iterator, Sequence

import yaml
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.table import Table

from semcorr.cli.compose import initialize_hydra
from semcorr.core.errors import UserError
from semcorr.core.terminal import Terminal
from semcorr.engine.known_targets import conf_dir, config_search_path, read_known_targets
from semcorr.engine.packages import list_choices

PARTS = {"common", "several"}  # files that other files and lists are made of
FLAGS = "-m sweeps; --cfg job shows the configuration; --config-dir DIR adds files; --hydra-help"


def print_help(verb: str, summary: str, examples: Sequence[str]) -> None:
    """Print what a command does, its groups with their choices, and examples.

    Args:
        verb: Name of the command and of its configuration, such as `train`.
        summary: What the command does, in a sentence.
        examples: Lines of the command without the program, as `backbone=dinov2 finetune.blocks=2`.
    """
    terminal = Terminal(highlight=False)
    terminal.print(f"Usage: semcorr {verb} [KEY=VALUE ...]\n\n{summary}\n\nChoices, as GROUP=NAME:")
    grid = Table.grid(padding=(0, 2))
    for group in _list_groups(verb):
        names = _leave_out_numbers(_list_names(group))
        grid.add_row(f"  {group}", ", ".join(_leave_out_sizes(names) if group == "backbone" else names))
    terminal.print(grid)
    terminal.print("Every option of a choice is a key: backbone.size=448, trainer.max_epochs=3.\n\nExamples:")
    for example in examples:
        terminal.print(f"  semcorr {verb} {example}", soft_wrap=True)
    terminal.print(f"\nFlags: {FLAGS}")


def _leave_out_numbers(names: Iterable[str]) -> list[str]:
    """Leave out a choice that is another one with a number of its own, as window_soft_argmax_45."""
    names = list(names)
    return [name for name in names if not (name.rpartition("_")[2].isdigit() and name.rpartition("_")[0] in names)]


def _leave_out_sizes(names: Sequence[str]) -> list[str]:
    """Leave out the further sizes of a network, as dinov2_l beside dinov2, and say what lists them."""
    return [*(name for name in names if name.rpartition("_")[0] not in names), "and their sizes (semcorr backbones)"]


def complete_override(verb: str, words: Sequence[str], word: str) -> list[str]:
    """List what a word of a line may become: groups, their choices, and keys.

    Args:
        verb: Name of the command.
        words: Complete words of the line before the last one. Bash hands the words around an `=` over one by one.
        word: What is typed of the last word.

    Returns:
        Completions of `word`.
    """
    settings = _join_settings([*words, "="] if word == "=" else words)
    is_value = bool(settings) and settings[-1].endswith("=")
    prefix = settings.pop() if is_value else ""
    with initialize_hydra():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        line = " ".join([*filter(_is_setting, settings), prefix + word.removeprefix("=")])
        try:
            completions = BashCompletion(hydra.config_loader)._query(verb, line)
        except (HydraException, UserError, ValueError):  # half a word may be none of Hydra's grammar
            return []
    return sorted(text.removeprefix(prefix) for text in completions if not text.startswith("hydra"))


def _is_setting(word: str) -> bool:
    """Tell whether Hydra can read a complete word; those with blanks would fall into several."""
    try:
        OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return False
    return not any(map(str.isspace, word))


def _join_settings(words: Sequence[str]) -> list[str]:
    """Join what Bash has split at each `=`.

    >>> _join_settings(["finetune", "=", "lora", "seed=3", "backbone", "="])
    ['finetune=lora', 'seed=3', 'backbone=']
    """
    settings: list[str] = []
    for word in words:
        if settings and (word == "=" or settings[-1].endswith("=")):
            settings[-1] += word
        else:
            settings.append(word)
    return settings


def _list_groups(verb: str) -> list[str]:
    """List the groups that the configuration of a command chooses from."""
    content = yaml.safe_load((conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8"))
    keys = [next(iter(entry)) for entry in content["defaults"] if isinstance(entry, dict)]
    return sorted({key for key in keys if "@" not in key and not key.startswith("override ")})


def _list_names(group: str) -> Iterator[str]:
    """Yield the names of a group; of a group inside it, the folder."""
    yield from (name for name in list_choices(group) if name not in PARTS)
    repository = read_known_targets(config_search_path(str(conf_dir()))).repository
    yield from (f"{name}/..." for name in repository.get_group_options(group, ObjectType.GROUP))
