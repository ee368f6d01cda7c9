"""Which module scores which benchmark without pairs of keypoints."""

from semcorr.core.errors import UserError
from semcorr.core.interfaces import SiameseHead
from semcorr.data.davis import DAVIS
from semcorr.data.dense_pairs import LabelTransferBenchmark
from semcorr.data.evaluation_only import EvaluationBenchmark
from semcorr.data.tapvid import TapVid
from semcorr.data.tss import TSS
from semcorr.engine.dense_pairs import FlowModule, LabelTransferModule
from semcorr.engine.evaluation_only import EvaluationModule
from semcorr.engine.module import CorrespondenceModule
from semcorr.engine.segmentation import SegmentationModule
from semcorr.engine.tracking import TrackingModule


def build_evaluation_module(matcher: CorrespondenceModule, data: EvaluationBenchmark) -> EvaluationModule:
    """Build the module that scores a benchmark by a matcher's backbone, head and readout.

    Raises:
        UserError: The benchmark cannot be scored by such a backbone, head, protocol or number of readouts.
    """
    title = data.title or data.name
    if data.is_video and matcher.backbone.needs_pair:
        raise UserError(
            f"`data`: {matcher.backbone.name} needs pairs of images, and {title} is a video. Choose another backbone."
        )
    if any(spec.protocol.name != "semcorr" for spec in matcher.specs):
        raise UserError(f"`protocol`: {title} has its own. Leave `protocol` out.")
    if data.has_readout and len(matcher.specs) > 1:
        count = len(matcher.specs)
        raise UserError(f"`localise`: {title} is scored by one readout, got {count}. Give localise=argmax, or another.")
    if isinstance(data, TapVid):
        return TrackingModule(matcher, data.cycle_threshold if data.occlusion == "cycle" else None)
    if isinstance(data, DAVIS):
        if not isinstance(matcher.head, SiameseHead):
            raise UserError(
                f"`head`: labels are propagated by features of single frames, and {type(matcher.head).__name__} "
                "compares two images at once. Choose another, as head=cosine"
            )
        return SegmentationModule(matcher)
    if isinstance(data, TSS):
        return FlowModule(matcher)
    if isinstance(data, LabelTransferBenchmark):
        return LabelTransferModule(matcher)
    raise UserError(f"`data`: nothing scores {title}. Choose another benchmark")
