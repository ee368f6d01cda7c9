"""A loss is a function of similarity, true cells and the points that count."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from semcorr.core.ranges import Temperature, check_arguments
from semcorr.matching.readouts import soft_argmax
from semcorr.models.losses.inputs import mask_values, weighted_mean


@check_arguments("loss")
def my_loss(
    similarity: Float[Tensor, "b n h w"],
    cells: Float[Tensor, "b n 2"],
    mask: Bool[Tensor, "b n"] | Float[Tensor, "b n"],
    temperature: Temperature = 0.05,
) -> Float[Tensor, ""]:
    """Compute the smooth L1 distance of soft-argmax to the true cell, in cells."""
    predictions = soft_argmax(mask_values(similarity, mask), temperature)
    return weighted_mean(smooth_l1_loss(predictions, mask_values(cells, mask), reduction="none").sum(-1), mask)
