"""docs/methods.md lists what the texts name: what it says to run is understood, and what it says to train trains."""

import re
import shlex
from itertools import takewhile
from typing import NamedTuple

import pytest
import torch
from pages import DOCS, SPAN
from tiny_training import shrink_training
from typed_jobs import list_jobs, split_verb

from semcorr.__main__ import HYDRA_VERBS
from semcorr.cli.compose import register_readouts
from semcorr.cli.hydra_app import check_run
from semcorr.cli.typed_line import check_line
from semcorr.engine.known_targets import conf_dir
from semcorr.train import train

pytestmark = pytest.mark.integration

PAGE = (DOCS / "methods.md").read_text()
TEXT, HERE, HOW = "text", "here", "how, or why not"
CHOICES = re.compile(r"(?<=[\s`])([a-z]+)=([\w/,]+)")
NAMED = {(group, name) for group, names in CHOICES.findall(PAGE) for name in names.split(",")}
REPLACED = {"backbone", "data", "trainer", "store", "run_dir", "checkpoint"}  # by those of a tiny training
DIFFUSION = {"finetune=cpm", "finetune=combined"}  # a prompt needs Stable Diffusion: tests/models/finetune


class Row(NamedTuple):
    """A row of the tables of what the texts name."""

    name: str
    year: str
    text: str
    here: str
    how: str

    @property
    def commands(self) -> list[str]:
        return SPAN.findall(self.how)


def read_tables() -> list[list[dict[str, str]]]:
    """The tables of the page, their rows by the names of their columns."""
    tables, lines = [], PAGE.splitlines()
    for i, line in enumerate(lines):
        if re.fullmatch(r"[|-]+", line):
            names = split_row(lines[i - 1])
            rows = [split_row(row) for row in takewhile(lambda row: row.startswith("|"), lines[i + 1 :])]
            tables.append([dict(zip(names, row, strict=True)) for row in rows])
    return tables


def split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


ROWS = [
    Row(next(iter(row.values())), row.get("year, venue", ""), row[TEXT], row[HERE], row[HOW])
    for table in read_tables()
    if HOW in table[0]
    for row in table
]
(TIMELINE,) = (table for table in read_tables() if {*table[0]} == {"year", "methods"})
LINES = {command: split_verb(shlex.split(command)) for row in ROWS for command in row.commands}
SETTINGS = {command: found for command, found in LINES.items() if found and found[0] in HYDRA_VERBS}
TRAINED = [line for line, (verb, words) in SETTINGS.items() if verb == "train" and not DIFFUSION & {*words}]


def test_every_text_is_read_and_nothing_is_listed_twice():
    names = [(row.name, row.text) for row in ROWS]

    assert len(ROWS) >= 90
    assert len({*names}) == len(names)
    assert {text for row in ROWS for text in re.findall(r"\b00\d\b", row.text)} == {f"00{i}" for i in range(5)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_a_command_or_says_why_not(row):
    beside = SPAN.sub("", row.how).replace("`", "").strip(" ,;:.")

    assert re.match(r"00[0-4](,|$|;)", row.text)
    if row.here == "absent":
        assert not row.commands
        assert len(beside.split()) >= 2
    else:
        assert row.here in ("present", "partial")
        assert row.commands
        assert row.here == "present" or len(beside.split()) >= 3  # what lacks


def test_the_timeline_has_the_methods_of_the_taxonomy_in_their_years():
    drawn = {(row["year"], name) for row in TIMELINE for name in row["methods"].split(", ")}

    assert drawn == {(row.year.partition(",")[0], row.name) for row in ROWS if row.year}
    assert [row["year"] for row in TIMELINE] == sorted({row["year"] for row in TIMELINE})


def test_the_methods_of_a_family_are_in_the_order_of_their_years():
    for table in read_tables():
        years = [row["year, venue"][:4] for row in table if "year, venue" in row]
        assert years == sorted(years)


def test_every_choice_that_is_named_exists():
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    named = {(group, name) for group, name in NAMED if group in groups}

    assert len(named) > 60
    assert not [choice for choice in sorted(named) if not (conf_dir() / choice[0] / f"{choice[1]}.yaml").is_file()]


@pytest.mark.parametrize("folder", ["data", "finetune", "head", "loss", "experiment/tables", "experiment/unified"])
def test_every_choice_there_is_is_named(folder):
    """A new head, loss, benchmark or table has a row, or a place among what no text names."""
    group = folder.partition("/")[0]
    files = {path.relative_to(conf_dir() / group) for path in (conf_dir() / folder).glob("*.yaml")}
    there = {(group, file.with_suffix("").as_posix()) for file in files} - {("data", "common")}

    assert sorted(there - NAMED) == []


@pytest.mark.sampled(8)
@pytest.mark.parametrize("command", SETTINGS)
def test_every_job_of_a_command_is_one_that_begins(config, tmp_path, monkeypatch, command):
    verb, words = SETTINGS[command]
    settings = [word for word in check_line(words, verb, conf_dir()) if "=" in word and not word.startswith("-")]
    torch.save({"weight": torch.zeros(1)}, tmp_path / "FILE")  # read after the data
    monkeypatch.chdir(tmp_path)
    register_readouts(settings)

    for job in list_jobs(settings):
        check_run(config(verb, *job))


def test_a_command_of_no_settings_is_of_a_known_program():
    """test_docs_commands.py reads their flags."""
    others = {command for command in LINES if command not in SETTINGS}

    assert {found[0] for command in others if (found := LINES[command])} == {
        "benchmark",
        "report",
        "prepare",
        "search",
    }
    assert all(LINES.values())


@pytest.mark.sampled(16)
@pytest.mark.parametrize("command", TRAINED)
def test_a_command_trains_a_step_on_tiny_parts(config, tiny, command):
    """Of a sweep its first job. The backbone and the benchmark are replaced: weights by name are none here."""
    (first, *_) = list_jobs([word for word in SETTINGS[command][1] if word != "-m"])
    keeps = [word for word in first if word.lstrip("+~").split("=")[0].split(".")[0] not in REPLACED]
    keeps = [word for word in keeps if not word.startswith("head.weights=")]
    experiment = next((word.partition("=")[2] for word in keeps if word.startswith("experiment=")), None)
    plain = config("train", *keeps, *tiny)

    scores = train(config("train", *keeps, *shrink_training(plain, experiment, tiny)))

    assert scores["pairs"] == 2  # those a fast_dev_run looks at
    trained = plain.finetune.blocks != 0 or not plain.head._target_.endswith("Cosine")
    assert (scores["trained_parameters"] > 0) == trained
