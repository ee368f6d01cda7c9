"""The command semcorr backbones, and the facts that it prints, against the libraries that build the networks."""

from io import StringIO

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from repository import ROOT
from rich.console import Console

from semcorr import backbones
from semcorr.engine.packages import list_choices
from semcorr.models.backbones import diffusion, segment_anything, timm_model, vjepa2
from semcorr.models.backbones.network_facts import read_network_facts

pytestmark = pytest.mark.integration

PUBLISHED = read_network_facts()
LICENCES = {  # timm's words: ours
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "dinov3-license": "DINOv3 License",
    "nvidia-open-model-license": "NVIDIA Open Model License",
    "fair-noncommercial-research-license": "FAIR Noncommercial Research License",
    "apple-ascl": "Apple ASCL",
    "sapiens2-license": "Sapiens2 License",
}
ELSEWHERE = {"webssl"}  # whose config is on the hub alone


def composed(name: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(overrides=[f"+backbone={name}"]).backbone
    if "pretrained" in config:
        config.pretrained = False
    return config


def test_every_backbone_has_a_line_with_its_facts(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code = backbones.main([])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}

    assert code == 0
    assert set(PUBLISHED) == {*list_choices("backbone")} - {"timm", "transformers", "tiny"}
    assert set(PUBLISHED) <= set(lines)
    assert " ".join(lines["dinov2"].split()[1:]) == "vit_base_patch14_dinov2.lvd142m 14 768 86.6 M Apache-2.0 no"
    assert "303.1 M  DINOv3 License" in lines["dinov3_sat"]
    assert "unknown" in lines["webssl"]


def test_licences_are_those_that_timm_states():
    """But for OpenAI's CLIP, which is MIT: timm has the default of its Vision Transformers there."""
    stated = {name: timm.get_pretrained_cfg(facts.network) for name, facts in PUBLISHED.items() if named_by_timm(facts)}
    stated = {name: config.license for name, config in stated.items() if config and not name.startswith("clip")}

    assert len(stated) > 40
    assert {name: PUBLISHED[name].licence for name in stated} == {name: LICENCES[word] for name, word in stated.items()}


def named_by_timm(facts) -> bool:
    return facts.network in timm.list_models(f"{facts.network.partition('.')[0]}.*", pretrained=True)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - ELSEWHERE))
def test_sizes_are_those_of_the_network_that_is_built(monkeypatch, name):
    for module in (timm_model, segment_anything, diffusion, vjepa2):
        monkeypatch.setattr(module, "weights_sha256", lambda _: "")
    config, facts = composed(name), PUBLISHED[name]
    is_small = facts.parameters < 1e6
    with torch.device("cpu" if is_small else "meta"):  # shapes without memory, nor values
        backbone = instantiate(config)

    assert config.get("name", name) == facts.network
    assert (backbone.stride, list(backbone.widths)) == (facts.patch, facts.widths)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == facts.parameters


def test_names_are_whole_in_a_narrow_terminal():
    console = Console(width=60, file=StringIO())
    console.print(backbones.build_backbone_table())
    printed = {line.split()[0] for line in console.file.getvalue().splitlines() if line.strip()}
    assert set(PUBLISHED) <= printed
