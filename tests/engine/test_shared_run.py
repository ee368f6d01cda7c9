"""A run as a folder for others: the same model to the bit, from a disk or a hub; mistakes in one sentence."""

import errno
import json
import os
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
import yaml
from exported_runs import run as run
from exported_runs import runs as runs
from exported_runs import typed as typed
from fake_hub import COMMIT, TOKEN
from fake_hub import hub as hub
from hostile_configs import CODE, MARKER
from omegaconf import OmegaConf
from PIL import Image
from repository import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from semcorr import Matcher, match, train
from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonObject
from semcorr.engine.checkpoints import weight_settings
from semcorr.engine.hub import push_run
from semcorr.engine.model_card import format_model_card
from semcorr.engine.run_dir import WEIGHTS
from semcorr.engine.shared_run import CARD, shared_config_text, shared_facts
from semcorr.inference.load import restore_model

pytestmark = pytest.mark.integration
LINE = ("head=bottleneck",)


@pytest.fixture
def shared(run: Callable[..., Path], typed: Callable[..., int], tmp_path: Path) -> Path:
    """A run with a trained backbone and a trained head, as exported."""
    assert typed(run("last_blocks", *LINE), "--format", "hf", "--out", "shared", "--license", "apache-2.0") == 0
    return tmp_path / "shared"


