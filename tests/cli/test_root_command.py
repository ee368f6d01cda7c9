"""The command semcorr: help, suggestions, completion; what a piped run says of its stages."""

import io
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from repository import SMALL

from semcorr import evaluate, train
from semcorr.__main__ import APPS, HYDRA_VERBS, VERBS, main
from semcorr.cli.compose import compose_config
from semcorr.cli.hydra_help import complete_override, print_help
from semcorr.core.terminal import Stage

pytestmark = pytest.mark.integration


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[[str], tuple[int, str, str]]:
    """typed("match --help") is `semcorr match --help`: exit code, output and errors."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["semcorr", *line.split()])
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_every_verb_with_a_line(typed, flag, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = typed(flag)

    assert code == 0
    assert "Usage: semcorr" in out
    for verb, summary in VERBS.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"│ {verb} ")]
        assert summary.split()[0] in line


def test_without_a_verb_help_comes_before_the_error(typed):
    code, out, err = typed("")

    assert (code, "Usage: semcorr" in out) == (2, True)
    assert err.startswith("Error: no command is given. Give semcorr VERB")


@pytest.mark.parametrize("line", ["--version train", "--help --bogus", "--version --version"])
def test_a_flag_of_the_root_stands_alone(typed, line):
    code, out, err = typed(line)

    assert (code, out) == (2, "")
    assert err == f"Error: `{line.split()[1]}` has no effect beside {line.split()[0]}. Give one of them.\n"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in HYDRA_VERBS])
def test_the_summary_of_a_verb_is_the_one_of_its_own_help(typed, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = typed(f"{verb} --help")

    assert code == 0
    assert f"Usage: semcorr {verb} " in out
    assert VERBS[verb].removesuffix(".") in " ".join(out.split())


@pytest.mark.parametrize("module", [train, evaluate])
def test_help_of_a_hydra_verb_is_one_screen_with_real_choices(typed, module, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    verb = module.__name__.rpartition(".")[2]
    code, out, _ = typed(f"{verb} --help")

    assert code == 0
    assert len(out.splitlines()) <= 50
    assert f"Usage: semcorr {verb} " in out
    assert "efficientnet_lite0" in out
    assert "common" not in out.split()  # a file that others are made of
    assert VERBS[verb] == module.SUMMARY or module.SUMMARY.startswith(VERBS[verb].removesuffix("."))
    for example in module.EXAMPLES:
        assert f"semcorr {verb} {example}" in out


@pytest.mark.parametrize("module", [train, evaluate])
def test_the_examples_of_the_help_compose(module):
    for example in module.EXAMPLES:
        if "RUN_DIR" not in example:
            words = [word.partition(",")[0] if "[" not in word else word for word in example.split() if word != "-m"]
            compose_config(module.__name__.rpartition(".")[2], words)


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ([], "backb", {"backbone=", "backbone."}),
        (["backbone", "="], "dinov2_", {"dinov2_g", "dinov2_l", "dinov2_reg", "dinov2_reg_g", "dinov2_reg_l",
                                         "dinov2_reg_s", "dinov2_s"}),
        (["finetune"], "=", {"frozen", "lora", "houlsby", "prompt"}),
        ([], "finetune=bl", {"finetune=blocks_1", "finetune=blocks_2", "finetune=blocks_4"}),
        (["finetune=lora"], "finetune.ra", {"finetune.rank="}),
        (["finetune", "=", "lora"], "finetune.ra", {"finetune.rank="}),
        (["-m", "seed=1,2"], "loss=unif", {"loss=unified"}),
        ([], "no_such", set()),
        (["trainer.max_epochs=["], "loss=unif", {"loss=unified"}),  # a word that cannot be read, and one with a blank
        (["run_dir=my runs"], "loss=unif", {"loss=unified"}),
        ([], "trainer.max_epochs=[", set()),
    ],
)  # fmt: skip
def test_words_of_a_hydra_verb_are_completed(words, word, expected):
    found = set(complete_override("train", words, word))

    assert found >= expected if word == "=" else found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "line", "expected"),
    [
        ("bash", "semcorr tra", ["train", "transfer"]),
        ("bash", "semcorr match --mu", ["--mutual"]),
        ("bash", "semcorr store ver", ["verify"]),
        ("bash", "semcorr train backbone = dinov2_reg_", ["dinov2_reg_g", "dinov2_reg_l", "dinov2_reg_s"]),
        ("fish", "semcorr evaluate pose=", ["pose=adaptive", "pose=none"]),
        ("zsh", "semcorr evaluate backbone=dinov2 backbone.si", ["backbone.size="]),
    ],
)
def test_a_shell_completes_verbs_flags_and_settings(shell, line, expected):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    words |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    words = {key: words[key] for key in words if key.startswith("COMP" if shell == "bash" else "_TYPER")}
    done = subprocess.run(
        [sys.executable, "-m", "semcorr"], env={**os.environ, **words, "_SEMCORR_COMPLETE": f"complete_{shell}"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert [text for text in expected if text not in done.stdout] == []
    if shell == "bash":
        assert done.stdout.split() == expected


def test_applications_are_where_the_root_looks_for_them():
    for verb in VERBS.keys() - set(HYDRA_VERBS):
        module = __import__(APPS.get(verb, f"semcorr.{verb}"), fromlist=["app"])
        assert isinstance(module.app, typer.Typer)


def test_a_piped_run_says_its_stages_and_ends_with_what_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "data.steps=2", "trainer.max_epochs=1", "backbone=tiny", "trainer=cpu", "data.workers=0"]

    assert train.main(["data=synthetic", "data.root=drawn", *small, "run_dir=run"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: data=synthetic, backbone=tiny, finetune=last_blocks, head=cosine, protocol=unified"
    begins = ["Drawing 40 creatures", "Reading ", "Encoding ", "Training ", "Testing on cpu, 32-true: "]
    assert [text for text in begins if not any(line.startswith(text) for line in lines)] == []
    assert lines[-1].startswith(f"Wrote {tmp_path / 'run'}: checkpoints/, config.yaml, ")
    assert all(name in lines[-1] for name in ("metrics.json", "predictions.parquet"))
    assert "" not in [line.strip() for line in lines]


def test_a_run_that_is_refused_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert train.main(["backbone=tiny", "data.root=absent", "trainer=cpu"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_a_line_at_once_and_a_bar_only_on_a_terminal(monkeypatch, capsys):
    with Stage("Encoding 3 images on cpu", 3) as stage:
        assert capsys.readouterr().out == "Encoding 3 images on cpu\n"
        assert list(stage.track("abc")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""

    monkeypatch.setenv("FORCE_COLOR", "1")
    with Stage("Encoding 3 images on cpu", 3) as stage:
        stage.advance(2)
    out = capsys.readouterr().out
    assert out.startswith("Encoding 3 images on cpu\n")
    assert "67%" in out


def test_other_processes_of_a_run_say_nothing(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Stage("Encoding 3 images on cpu", 3) as stage:
        stage.advance()

    assert capsys.readouterr().out == ""


def test_help_into_a_closed_pipe_ends_quietly():
    line = f"{sys.executable} -m semcorr train --help | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)

    assert done.stdout.startswith("Usage: semcorr train")
    assert done.stderr == ""


def test_help_is_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    print_help("train", "Train.", ["seed=1"])

    assert max(map(len, capsys.readouterr().out.splitlines())) <= 70
    assert isinstance(sys.stdout, io.TextIOBase)
