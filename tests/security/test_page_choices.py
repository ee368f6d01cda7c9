"""Which models a visitor may choose: those of a list, and nothing that they send becomes a configuration line."""

from pathlib import Path

import pytest

from semcorr.app.choices import ModelChoices, list_backbone_names, list_run_names
from semcorr.core.errors import UserError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, one of them in a sweep; beside them a run outside, and links to it."""
    runs = tmp_path / "runs"
    for run in (runs / "one", runs / "sweep" / "0", tmp_path / "outside", runs / ".hidden"):
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("seed: 1\n")
    (runs / "empty").mkdir()
    (runs / "linked").symlink_to(tmp_path / "outside")
    (runs / "file").mkdir()
    (runs / "file" / "config.yaml").symlink_to(tmp_path / "outside" / "config.yaml")
    return runs


def test_runs_of_the_folder_are_listed_by_their_path_in_it_and_links_out_of_it_are_not(runs):
    assert list_run_names(runs) == ["one", "sweep/0"]
    assert list_run_names(runs / "nothing") == []


def test_a_choice_leads_to_what_the_server_says(runs):
    choices = ModelChoices("backbone=tiny localise=argmax", runs)
    assert choices.names() == ["backbone=tiny localise=argmax", *list_backbone_names(), "run: one", "run: sweep/0"]
    for name in choices.names():
        assert choices.name(choices.line(name)) == name
    assert choices.line("run: sweep/0") == str(runs / "sweep/0")
    assert choices.line("dinov2") == "dinov2"


def test_a_run_that_is_made_later_can_be_chosen_and_one_that_is_gone_cannot(runs):
    choices = ModelChoices("tiny", runs)
    (runs / "two").mkdir()
    (runs / "two" / "config.yaml").write_text("seed: 1\n")
    assert choices.line("run: two") == str(runs / "two")
    (runs / "two" / "config.yaml").unlink()
    with pytest.raises(UserError, match="The model is not in the list"):
        choices.line("run: two")


@pytest.mark.parametrize(
    "name",
    [
        "backbone=tiny head._target_=os.system", "backbone=dinov2", "checkpoint=/x", "dinov2 head._target_=os.system",
        "dinov2\n", " dinov2", "DINOV2", "tiny", "timm", "transformers", "", "../backbone/dinov2", "dinov2.yaml",
        "run: ../outside", "run: linked", "run: file", "run: empty", "run: one/../../outside", "run: ./one", "run: ",
        "run: .", "run: .hidden", "run: one ", "run:one", "one", "{runs}/one", "run: {runs}/one", "run: {outside}",
        "{outside}", "run: one\0", 0, 10**6, -1, 1.5, True, None, ["dinov2"], {"value": "dinov2"}, b"dinov2",
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_not_in_the_list_is_refused(runs, name):
    if isinstance(name, str):
        name = name.replace("{runs}", str(runs)).replace("{outside}", str(runs.parent / "outside"))
    with pytest.raises(UserError, match="The model is not in the list"):
        ModelChoices("efficientnet_lite0", runs).line(name)


def test_the_command_lines_own_line_is_its_owners(runs):
    line = "backbone=tiny localise.window=3"
    assert ModelChoices(line, runs).line(line) == line
    with pytest.raises(UserError):
        ModelChoices(line, runs).line("backbone=tiny localise.window=5")
