import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig

from semcorr.core.errors import UserError
from semcorr.models.backbones.transformers_model import TransformersModel
from semcorr.models.weights.hub import download_error


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
def test_the_hubs_refusals_are_told_with_three_ways_out(monkeypatch, error, parts):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)

    with pytest.raises(UserError) as told:
        TransformersModel("facebook/dinov3", size=64)

    for part in [*parts, "Three ways out", "backbone.weights=FILE", "backbone.pretrained=false"]:
        assert part in str(told.value)


def test_a_gated_repository_is_named_where_it_is_not_the_networks_name():
    assert "https://huggingface.co/timm/some" in str(download_error(gated(), "some.tag", "timm/some"))
