"""Masks from Segment Anything, prompted with the object's box, as in the released code of the paper with ViT-H."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool
from PIL import ImageOps
from torch import Tensor

from semcorr.core.errors import UserError
from semcorr.data.record import ImageRecord
from semcorr.data.transforms import load_image
from semcorr.models.weights.checkpoints import read_weights
from semcorr.models.weights.loading import load_weights
from semcorr.models.weights.networks import recognise_weights

if TYPE_CHECKING:
    from segment_anything import SamPredictor

MODELS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the width of the encoder


class BoxPromptedSAM:
    """Segment Anything as a function of image records, by the model of the package `segment-anything`.

    Args:
        predictor: The package's `SamPredictor`.
    """

    def __init__(self, predictor: "SamPredictor") -> None:
        self.predictor = predictor

    def __call__(self, record: ImageRecord) -> Bool[Tensor, "h w"]:
        """Segment the object in the record's box, at the model's own image size, whatever the backbone's."""
        image = load_image(record.path, record.upright)
        self.predictor.set_image(np.array(ImageOps.mirror(image) if record.mirrored else image))
        masks, _, _ = self.predictor.predict(box=np.array(record.box), multimask_output=False)
        if not masks[0].any():
            raise UserError(f"`pose.mask`: Segment Anything found nothing in the box of {record.name}. Use box instead")
        return torch.from_numpy(masks[0])


def load_box_prompted_sam(weights: str, device: torch.device) -> BoxPromptedSAM:
    """Load the model from the authors' checkpoint, whose width says which model it is."""
    from segment_anything import SamPredictor, sam_model_registry

    state = read_weights(weights, "pose.sam_weights")
    positions = state.get("image_encoder.pos_embed")
    name = None if positions is None else MODELS.get(positions.shape[-1])
    if name is None:
        raise UserError(
            f"`pose.sam_weights`: {Path(weights)} is no whole Segment Anything model (vit_b, vit_l, vit_h). "
            f"{recognise_weights(state)} Give the authors' checkpoint, such as sam_vit_h_4b8939.pth.".replace("  ", " ")
        )
    model = sam_model_registry[name]()
    load_weights(model, state, weights, option="pose.sam_weights")
    return BoxPromptedSAM(SamPredictor(model.eval().to(device)))
