"""The lines that the pages have a reader type: each is understood, as it is typed."""

import ast
import re
from itertools import chain

import pytest
import torch
import typer
from pages import PAGES, blocks, name_of, typed_lines
from repository import ROOT
from typed_jobs import list_jobs, split_verb

from semcorr.__main__ import HYDRA_VERBS, VERBS, _load_app
from semcorr.cli.compose import register_readouts
from semcorr.cli.hydra_app import check_run
from semcorr.cli.typed_line import check_line
from semcorr.cli.verb_line import check_words
from semcorr.engine.known_targets import conf_dir
from semcorr.match import split_repeated_points

pytestmark = pytest.mark.integration

LINES = list(dict.fromkeys(chain.from_iterable(map(typed_lines, PAGES))))
PYTHON = list(dict.fromkeys((name_of(page), text) for page in PAGES for text in blocks(page, "python")))
# Parts that a page shows how to write; test_adding.py and test_own_package.py run these lines where they are written.
WRITTEN_BY_READERS = re.compile(r"\b(vgg16|linear|(test_)?nabirds|my_\w+|my\.Head)\b")


VERB_LINES = [(line.page, *found) for line in LINES if (found := split_verb(line.words))]
COMPOSED = "docs/methods.md"  # test_docs_methods.py composes its lines, every one of them
TYPED = [(page, verb, words) for page, verb, words in VERB_LINES if verb in HYDRA_VERBS and page != COMPOSED]
OWN_PARTS = [(verb, words) for _, verb, words in TYPED if WRITTEN_BY_READERS.search(" ".join(words))]
SETTINGS = [(page, verb, words) for page, verb, words in TYPED if (verb, words) not in OWN_PARTS]
FLAGS = [(page, verb, words) for page, verb, words in VERB_LINES if verb not in HYDRA_VERBS]
OTHERS = [line for line in LINES if split_verb(line.words) is None]


def describe(value: object) -> str:
    return " ".join(value) if isinstance(value, list | tuple) else str(value)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("page", "verb", "words"), SETTINGS, ids=describe)
def test_every_job_of_a_line_of_settings_is_one_that_begins(config, tmp_path, monkeypatch, page, verb, words):
    settings = [word for word in check_line(words, verb, conf_dir()) if "=" in word and not word.startswith("-")]
    for file in ("FILE", "sam_vit_h_4b8939.pth"):  # of weights; they are read after the data
        torch.save({"weight": torch.zeros(1)}, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    register_readouts(settings)

    for job in list_jobs(settings):
        cfg = config(verb, *job)
        if cfg.trainer.get("accelerator") != "gpu":  # Lightning refuses it where there is none
            check_run(cfg)


@pytest.mark.parametrize(("verb", "words"), OWN_PARTS, ids=describe)
def test_a_line_with_a_part_that_a_reader_writes_is_understood(monkeypatch, verb, words):
    monkeypatch.chdir(ROOT / "examples/my_backbone/src")
    monkeypatch.syspath_prepend(ROOT / "examples/my_backbone/src")
    assert check_line(words, verb, conf_dir())


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
