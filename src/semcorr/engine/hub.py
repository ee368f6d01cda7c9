"""The Hugging Face Hub: shared runs are downloaded from it and uploaded to it."""

import errno
import json
import os
import re
from pathlib import Path

from semcorr.core.errors import UserError
from semcorr.core.files import write_error
from semcorr.engine.run_dir import WEIGHTS
from semcorr.engine.saved_config import CONFIG
from semcorr.engine.shared_run import CARD
from semcorr.models.weights.hub import require_hub

SCHEME = "hf://"
ADDRESS = re.compile(rf"{SCHEME}(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
FORM = f"{SCHEME}USER/NAME or {SCHEME}USER/NAME@REVISION"
OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of the folder that is written to


def parse_address(address: str) -> tuple[str, str | None]:
    """Return the repository and the revision of an address, without asking the hub.

    Raises:
        UserError: The address has another form.
    """
    match = ADDRESS.fullmatch(address)
    if match is None or not _is_repo(match["repo"]):
        raise UserError(f"`model`: {address} is not an address on the Hugging Face Hub. Give {FORM}.")
    return match["repo"], match["revision"]


def download_run(address: str) -> Path:
    """Download a shared run into Hugging Face's own cache: its configuration and weights, no other file.

    Args:
        address: `hf://user/name`, or with a branch, tag or commit `hf://user/name@revision`.

    Returns:
        The folder, to be read as any run of somebody else's.

    Raises:
        UserError: The address has another form; the hub, the repository or the revision is out of reach, or has no
            shared run.
    """
    repo, revision = parse_address(address)
    from huggingface_hub import HfApi, constants

    try:
        require_hub(repo)
        folder = HfApi(endpoint=find_endpoint()).snapshot_download(
            repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS]
        )
    except Exception as error:  # of the hub's client: its errors have no other class in common
        if isinstance(error, OSError) and error.errno in OF_DISK:
            raise UserError(write_error(Path(constants.HF_HUB_CACHE), error, "HF_HUB_CACHE")) from error
        if (reason := _explain(error, repo, revision)) is None:
            raise
        raise UserError(f"`model`: {reason}") from error
    missing = [name for name in (CONFIG, WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(
            f"`model`: {address} has no {' and no '.join(missing)}: it is not a model that semcorr has exported. "
            "Give one of `python -m semcorr.export RUN --format hf`."
        )
    return Path(folder)


def find_endpoint() -> str:
    """Return the address of the hub: $HF_ENDPOINT, or that of huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def require_token(repo: str) -> str:
    """Return the user's token; refuse, before any work, to upload without one.

    Raises:
        UserError: There is none, or the repository's name has another form.
    """
    from huggingface_hub import get_token

    if repo.count("/") != 1 or not _is_repo(repo):
        raise UserError(f"--push must be USER/NAME on the Hugging Face Hub, got {repo!r}")
    token = get_token()
    if not token:
        raise UserError("--push needs a token that may write: set HF_TOKEN, or type `hf auth login`")
    return token


def push_run(folder: Path, repo: str, token: str, private: bool = False) -> str:
    """Upload a shared run, in one commit, to a repository that is made if it is missing.

    Args:
        folder: The folder; other files in it stay here.
        repo: `user/name`.
        token: A token that may write.
        private: Whether the repository must be private: a new one is made so, and an existing public one is refused.
            If not, a new one is as public as its owner, such as an organisation, has set for new repositories.

    Returns:
        The address of the commit, with `(private)` or `(public)` after it.

    Raises:
        UserError: The hub is out of reach, or refuses the token or the model card.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=find_endpoint(), token=token)
    try:
        api._validate_yaml((folder / CARD).read_text(encoding="utf-8"))  # before there is an empty repository
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: as its owner has them by default
        is_private = bool(api.model_info(repo).private)
        if private and not is_private:
            raise UserError(f"--private: {find_endpoint()}/{repo} is public. Make it private there, or give another.")
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, CARD], commit_message="Upload by semcorr"
        )
    except UserError:
        raise
    except Exception as error:
        if (reason := _explain(error, repo, None, writes=True)) is None:
            raise
        raise UserError(f"--push: {reason} What was exported is in {folder}.") from error
    return f"{commit.commit_url} ({'private' if is_private else 'public'})"


def _is_repo(name: str) -> bool:
    """Tell whether the hub's client takes the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _explain(error: Exception, repo: str, revision: str | None, writes: bool = False) -> str | None:
    """Return the sentence for an error of the hub's client; None if it is a defect of ours."""
    from huggingface_hub import errors

    page = f"{find_endpoint()}/{repo}"
    responses = (getattr(cause, "response", None) for cause in (error, error.__cause__))
    status = next((response.status_code for response in responses if response is not None), None)
    if writes and status in (401, 403):
        return f"{find_endpoint()} refuses the token for {repo}. Give one that may write there, by HF_TOKEN."
    if isinstance(error, errors.GatedRepoError):
        return f"{page} is gated: its owner hands it out on request. Ask there, then set HF_TOKEN or `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return f"There is no {page} that you may see. Correct the name, or, if it is private, set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} has no revision {revision}. Give one of its branches, tags or commits."
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    if first.startswith("Invalid metadata"):  # a plain ValueError, with the hub's reasons in the lines below
        reason = " ".join(line.removeprefix("- ") for line in others)
        return f"{find_endpoint()} refuses the model card ({reason:.200}). Give another --license, as apache-2.0."
    if status is not None:
        return f"{page} answered {status} ({first.rstrip('.'):.200}). Try again later."
    lines = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()
    is_of_client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
    if is_of_client or isinstance(error, OSError | errors.EntryNotFoundError | json.JSONDecodeError):
        return f"{page} could not be reached ({lines[0].rstrip('.'):.200}). Connect to the internet and run again."
    return None
