"""Steps after the features of any backbone, by the options that ask for them."""

from semcorr.core.interfaces import Backbone
from semcorr.core.ranges import Count, check_arguments
from semcorr.models.backbones.debiased import DebiasedBackbone
from semcorr.models.backbones.upsampled import FeatureUpsampler, UpsampledBackbone


@check_arguments("backbone")
def add_steps(backbone: Backbone, debias: Count | None = None, upsample: FeatureUpsampler | None = None) -> Backbone:
    """Return a backbone with the steps that are given: its features are debiased first, then upsampled.

    Args:
        backbone: Any backbone; with a step, its features must be of one image alone.
        debias: Number of positional directions that are projected out; None leaves them in.
        upsample: Upsampler that sees the image; None leaves the grid as it is.

    Raises:
        UserError: A step does not fit the backbone.
    """
    if debias is not None:
        backbone = DebiasedBackbone(backbone, debias)
    if upsample is not None:
        backbone = UpsampledBackbone(backbone, upsample)
    return backbone