def answers(matcher: Matcher) -> Tensor:
    a, b = (torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    match = matcher.match(a, b, points=[(10, 20), (60.5, 33)])
    return torch.cat([match.points.flatten(), match.scores.flatten()])


def weights(matcher: Matcher) -> dict[str, Tensor]:
    return matcher.module.state_dict()


def catch_message(model: object) -> str:
    with pytest.raises(UserError) as error:
        Matcher.load(model, device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_shared_folder_is_the_run_to_the_bit(run, shared):
    ours, reference = (Matcher.load(folder, device="cpu") for folder in (run("last_blocks", *LINE), shared))

    assert all(torch.equal(value, weights(reference)[name]) for name, value in weights(ours).items())
    assert torch.equal(answers(ours), answers(reference))
    assert sorted(path.name for path in shared.iterdir()) == [CARD, "config.yaml", WEIGHTS]


def test_the_card_says_what_the_model_is_and_what_it_scores(run, shared):
    _, front, text = (shared / CARD).read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    scores = json.loads((run("last_blocks", *LINE) / "metrics.json").read_text())["pck"]
    config = yaml.safe_load((shared / "config.yaml").read_text())

    assert (card["license"], card["library_name"]) == ("apache-2.0", "semcorr")
    (result,) = card["model-index"][0]["results"]
    listed = {metric["name"]: metric["value"] for metric in result["metrics"]}
    expected = {f"PCK@0.1 per image, {name}": round(100 * scores[name]["image"]["0.1"], 2) for name in scores}
    assert listed == expected
    assert config["provenance"]["weights_sha256"] in text
    assert 'Matcher.load("hf://USER/last_blocks")' in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text


def test_nothing_says_where_files_lay_here(shared):
    with safe_open(shared / WEIGHTS, "pt") as file:
        metadata = json.dumps(file.metadata())
    for text in ((shared / "config.yaml").read_text(), (shared / CARD).read_text(), metadata):
        assert str(Path.home()) not in text or str(Path.home()) == "/"
        assert str(shared.parent.parent) not in text


def test_a_hub_gives_the_same_model(shared, hub):
    hub.add("someone/cats", shared)
    (shared / "evil.py").write_text("raise SystemExit")
    hub.add("someone/more", shared)
    here = answers(Matcher.load(shared, device="cpu"))

    for address in ("hf://someone/cats", "hf://someone/cats@v1", f"hf://someone/more@{COMMIT}"):
        assert torch.equal(answers(Matcher.load(address, device="cpu")), here)
    assert not [requested for requested in hub.asked if "evil.py" in requested or CARD in requested]


def test_a_command_asks_the_hub_once_and_records_its_address(shared, hub, tmp_path, monkeypatch):
    hub.add("someone/cats", shared)
    Image.new("RGB", (96, 96), "red").save(tmp_path / "a.png")
    line = ["a.png", "a.png", "--points", "20,30", "--model", "hf://someone/cats@v1", "--device", "cpu"]
    code = match.main(line)

    assert code == 0
    assert json.loads((tmp_path / "matches/matches.json").read_text())["model"] == "checkpoint=hf://someone/cats@v1"
    assert (
        len([requested for requested in hub.asked if requested.startswith("GET /api/models/someone/cats/revision")])
        == 1
    )
    assert restore_model("hf://someone/cats").config_line == "checkpoint=hf://someone/cats"


def test_what_is_pushed_is_what_is_loaded(run, shared, typed, hub, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert typed(run("last_blocks", *LINE), "--format", "hf", "--out", "pushed", "--push", "someone/cats") == 0
    assert f"Uploaded: {hub.address}/someone/cats/commit/{COMMIT} (public)" in capfd.readouterr().out
    assert sorted(hub.repos["someone/cats"]) == [CARD, "config.yaml", WEIGHTS]
    assert 'Matcher.load("hf://someone/cats")' in hub.repos["someone/cats"][CARD].decode()

    there = Matcher.load("hf://someone/cats", device="cpu")
    assert torch.equal(answers(there), answers(Matcher.load(shared, device="cpu")))


def test_pushing_without_a_token_is_refused_before_any_work(run, typed, hub, tmp_path, capfd, monkeypatch):
    line = (run("last_blocks", *LINE), "--format", "hf", "--out", "pushed", "--push")
    capfd.readouterr()
    assert typed(*line, "someone/cats") == 2
    assert "--push needs a token that may write: set HF_TOKEN" in capfd.readouterr().err
    assert typed(*line, "cats") == 2
    assert "--push must be USER/NAME" in capfd.readouterr().err
    assert typed(*line, "someone/a--b") == 2
    assert "--push must be USER/NAME on the Hugging Face Hub, got 'someone/a--b'" in capfd.readouterr().err
    assert typed(run("last_blocks", *LINE), "--push", "someone/cats") == 2
    assert "--push goes with --format hf, got --format merged. Give that" in capfd.readouterr().err
    assert typed(*line[:-1], "--private") == 2
    assert "--private goes with --push" in capfd.readouterr().err
    assert not (tmp_path / "pushed").exists()
    assert not hub.asked

    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert typed(*line, "someone/cats") == 2
    error = capfd.readouterr().err
    assert f"--push: {hub.address} refuses the token for someone/cats." in error
    assert "What was exported is in pushed" in error


def test_a_hub_that_cannot_give_a_model_says_why(shared, hub, monkeypatch):
    hub.add("someone/cats", shared)
    hub.repos["someone/empty"] = {"README.md": b"nothing"}
    hub.private.add("someone/private")

    for address in ("hf://cats", "hf://user/a--b", "hf://user/name.", "hf://user/name.git@v1"):
        assert f"{address} is not an address on the Hugging Face Hub. Give hf://USER/NAME or" in catch_message(address)
    for repo in ("nobody/nothing", "someone/private"):
        assert catch_message(f"hf://{repo}").startswith(
            f"`model`: There is no {hub.address}/{repo} that you may see. Correct"
        )
    assert f"{hub.address}/someone/cats has no revision v9" in catch_message("hf://someone/cats@v9")
    assert "hf://someone/empty has no config.yaml and no model.safetensors: it is not a model" in catch_message(
        "hf://someone/empty"
    )
    hub.broken = 429
    assert f"{hub.address}/someone/other answered 429 (" in catch_message("hf://someone/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert "http://127.0.0.1:9/someone/other could not be reached (" in catch_message("hf://someone/other")


def test_a_full_disk_is_no_missing_network(hub, monkeypatch):
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", fill)
    output = catch_message("hf://someone/cats")
    assert "`HF_HUB_CACHE`: " in output
    assert "cannot be written (No space left on device). Free some space" in output


def test_a_hub_that_refuses_what_is_pushed_says_why_and_holds_nothing(run, typed, hub, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    line = (run("last_blocks", *LINE), "--format", "hf", "--out", "pushed", "--force", "--push", "someone/cats")

    assert typed(*line, "--license", "banana") == 2
    error = capfd.readouterr().err
    assert 'refuses the model card ("license" must be one of [apache-2.0, mit]). Give another --license' in error
    hub.broken = 413
    assert typed(*line) == 2
    assert f"--push: {hub.address}/someone/cats answered 413 (" in capfd.readouterr().err
    hub.broken = 0
    assert "someone/cats" not in hub.repos

    assert typed(*line, "--private") == 0
    assert hub.private == {"someone/cats"}
    assert f"{COMMIT} (private)" in capfd.readouterr().out
    hub.private.clear()
    assert typed(*line, "--private") == 2
    assert f"--private: {hub.address}/someone/cats is public. Make it private there" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("default", "private", "visible"),
    [
        ("public", False, "public"),
        ("private", False, "private"),
        ("public", True, "private"),
        ("private", True, "private"),
    ],
)
def test_a_new_repository_is_as_its_owner_makes_them_unless_asked_to_be_private(shared, hub, default, private, visible):
    hub.default = default

    assert push_run(shared, "someone/cats", TOKEN, private).endswith(f"({visible})")
    assert hub.private == ({"someone/cats"} if visible == "private" else set())


def test_the_weights_say_no_more_of_places_than_the_configuration_and_agree_with_it(run, typed, monkeypatch):
    cfg = OmegaConf.create(
        {
            "seed": 1,
            "data": {"annotations": "/home/me/a.json", "train": "/home/me/t.csv", "images": "/home/me/images"},
            "backbone": {"dino_weights": "/home/me/f.pth", "weights": "w.pth"},
            "finetune": {"init_weights": "bat"},
        }
    )
    before: JsonObject = weight_settings(yaml.safe_load(OmegaConf.to_yaml(cfg)))

    facts = shared_facts({"base": {}, "trained_as": before})
    settings = weight_settings(yaml.safe_load(shared_config_text(cfg)))

    assert facts["trained_as"] == settings
    assert "/home" not in json.dumps(facts)
    assert (settings["finetune.init_weights"], settings["data.train"]) == ("bat", "t.csv")
    assert settings["backbone.dino_weights"] is None

    monkeypatch.setattr("semcorr.engine.export.shared_config_text", lambda cfg: OmegaConf.to_yaml({**cfg, "seed": 9}))
    with pytest.raises(RuntimeError, match="is not what"):
        typed(run("last_blocks", *LINE), "--format", "hf", "--out", "shared")


def test_the_last_checkpoint_has_no_scores_and_a_run_is_not_replaced_by_its_own_export(run, typed, tmp_path, capfd):
    trained = run("last_blocks", *LINE)
    before = (trained / "config.yaml").read_bytes()

    assert typed(trained, "--format", "hf", "--out", "last", "--which", "last") == 0
    assert "No scores were recorded" in (tmp_path / "last" / CARD).read_text()
    assert typed(trained, "--format", "hf", "--out", trained, "--force") == 2
    assert "is the run itself, whose config.yaml would be replaced" in capfd.readouterr().err
    assert (trained / "config.yaml").read_bytes() == before


def test_a_benchmark_without_geometry_aware_keypoints_has_no_score_of_them(run):
    folder = run("last_blocks", *LINE)
    facts = {"trained": "1", "checkpoint": "best"}
    scores = json.loads((folder / "metrics.json").read_text())
    scores["pck"]["geo"]["image"]["0.1"] = None
    cfg = OmegaConf.load(folder / "config.yaml")

    (folder.parent / "metrics.json").write_text(json.dumps(scores))
    card = format_model_card(cfg, folder.parent, "hf://a/b", "other", facts)

    front = yaml.safe_load(card.split("---\n", 2)[1])
    names = [metric["name"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert names == ["PCK@0.1 per image, all", "PCK@0.1 per image, std"]
    assert "| geo | - |" in card


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged ("),
        (lambda path: path.write_bytes(b"\xff" * 64), "is damaged ("),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        (lambda path: path.write_bytes(b""), "is damaged ("),
    ],
)  # fmt: skip
def test_damaged_weights_are_refused(shared, hub, damage, expected):
    damage(shared / WEIGHTS)
    hub.add("someone/cats", shared)

    for model in (shared, "hf://someone/cats"):
        output = catch_message(model)
        assert WEIGHTS in output
        assert expected in output


def test_weights_of_another_run_or_without_their_base_are_refused(shared):
    state = load_file(shared / WEIGHTS)
    with safe_open(shared / WEIGHTS, "pt") as file:
        facts = file.metadata()
    name = next(iter(state))
    infinite = {**state, name: torch.full_like(state[name], torch.inf)}
    for given, metadata, expected in (
        (state, {"base": "{"}, "is damaged ("),
        (state, None, "it does not say in `base` which weights it was trained from"),
        (infinite, facts, "not finite"),
        (dict([*state.items()][1:]), facts, name),
    ):
        save_file(given, shared / WEIGHTS, metadata)
        assert expected in catch_message(shared), expected

    save_file(state, shared / WEIGHTS, facts)
    text = (shared / "config.yaml").read_text()
    (shared / "config.yaml").write_text(text.replace("seed: ", "seed: 1"))
    assert "was trained on vit_tiny_patch16_224 with weights sha256" in catch_message(shared)


@pytest.mark.parametrize("attack", CODE)
@pytest.mark.sampled(8)
def test_a_downloaded_configuration_is_as_untrusted_as_any(shared, hub, attack):
    content = CODE[attack](yaml.safe_load((shared / "config.yaml").read_text()))
    (shared / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    hub.add("someone/cats", shared)

    catch_message("hf://someone/cats")
    assert not list(shared.parent.rglob(MARKER))


def test_pytorch_hub_loads_the_same_matcher(shared, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    entry = torch.hub.load(str(ROOT), "matcher", str(shared), source="local", device="cpu")
    assert torch.equal(answers(entry), answers(Matcher.load(shared, device="cpu")))


def test_pytorch_hub_asks_for_what_is_installed_by_default():
    known = packages_distributions()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    expected = {re.split(r"[<>=~;\[ ]", requirement)[0].replace("_", "-").lower() for requirement in declared}
    path = [*sys.path]
    try:
        listed = runpy.run_path(str(ROOT / "hubconf.py"))["dependencies"]
    finally:
        sys.path[:] = path
    found = {known[name][0].replace("_", "-").lower() for name in listed}
    assert found == expected


def test_a_shared_folder_is_exported_again_and_not_trained_on(shared, typed, capfd, monkeypatch):
    assert typed(shared, "--format", "hf", "--out", "again") == 0
    assert torch.equal(answers(Matcher.load("again", device="cpu")), answers(Matcher.load(shared, device="cpu")))
    before = {path: path.read_bytes() for path in shared.iterdir()}
    capfd.readouterr()

    assert typed(shared, "--which", "last") == 2
    assert "does not exist" in capfd.readouterr().err
    code = train.main([f"checkpoint={shared}"])
    assert code == 2
    assert "was exported for sharing, without the state of the optimiser" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in shared.iterdir()} == before
