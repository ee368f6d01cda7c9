"""The lines that the pages have a reader type: each is understood, as it is typed."""

import ast
import re
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
import torch
import typer
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from pages import PAGES, blocks, name_of, typed_lines
from repository import ROOT

from semcorr.__main__ import HYDRA_VERBS, VERBS, _load_app
from semcorr.cli.compose import expand_list_overrides, register_readouts
from semcorr.cli.hydra_app import check_run
from semcorr.cli.typed_line import check_line
from semcorr.cli.verb_line import check_words
from semcorr.engine.known_targets import conf_dir
from semcorr.match import split_repeated_points

pytestmark = pytest.mark.integration

LINES = list(dict.fromkeys(chain.from_iterable(map(typed_lines, PAGES))))
PYTHON = list(dict.fromkeys((name_of(page), text) for page in PAGES for text in blocks(page, "python")))
# Parts that a page shows how to write; test_adding.py and test_own_package.py run these lines where they are written.
WRITTEN_BY_READERS = re.compile(r"\b(vgg16|linear|(test_)?cub|my_\w+|my\.Head)\b")


def split_verb(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The verb of a line and what follows it; None if the line runs another program."""
    words = [*words[1:]] if words[0] == "time" else [*words]
    if words[0] == "semcorr":
        return words[1], words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("semcorr."):
        return words[2].removeprefix("semcorr."), words[3:]
    if words[:2] == ["python", "scripts/pose_prediction.py"]:  # takes the settings of evaluate
        return "evaluate", words[2:]
    return None


VERB_LINES = [(line.page, *found) for line in LINES if (found := split_verb(line.words))]
SETTINGS = [(page, verb, words) for page, verb, words in VERB_LINES if verb in HYDRA_VERBS]
FLAGS = [(page, verb, words) for page, verb, words in VERB_LINES if verb not in HYDRA_VERBS]
OTHERS = [line for line in LINES if split_verb(line.words) is None]


def describe(value: object) -> str:
    return " ".join(value) if isinstance(value, list | tuple) else str(value)


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


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("page", "verb", "words"), SETTINGS, ids=describe)
def test_every_job_of_a_line_of_settings_is_one_that_begins(config, tmp_path, monkeypatch, page, verb, words):
    settings = [word for word in check_line(words, verb, conf_dir()) if "=" in word and not word.startswith("-")]
    if WRITTEN_BY_READERS.search(" ".join(words)):
        return
    for file in ("FILE", "sam_vit_h_4b8939.pth"):  # of weights; they are read after the data
        torch.save({"weight": torch.zeros(1)}, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    register_readouts(settings)

    for job in list_jobs(settings):
        cfg = config(verb, *job)
        if "trainer=gpu" not in job:  # Lightning refuses it where there is none
            check_run(cfg)


@pytest.mark.parametrize(("page", "verb", "words"), FLAGS, ids=describe)
def test_a_line_of_flags_is_understood(page, verb, words):
    command = typer.main.get_command(_load_app(verb))

    check_words(command, split_repeated_points(words) if verb == "match" else words)


def test_every_other_line_names_what_there_is():
    targets = {*re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)}
    extras = {*re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)}
    for line in OTHERS:
        first, *rest = line.words
        if first == "make":
            assert {*rest} <= targets, line
        elif first == "pip":
            assert {*re.findall(r"[a-z]+", "".join(re.findall(r"\[(.*)\]", rest[-1])))} <= extras, line
        elif first == ".venv/bin/pre-commit":
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        elif rest[:2] == ["-m", "pytest"]:
            files = [word for word in rest[2:] if "/" in word and not WRITTEN_BY_READERS.search(word)]
            assert all((ROOT / file).exists() for file in files), line
        else:
            assert first == "python"
            assert (ROOT / rest[0]).is_file(), line
    assert {verb for _, verb, _ in VERB_LINES} == {*VERBS}


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=lambda value: value.partition("\n")[0])
def test_a_block_of_python_imports_what_there_is(page, text):
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]

    exec(compile(ast.Module(imports, []), page, "exec"), {})
