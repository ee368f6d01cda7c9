"""What went wrong with a download, as a sentence with the ways out."""

from collections.abc import Iterator

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from semcorr.errors import UserError

LOCAL = "backbone.weights=FILE with a local file; backbone.pretrained=false for random weights."


def hub_problem(error: BaseException, name: str, repo: str | None = None) -> UserError:
    """The weights `name` did not come from the Hugging Face repository `repo`.

    >>> print(hub_problem(OSError("no route to host"), "some_model"))  # doctest: +ELLIPSIS
    The weights of some_model could not be downloaded (no route to host). Three ways out: connect to the internet...
    """
    chain = list(_chain(error))
    if any(isinstance(each, GatedRepoError) for each in chain):
        return UserError(
            f"The weights of {name} are gated: their owner hands them out on request. Three ways out: ask at "
            f"https://huggingface.co/{repo or name}, then `hf auth login` and run again; {LOCAL}"
        )
    if any(isinstance(each, RepositoryNotFoundError) for each in chain):
        return UserError(
            f"There is no https://huggingface.co/{repo or name} that you may see. Three ways out: correct "
            f"`backbone.name`, or `hf auth login` if it is private; {LOCAL}"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(
        f"The weights of {name} could not be downloaded ({reason}). Three ways out: connect to the internet and "
        f"run again, or download them elsewhere and set HF_HUB_CACHE to that cache; {LOCAL}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
