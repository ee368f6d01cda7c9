"""Former names of the targets in saved configurations, and their names today."""

RENAMED_TARGETS = {  # most from before version 0.2, when each module lay at the root of the package
    "semcorr.backbones.diffusion.StableDiffusion": "semcorr.models.backbones.diffusion.StableDiffusion",
    "semcorr.backbones.efficientnet_lite0.EfficientNetLite0": (
        "semcorr.models.backbones.efficientnet_lite0.EfficientNetLite0"
    ),
    "semcorr.backbones.fuse.sd_dinov2": "semcorr.models.backbones.fuse.sd_dinov2",
    "semcorr.backbones.ibot.IBOT": "semcorr.models.backbones.ibot.IBOT",
    "semcorr.backbones.segment_anything.SegmentAnything": "semcorr.models.backbones.segment_anything.SegmentAnything",
    "semcorr.backbones.squeezenet.SqueezeNet": "semcorr.models.backbones.squeezenet.SqueezeNet",
    "semcorr.backbones.timm_model.TimmModel": "semcorr.models.backbones.timm_model.TimmModel",
    "semcorr.backbones.transformers_model.TransformersModel": (
        "semcorr.models.backbones.transformers_model.TransformersModel"
    ),
    "semcorr.data.augment.Augment": "semcorr.data.augment.Augmentation",
    "semcorr.data.pf_pascal.PFPascal": "semcorr.data.proposal_flow.PFPascal",
    "semcorr.data.pf_willow.PFWillow": "semcorr.data.proposal_flow.PFWillow",
    "semcorr.data.spair_u.SPairU": "semcorr.data.spair.SPairU",
    "semcorr.engine.loggers.tensorboard": "semcorr.engine.loggers.build_tensorboard_logger",
    "semcorr.engine.loggers.wandb": "semcorr.engine.loggers.build_wandb_logger",
    "semcorr.finetune.adaptformer.adaptformer": "semcorr.models.finetune.adapters.adaptformer",
    "semcorr.finetune.conditional_prompt.conditional_prompt": ("semcorr.models.finetune.prompts.conditional_prompt"),
    "semcorr.finetune.houlsby.houlsby": "semcorr.models.finetune.adapters.houlsby",
    "semcorr.finetune.last_blocks.last_blocks": "semcorr.models.finetune.last_blocks.last_blocks",
    "semcorr.finetune.lora.lora": "semcorr.models.finetune.peft_tuners.lora",
    "semcorr.finetune.peft_tuner.peft_tuner": "semcorr.models.finetune.peft_tuners.peft_tuner",
    "semcorr.finetune.prompt.prompt": "semcorr.models.finetune.prompts.prompt",
    "semcorr.frozen.Keep": "semcorr.store.frozen.FeatureCacheConfig",
    "semcorr.heads.aggregation.Aggregation": "semcorr.models.heads.aggregation.Aggregation",
    "semcorr.heads.attention.CrossAttention": "semcorr.models.heads.attention.CrossAttention",
    "semcorr.heads.attention.SelfAttention": "semcorr.models.heads.attention.SelfAttention",
    "semcorr.heads.bottleneck.Bottleneck": "semcorr.models.heads.bottleneck.BottleneckHead",
    "semcorr.heads.cats.Cats": "semcorr.models.heads.cats.CATs",
    "semcorr.heads.consensus.Consensus": "semcorr.models.heads.consensus.Consensus",
    "semcorr.heads.cosine.Cosine": "semcorr.models.heads.cosine.Cosine",
    "semcorr.heads.match_to_match.MatchToMatch": "semcorr.models.heads.match_to_match.MatchToMatch",
    "semcorr.heads.upsample.Upsample": "semcorr.models.heads.upsample.Upsample",
    "semcorr.localise.argmax": "semcorr.matching.readouts.argmax",
    "semcorr.localise.bilinear_nn": "semcorr.matching.readouts.bilinear_nn",
    "semcorr.localise.kernel_soft_argmax": "semcorr.matching.readouts.kernel_soft_argmax",
    "semcorr.localise.soft_argmax": "semcorr.matching.readouts.soft_argmax",
    "semcorr.localise.window_soft_argmax": "semcorr.matching.readouts.window_soft_argmax",
    "semcorr.loggers.CSV": "semcorr.engine.loggers.CSVScalarLogger",
    "semcorr.loggers.tensorboard": "semcorr.engine.loggers.build_tensorboard_logger",
    "semcorr.loggers.wandb": "semcorr.engine.loggers.build_wandb_logger",
    "semcorr.losses.Dense": "semcorr.models.losses.SoftArgmaxDistance",
    "semcorr.losses.GaussianCrossEntropy": "semcorr.models.losses.GaussianCrossEntropy",
    "semcorr.losses.SymmetricContrastive": "semcorr.models.losses.SymmetricContrastive",
    "semcorr.losses.gaussian_cross_entropy": "semcorr.models.losses.gaussian_cross_entropy",
    "semcorr.losses.together": "semcorr.models.losses.weighted_sum",
    "semcorr.optim.adamw": "semcorr.engine.optim.adamw",
    "semcorr.optim.constant": "semcorr.engine.optim.constant_rate",
    "semcorr.optim.one_cycle": "semcorr.engine.optim.one_cycle",
    "semcorr.pose.adaptive.AdaptivePose": "semcorr.evaluation.pose.alignment.AdaptivePose",
    "semcorr.pose_variant.PoseVariant": "semcorr.data.pose_variants.PoseVariant",
    "semcorr.protocol.preset": "semcorr.evaluation.protocols.protocol_preset",
    "semcorr.protocol.several": "semcorr.evaluation.protocols.protocol_list",
    "semcorr.read_outs.Published": "semcorr.matching.readouts.ProtocolReadout",
    "semcorr.read_outs.Several": "semcorr.matching.readouts.ReadoutList",
    "semcorr.read_outs.named": "semcorr.matching.readouts.parse_readout",
}

RENAMED_OPTIONS = {  # by the target, under today's name
    "semcorr.models.backbones.segment_anything.SegmentAnything": {"out_chans": "neck_chans"},
    "semcorr.evaluation.protocols.protocol_preset": {"read_out": "readout"},
}


def update_targets(value: object) -> object:
    """Return a configuration whose `_target_` values, and the options of the targets, have today's names.

    >>> update_targets({"head": {"_target_": "semcorr.heads.cosine.Cosine"}})
    {'head': {'_target_': 'semcorr.models.heads.cosine.Cosine'}}
    >>> update_targets({"_target_": "semcorr.backbones.segment_anything.SegmentAnything", "out_chans": 64})
    {'_target_': 'semcorr.models.backbones.segment_anything.SegmentAnything', 'neck_chans': 64}
    """
    if isinstance(value, list):
        return [update_targets(item) for item in value]
    if not isinstance(value, dict):
        return value
    target = value.get("_target_")
    new_target = RENAMED_TARGETS.get(target, target) if isinstance(target, str) else None
    renamed = {} if new_target is None else {"_target_": new_target}
    options = RENAMED_OPTIONS.get(new_target or "", {})
    return {options.get(key, key): update_targets(item) for key, item in value.items()} | renamed
