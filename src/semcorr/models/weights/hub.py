"""Downloads of weights: whether there is a network, and errors with the remedies."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from semcorr.core.errors import UserError

RANDOM = "backbone.pretrained=false for random weights."


def download_error(error: BaseException, name: str, repo: str | None = None, file: str | None = None) -> UserError:
    """Build the error for weights that could not be downloaded, with the remedies.

    Args:
        error: Error that the download raised.
        name: Name of the weights.
        repo: Repository on the Hugging Face hub that they are in; `name` if left out.
        file: Address that they are at, if they are not on the hub.

    >>> print(download_error(OSError("no route to host"), "some_model", "timm/some_model"))
    ... # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
    The weights of some_model could not be downloaded (no route to host). Three ways out: connect to the internet and
    run again; fetch https://huggingface.co/timm/some_model/resolve/main/model.safetensors elsewhere and give it as
    backbone.weights=FILE, or set HF_HUB_CACHE to a cache that has it; backbone.pretrained=false for random weights.
    """
    page, chain = f"https://huggingface.co/{repo or name}", list(_iterate_causes(error))
    local = f"backbone.weights=FILE with a local file; {RANDOM}"
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        return UserError(
            f"The weights of {name} are gated: their owner grants access on request. Three ways out: ask at "
            f"{page}, then `hf auth login` and run again; {local}"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return UserError(
            f"There is no {page} that you may see. Three ways out: correct `backbone.name`, or `hf auth login` if it "
            f"is private; {local}"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    cache = "" if file else ", or set HF_HUB_CACHE to a cache that has it"
    return UserError(
        f"The weights of {name} could not be downloaded ({reason}). Three ways out: connect to the internet and run "
        f"again; fetch {file or page + '/resolve/main/model.safetensors'} elsewhere and give it as "
        f"backbone.weights=FILE{cache}; {RANDOM}"
    )


def require_hub(repository: str) -> None:
    """Refuse at once to download from a hub whose address is unknown: its client would try again for a minute.

    Nothing is refused for a local folder, for a repository of which something is in the cache, in offline mode, and
    with a proxy, which looks addresses up by itself.

    Args:
        repository: ACCOUNT/MODEL, or a folder.

    Raises:
        OSError: The hub has no address: there is no network.
    """
    cached = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    if Path(repository).exists() or cached.exists() or constants.HF_HUB_OFFLINE:
        return
    if getproxies().keys() & {"http", "https", "all"}:
        return
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    host = urlsplit(endpoint).hostname
    if host is None:
        raise OSError(f"HF_ENDPOINT must be an address, as https://hub.example, got {endpoint!r}")
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError) as error:  # the latter of a name that cannot be one
        raise OSError(f"no network: {host} has no address") from error


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
