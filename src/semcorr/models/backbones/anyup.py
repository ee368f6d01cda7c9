"""Upsamplers with weights from the repository of their authors, through torch.hub: AnyUp."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semcorr.core.errors import UserError
from semcorr.core.ranges import Count, check_arguments
from semcorr.models.backbones.upsampled import Factor, FeatureUpsampler

# Its code is run, so a configuration cannot name another repository, and another commit is not taken unread.
REPOSITORY = "wimmerth/anyup:099432746871214b2732890da86ba02b94a1a59b"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of what it sees


class AnyUp(FeatureUpsampler):
    """AnyUp (Wimmer et al., arXiv 2510.12764), from its authors' repository, whose licence is CC-BY-4.0.

    It takes an image normalised by ImageNet's statistics and features of any channels. Nothing of it is part of
    semcorr: torch.hub downloads one commit of github.com/wimmerth/anyup and its weights, and runs its code.

    Args:
        factor: Fine cells along the side of a cell.
        entry: `anyup`, trained on DINOv2-S as in the paper, or `anyup_multi_backbone`, trained on several.
        chunk: Number of fine cells whose attention is computed at once; None, all.

    Raises:
        UserError: The repository or its weights cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    @check_arguments("backbone.upsample")
    def __init__(
        self,
        factor: Factor = 2,
        entry: Literal["anyup", "anyup_multi_backbone"] = "anyup_multi_backbone",
        chunk: Count | None = None,
    ) -> None:
        super().__init__()
        self.factor, self.chunk = factor, chunk
        self.network = load_from_hub(REPOSITORY, entry)
        for key, values in zip(("mean", "std"), IMAGENET, strict=True):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)

    def make_guide(self, image: Float[Tensor, "b 3 height width"], grid: tuple[int, int]) -> Float[Tensor, "b 3 _ _"]:
        """Return images as they are: the network sees every pixel."""
        return image

    def forward(
        self, values: Float[Tensor, "b c h w"], guide: Float[Tensor, "b 3 _ _"]
    ) -> Float[Tensor, "b c rows columns"]:
        """Return the features on a grid `factor` times as fine."""
        size = (values.shape[-2] * self.factor, values.shape[-1] * self.factor)
        image = (guide - self.mean) / self.std
        fine: Tensor = self.network(image, values, output_size=size, q_chunk_size=self.chunk)
        return fine


def load_from_hub(repository: str, entry: str) -> nn.Module:
    """Load a network by a function of the hubconf.py of a repository, from torch.hub's cache where it is there.

    Args:
        repository: `owner/name:commit` on GitHub.
        entry: Name of the function, which takes no required arguments.

    Raises:
        UserError: It cannot be loaded; the message says why and what to do.
    """
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # progress bars
            # A commit is not a branch, by which torch.hub tells a repository from its forks.
            network = torch.hub.load(repository, entry, trust_repo=True, skip_validation=True, verbose=False)
    except Exception as error:  # whatever their code raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"`backbone.upsample`: {entry} of github.com/{repository.partition(':')[0]} could not be loaded by "
            f"torch.hub ({reason}). Connect to the internet and run again, set TORCH_HOME to a cache that has it, or "
            "give backbone.upsample=joint_bilateral, which has no weights."
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"`backbone.upsample`: {entry} of {repository} is a {type(network).__name__}, not a network.")
    return network
