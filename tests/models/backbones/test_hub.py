import socket
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig

from semcorr.core.errors import UserError
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.backbones.transformers_model import TransformersModel
from semcorr.models.weights.hub import download_error, require_hub


class Response:
    """What the hub's errors are made of."""

    headers: dict = {}  # noqa: RUF012
    status_code = 403
    request = None


def gated() -> OSError:
    error = OSError("You are trying to access a gated repo.\nMake sure ...")
    error.__cause__ = GatedRepoError("403 Client Error", response=Response())
    return error


def absent() -> OSError:
    error = OSError("x is not a local folder and is not a valid model identifier")
    error.__cause__ = RepositoryNotFoundError("401 Client Error", response=Response())
    return error


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (gated(), ["are gated", "https://huggingface.co/facebook/dinov3", "hf auth login"]),
        (absent(), ["no https://huggingface.co/facebook/dinov3", "`backbone.name`"]),
        (LocalEntryNotFoundError("no network"), ["could not be downloaded (no network)", "HF_HUB_CACHE"]),
        (OSError(""), ["could not be downloaded (OSError)", "connect to the internet"]),
    ],
)
def test_the_hubs_refusals_are_reported_with_three_ways_out(monkeypatch, error, parts):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])

    with pytest.raises(UserError) as message:
        TransformersModel("facebook/dinov3", size=64)

    for part in [*parts, "Three ways out", "backbone.weights=FILE", "backbone.pretrained=false"]:
        assert part in str(message.value)


def test_a_gated_repository_is_named_where_it_is_not_the_networks_name():
    assert "https://huggingface.co/timm/some" in str(download_error(gated(), "some.tag", "timm/some"))


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """The hub has no address, and its cache is this empty folder."""

    def fail(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "build",
    [lambda: TransformersModel("facebook/dinov3", size=64), lambda: TimmModel("vit_small_patch14_dinov2", size=56)],
)
def test_without_a_network_nothing_is_tried_again_for_a_minute(monkeypatch, no_network, build):
    def connect(*_, **__):
        raise AssertionError("the client is not asked")

    monkeypatch.setattr(AutoConfig, "from_pretrained", connect)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", connect)

    with pytest.raises(UserError, match=r"\(no network: huggingface\.co has no address\)\. Three ways out"):
        build()


@pytest.mark.parametrize("way", ["folder", "cache", "proxy", "offline"])
def test_where_the_network_is_not_needed_it_is_not_asked_for(monkeypatch, no_network, tmp_path, way):
    repository = "facebook/dinov3"
    with pytest.raises(OSError, match="no network"):
        require_hub(repository)
    if way == "folder":
        repository = str(tmp_path)
    elif way == "cache":
        (no_network / "models--facebook--dinov3").mkdir()
    elif way == "proxy":
        monkeypatch.setenv("no_proxy", "localhost")  # which is none
        with pytest.raises(OSError, match="no network"):
            require_hub(repository)
        monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    require_hub(repository)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [("hub.example", "HF_ENDPOINT must be an address"), ("https://a..b", "no network: a..b has no address")],
)
def test_a_mirror_of_the_hub_must_have_an_address(monkeypatch, tmp_path, endpoint, message):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("semcorr.models.weights.hub.getproxies", dict)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(OSError, match=message):
        require_hub("facebook/dinov3")
