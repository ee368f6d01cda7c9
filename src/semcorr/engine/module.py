"""The model as a Lightning module: backbone, head, readout and PCK, and the loss while training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float, Shaped
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone, PenalisedHead
from semcorr.core.terminal import print_line
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.core.types import FeatureMap, ImageBatch, PairBatch, View
from semcorr.data.datamodule import PairDataModule
from semcorr.data.pose_variants import PoseVariant
from semcorr.data.views import to_unit_range
from semcorr.engine.callbacks import LOSS, TrainingProgressBar
from semcorr.engine.contracts import (
    explain_failure,
    list_left_out,
    require_gradients,
    require_optimizer,
    require_schedule,
    require_terms,
)
from semcorr.engine.loss_inputs import (
    FeatureExtractor,
    batch_features,
    batch_names,
    build_loss_inputs,
    feature_dropout,
    pair_maps,
    validate_training_options,
)
from semcorr.engine.optim import count_epoch_steps, count_step_pairs, count_steps, scale_rates
from semcorr.engine.step_watch import StepWatch
from semcorr.engine.teacher import Teacher
from semcorr.evaluation.evaluator import EvaluationResult, Evaluator
from semcorr.evaluation.image_features import CorrespondenceModel, EvaluationSetup, SharedCache
from semcorr.evaluation.pose import alignment as adaptive
from semcorr.evaluation.protocols import SEMCORR, Protocol, ScoringSpec, build_scoring_specs
from semcorr.matching.batched import transform_features
from semcorr.matching.readouts import ProtocolReadout
from semcorr.metrics.pck import SUBSETS
from semcorr.models.backbones.wrapped import unwrap_backbone
from semcorr.models.finetune.state import (
    base_weights_id,
    checkpoint_keys,
    keep_frozen_in_eval,
    require_same_base,
    require_same_parts,
)
from semcorr.models.finetune.targets import freeze_unused
from semcorr.models.losses import ExtraInput, Loss, PairMaps, SourceImages, add_terms, list_reads, loss_terms
from semcorr.models.weights.loading import require_finite_weights
from semcorr.store.cache import FeatureCache, SweepFeatureCache
from semcorr.store.encode import ProcessGroup
from semcorr.store.frozen import FeatureCacheConfig, FrozenPrefix

STATES = ("state_dict", "current_model_state")  # of a checkpoint; the second where Lightning averages the weights


class CorrespondenceModule(LightningModule, CorrespondenceModel, FeatureExtractor):
    """A backbone, a head and a readout, evaluated and trained.

    Evaluation encodes every image once and matches the pairs from the features; where a backbone must see both images,
    they are joined pair by pair from what it computes of each alone. Training computes frozen blocks once per image
    where their features are cached.

    Args:
        backbone: Backbone, from images to features.
        head: Head, from features and query points to similarity.
        localise: Readout, from similarity to cells.
        finetune: Function that is called with the backbone, and chooses its trainable weights.
        loss: Loss: a function of similarity, true cells and mask, or of all `LossInputs`; None without training.
        optimizer: Function from the trainable parameters of the head and loss, and of the backbone, to the optimiser;
            None without training.
        scheduler: Function from the optimiser and the numbers of steps, of the run and of an epoch, to the schedule;
            None without training.
        seed: Seed of whatever is random in a training step.
        cache_config: Place and type of the cached features of frozen blocks; None, the defaults.
        key: What cached features depend on besides the weights; part of their key in a store on disk.
        variants: Weights of a training pair's variants, with one or both images mirrored; None, no variants.
        dropout: Share of the features' elements that are dropped in a training step.
        protocols: Protocols to score by; the first is the one validated, plotted and reported as the score.
        pose: Poses in which the sources of the test are tried; None, in no other than their own.
        kap: Detect the keypoints that the target does not show, too, when testing.

    Attributes:
        uses_cached_features: Whether training pairs come without pixels, and frozen blocks' features from the cache.
        specs: Protocols, each with its readouts.
        result: Result of the last validation or test.
        teacher: Weights by which the pairs are labelled for a loss that reads them; a callback gives them.
    """

    result: EvaluationResult
    scores_on_cpu = True  # pairs to score stay there: the evaluator moves what the device has to know of them

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        localise: Callable[..., Tensor] | ProtocolReadout,
        finetune: Callable[[Backbone], None],
        loss: Loss | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        seed: int = 42,
        cache_config: FeatureCacheConfig | None = None,
        key: JsonMapping | None = None,
        variants: PoseVariant | None = None,
        dropout: float = 0.0,
        protocols: Sequence[Protocol] = (SEMCORR,),
        pose: adaptive.AdaptivePose | None = None,
        kap: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        specs, self.localise = build_scoring_specs(protocols, localise)
        self.set_specs(specs)
        self.loss, self.optimizer, self.scheduler, self.seed = loss, optimizer, scheduler, seed
        self.variants, self.dropout = variants or PoseVariant(), dropout
        validate_training_options(backbone, head, loss, self.variants, dropout)
        self.strict_loading = False  # checkpoints hold the trained weights only
        buffers = [name for name, _ in backbone.named_buffers()]
        network = unwrap_backbone(backbone)  # the steps after it have no weights to tune
        with explain_failure("finetune", finetune):
            finetune(network)
        freeze_unused(network)
        self.saved_keys = {f"backbone.{name}" for name in checkpoint_keys(backbone, buffers)}
        self.frozen = FrozenPrefix(backbone, cache_config or FeatureCacheConfig(), key or {})
        self.uses_cached_features, self.kap, self.pose = False, kap, pose or adaptive.AdaptivePose()
        self.shared_cache: SharedCache | None = None
        self.step_watch, self.shows_each_loss, self.is_first_backward = StepWatch(), False, True
        self.teacher: Teacher | None = None

    def train(self, mode: bool = True) -> "CorrespondenceModule":
        """Set the mode of the trainable parts; frozen parts stay in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self.backbone)
        return self

    def forward(self, source: View, target: View) -> Float[Tensor, "b n h w"]:
        """Compute the similarity of the source's keypoints to every target cell, from pixels."""
        return self.head(*self.pair_features(source, target), source.keypoints)

    def pair_features(self, source: View, target: View) -> tuple[FeatureMap, FeatureMap]:
        """Compute the features of both images of each pair, from their pixels or the cache of the frozen blocks."""
        if self.backbone.needs_pair and source.image.shape[-2]:
            return self.backbone.pair(to_unit_range(source.image), to_unit_range(target.image))
        if self.backbone.joint:
            size = (source.image.shape[-1],) * 2
            return self.backbone.join_pair(
                *(self.frozen.image_maps(view.name, size, self.device) for view in (source, target))
            )
        maps = self.features([*source.name, *target.name], torch.cat((source.image, target.image)))
        a, b = maps.values.chunk(2)
        return FeatureMap(a, maps.stride), FeatureMap(b, maps.stride)

    def features(self, names: Sequence[str], image: Shaped[Tensor, "b 3 h w"]) -> FeatureMap:
        """Compute the features of a batch of images; without pixels, from the cached features of the frozen blocks."""
        if image.shape[-2]:
            return self.backbone(to_unit_range(image))
        return self.frozen.features(names, (image.shape[-1],) * 2, self.device)

    # -- training --

    def training_step(self, batch: PairBatch | ImageBatch) -> Float[Tensor, ""]:
        """Compute the loss on the shared keypoints of a batch of pairs, or of all ordered pairs of a few images."""
        features = batch_features(self, batch)
        maps = feature_dropout(features, self.dropout)
        inputs = build_loss_inputs(self.head, maps, batch, self.variants, self.global_step, self.loss)
        if ExtraInput.TEACHER in list_reads(self.loss):
            inputs = inputs._replace(teacher=self._teach(features, batch))
        if ExtraInput.PIXELS in list_reads(self.loss):
            assert isinstance(batch, PairBatch), "build.require_pairs comes first"
            inputs = inputs._replace(sources=SourceImages(to_unit_range(batch.source.image), self._encode_with_head))
        assert self.loss is not None, "only training has steps"
        terms = loss_terms(self.loss, inputs)
        if isinstance(self.head, PenalisedHead):
            terms["head"] = self.head.take_penalty()
        require_terms(terms)
        similarity = inputs.similarity if self.global_step == 0 else None
        self.step_watch.record_batch(self.global_step, *batch_names(batch), maps.values, terms, similarity)
        loss = add_terms(terms)
        self.log(LOSS, loss, prog_bar=self.shows_each_loss, batch_size=len(inputs.mask))
        return loss

    def _teach(self, features: FeatureMap, batch: PairBatch | ImageBatch) -> PairMaps:
        """Return the pairs of a batch as the teacher sees them: by its weights, and without dropout.

        Args:
            features: The student's features of the images; the teacher's as well, if the backbone is frozen.
            batch: The pairs.
        """
        assert self.teacher is not None, "on_fit_start requires it"
        assert isinstance(batch, PairBatch), "build.require_pairs comes first"
        with self.teacher.take_over(self):
            if not self.frozen.is_whole_backbone:
                features = batch_features(self, batch._replace(mirrored=()))
            maps = transform_features(self.head, features)
        parts = [FeatureMap(part, maps.stride) for part in maps.values.detach().split(len(batch.pair))[:2]]
        return pair_maps(self.head, parts, batch)._replace(context=partial(self.teacher.take_over, self))

    def _encode_with_head(self, image: Float[Tensor, "b 3 h w"]) -> FeatureMap:
        """Compute features of images as the head compares them, with dropout, as in any training step."""
        return transform_features(self.head, feature_dropout(self.backbone(image), self.dropout))

    def on_train_start(self) -> None:
        """Fill the cache with the frozen blocks' features of all images to come, if training uses it.

        It is not done earlier, because only now a resumed run knows its epoch.
        """
        if self.uses_cached_features:
            trainer = self.trainer
            assert trainer.max_epochs is not None, "our configurations set it"
            to_train_on = self._data.images_to_train_on(trainer.max_epochs, int(trainer.num_training_batches))
            val_batches = trainer.num_val_batches
            to_validate = self._data.images_to_evaluate("val", self._count_batches(val_batches)) if val_batches else []
            images = list({image.name: image for image in (*to_train_on, *to_validate)}.values())
            self.frozen.fill(images, self._data, self._group, self._precision)

    def on_fit_start(self) -> None:
        """Set the modes, which Lightning leaves as they are: a new module is in training mode throughout."""
        self.train()
        if ExtraInput.TEACHER in list_reads(self.loss) and self.teacher is None:
            raise UserError("`loss` learns from a teacher, and there is none. Give callbacks=ema_teacher as well.")
        self.step_watch = StepWatch(getattr(self.trainer, "log_every_n_steps", 1), self.frozen.is_whole_backbone)
        self.is_first_backward = True
        bar = self.trainer.progress_bar_callback  # for any but ours, Lightning reads the number at every step
        self.shows_each_loss = bar is not None and not isinstance(bar, TrainingProgressBar)

    def on_after_backward(self) -> None:
        """Refuse, after the first backward pass, a loss that no weight follows; sharded weights have no gradients."""
        if self.is_first_backward and isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            head, backbone = self.trainable_parameters()
            require_gradients(self.loss, [*head, *backbone])
        self.is_first_backward = False

    def on_before_optimizer_step(self, optimizer: object) -> None:
        """Record the gradients, which must be finite; with a scaled loss, the scaler skips steps where they are not."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            self.step_watch.record_gradients(self.global_step, self.named_parameters())

    def on_train_end(self) -> None:
        """Check the steps after the last validation and the last checkpoint, too."""
        self.step_watch.check()

    def on_train_batch_start(self, batch: PairBatch | ImageBatch, batch_idx: int) -> None:
        """Seed from the batch's position in training, so that a resumed run repeats whatever is random.

        The number of the step would not be enough: with `accumulate_grad_batches` several batches belong to one.
        """
        trainer = self.trainer
        position = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        torch.manual_seed(self.seed * 1_000_003 + position * trainer.world_size + self.global_rank)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser, with separate rates for head and backbone, and its schedule, advanced at every step."""
        head, backbone = self.trainable_parameters()
        if not head and not backbone:
            raise UserError(
                "Nothing to train: the backbone is frozen and the head has no weights. Set finetune.blocks=2."
            )
        steps = count_steps(self.trainer, self._data), count_epoch_steps(self.trainer, self._data)
        optimizer, schedule = self.make_optimizer(*steps, count_step_pairs(self.trainer, self._data))
        if left_out := list_left_out(optimizer, [*head, *backbone]):
            count, total = (sum(p.numel() for p in parameters) for parameters in (left_out, [*head, *backbone]))
            print_line(f"`optimizer` leaves {count:,} of the {total:,} trainable weights as they are.")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self, steps: int, epoch_steps: int, step_pairs: int) -> tuple[Optimizer, LRScheduler]:
        """Make the optimiser of the trainable parameters, and its schedule.

        Args:
            steps: Optimiser steps of the run.
            epoch_steps: Optimiser steps of an epoch.
            step_pairs: Pairs of a step, of all processes and accumulated batches.
        """
        head, backbone = self.trainable_parameters()
        loss = [*self.loss.parameters()] if isinstance(self.loss, nn.Module) else []
        assert self.optimizer is not None, "only training makes an optimiser"
        assert self.scheduler is not None, "only training makes a schedule"
        hint = "It is called with two lists, the parameters of head and loss and those of the backbone."
        with explain_failure("optimizer", self.optimizer, hint):
            optimizer = self.optimizer([*head, *loss], backbone)
        require_optimizer(optimizer, [*head, *backbone], self.optimizer)
        scale_rates(optimizer, step_pairs)
        with explain_failure("scheduler", self.scheduler):
            schedule = self.scheduler(optimizer, steps, epoch_steps)
        require_schedule(schedule, self.scheduler)
        return optimizer, schedule

    def trainable_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the trainable parameters of the head and of the backbone; those of a loss serve training alone."""
        parts = (self.head, self.backbone)
        head, backbone = ([p for p in module.parameters() if p.requires_grad] for module in parts)
        return head, backbone

    # -- evaluation --

    def set_specs(self, specs: Sequence[ScoringSpec], keeps_rows: bool = True) -> None:
        """Set what validation and test score by.

        Args:
            specs: Protocols, each with a readout; the first is the one validated, plotted and reported as the score.
            keeps_rows: Store a row per keypoint and specification, and not the scores alone.
        """
        self.specs, self.keeps_rows = specs, keeps_rows

    def share_features(self, cache: SweepFeatureCache, key: str) -> None:
        """Share the features of the test with the other jobs of a sweep.

        Args:
            cache: Cache that the jobs pass on.
            key: Everything that the features depend on but the images.
        """
        self.shared_cache = partial(cache, key)

    def on_validation_epoch_start(self) -> None:
        """Encode the images of the validation pairs, with weights that are finite."""
        self.step_watch.check()
        self._start_evaluation(
            "val", self.trainer.num_val_batches, self.uses_cached_features or self.frozen.is_whole_backbone
        )

    def on_test_epoch_start(self) -> None:
        """Encode the images of the test pairs, without what is cached: the reported times start here."""
        self.frozen.clear()
        self._start_evaluation(self._data.split, self.trainer.num_test_batches, self.frozen.is_whole_backbone)

    def validation_step(self, batch: PairBatch) -> None:
        """Match and score a batch of pairs."""
        self.evaluator.update(batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/<subset>/pck@<alpha>`, per image."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/<subset>/pck@<alpha>`, per image, and gather the rows."""
        self._log_scores("test")
        self.frozen.clear()

    def _start_evaluation(self, split: str, batches: Sequence[int | float], reuse: bool) -> None:
        test_options: JsonObject = {"specs": self.specs, "pose": self.pose, "kap": self.kap}
        options = test_options if self.trainer.testing else {"specs": self.specs[:1]}
        setup = EvaluationSetup(self, self._data, split, self._group, self._precision, self.shared_cache)
        self.evaluator = Evaluator(setup, keeps_rows=self.keeps_rows, **options)
        has_store = self.frozen.cache_config.root is not None
        self.evaluator.encode(
            self._count_batches(batches), use_cached_features=(reuse or has_store) and self.frozen.is_cacheable
        )

    def _count_batches(self, batches: Sequence[int | float]) -> int:
        """Return the first process's number of batches: all must list the same images, or some wait forever."""
        return int(self.trainer.strategy.broadcast(int(batches[0])))

    def _log_scores(self, stage: str) -> None:
        self.result = self.evaluator.compute(with_tables=stage == "test")
        self.evaluator.image_features.cache = FeatureCache(0, self.device)
        for subset in SUBSETS:
            for alpha, value in self.result.scores["pck"][subset]["image"].items():
                if value is not None:
                    self.log(f"{stage}/{subset}/pck@{alpha}", value)

    @property
    def _data(self) -> PairDataModule:
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, PairDataModule)
        return data

    @property
    def _group(self) -> ProcessGroup:
        return ProcessGroup(self.global_rank, self.trainer.world_size, self.device, self.trainer.num_devices)

    @property
    def _precision(self) -> Callable[[], AbstractContextManager[object]]:
        return self.trainer.precision_plugin.forward_context

    # -- checkpoints --

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return the state to save: the backbone's trained weights and added buffers, and the whole head and loss."""
        state = self.state_dict()
        return {name: state[name] for name in state if name in self.saved_keys or name.startswith(("head.", "loss."))}

    def on_save_checkpoint(self, checkpoint: JsonObject) -> None:
        """Save the trained weights, if all are finite, and which base weights they belong to.

        Weights that the checkpoint holds already stay: Lightning's `WeightAveraging` has put its averages there.
        """
        self.step_watch.check()
        trained = self.trainable_state_dict()
        require_finite_weights(trained, f"step {self.global_step} of the training, not saved")
        checkpoint |= {key: {name: checkpoint[key][name] for name in trained} for key in checkpoint.keys() & STATES}
        checkpoint.setdefault("state_dict", trained)
        checkpoint["base"] = base_weights_id(self.backbone)

    def on_load_checkpoint(self, checkpoint: JsonObject) -> None:
        """Refuse weights that were trained on another base, or other parts of it.

        Frozen weights are added where a training with averaged weights is resumed: `WeightAveraging` loads all weights.
        """
        require_same_base(checkpoint["base"], base_weights_id(self.backbone))
        names = set(checkpoint["state_dict"])
        if self.loss is None:  # for scoring; the weights of a loss serve training alone
            names = {name for name in names if not name.startswith("loss.")}
        require_same_parts(names, self.trainable_state_dict())
        if self.loss is not None and checkpoint.keys() >= {*STATES}:
            state = self.state_dict()
            checkpoint |= {key: state | checkpoint[key] for key in STATES}
