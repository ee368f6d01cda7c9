"""The drawing as code: backbone -> head -> localise -> PCK, and the loss when training."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from lightning import LightningModule
from rich.progress import Progress
from torch import Tensor, nn

from semcorr.backbones import Backbone
from semcorr.coords import from_view, to_grid, to_image
from semcorr.errors import UserError
from semcorr.finetune.modes import keep_frozen_in_eval
from semcorr.finetune.moving import saved
from semcorr.metrics.pck import PCK, SUBSETS
from semcorr.metrics.table import gather, rows
from semcorr.types import FeatureMap, PairBatch, View


class Correspondence(LightningModule):
    """A backbone, a head and a localiser, evaluated and trained.

    Evaluating encodes every image once and matches the pairs from the features; or pair by pair, where
    a backbone must see both images at once.

    Args:
        backbone: Image to features.
        head: Features and query points to similarity.
        localise: Similarity to cells.
        finetune: Called with the backbone; says which of its weights move.
        loss: Similarity, true cells and mask to a scalar. Only training needs it, and the next two.
        optimizer: Called with the moving parameters of the head and of the backbone.
        scheduler: Called with the optimiser and the number of steps.
        seed: Of whatever is random in a step.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        localise: Callable[[Tensor], Tensor],
        finetune: Callable[[Backbone], None],
        loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.localise = backbone, head, localise
        self.loss, self.optimizer, self.scheduler, self.seed = loss, optimizer, scheduler, seed
        self.strict_loading = False  # checkpoints hold the moving weights only
        buffers = [name for name, _ in backbone.named_buffers()]  # type: ignore[attr-defined]
        finetune(backbone)
        self.saved = {f"backbone.{name}" for name in saved(backbone, buffers)}  # type: ignore[arg-type]
        self.pck: PCK | None = None
        self.features: dict[str, Tensor] = {}
        self.tables: list[pa.Table] = []
        self.scores: dict[str, Any] = {}
        self.seconds = {"encode": 0.0, "match": 0.0}

    def train(self, mode: bool = True) -> "Correspondence":
        """Frozen parts stay in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self.backbone)  # type: ignore[arg-type]
        return self

    def forward(self, source: View, target: View) -> Float[Tensor, "b n h w"]:
        """Similarity of the source's keypoints to every target cell, from pixels."""
        return self.head(*self._seen(source, target), source.keypoints)

    def _seen(self, source: View, target: View) -> tuple[FeatureMap, FeatureMap]:
        """Features of both images of a batch of pairs, from pixels."""
        if self.backbone.pairwise:
            pair: tuple[FeatureMap, FeatureMap] = self.backbone.pair(source.image, target.image)  # type: ignore[attr-defined]
            return pair
        maps = self.backbone(torch.cat((source.image, target.image)))
        a, b = maps.values.chunk(2)
        return FeatureMap(a, maps.stride), FeatureMap(b, maps.stride)

    def _known(self, source: View, target: View) -> tuple[FeatureMap, FeatureMap]:
        """The same, from the features of images encoded ahead."""
        a, b = (torch.stack([self.features[name] for name in view.name]) for view in (source, target))
        return FeatureMap(a, self.backbone.stride), FeatureMap(b, self.backbone.stride)

    # -- training --

    def training_step(self, batch: PairBatch) -> Float[Tensor, ""]:
        """The loss on the shared keypoints of a batch of pairs."""
        similarity = self(batch.source, batch.target)
        cells = to_grid(batch.target.keypoints, self.backbone.stride)
        loss = self.loss(similarity.float(), cells, batch.shared)  # type: ignore[misc]
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.pair))
        return loss

    def on_fit_start(self) -> None:
        """Lightning leaves the modes as it finds them, and a new module is in training mode throughout."""
        self.train()

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Whatever is random in a step follows from the step alone, so a resumed run repeats it."""
        step = self.global_step * self.trainer.world_size + self.global_rank
        torch.manual_seed(self.seed * 1_000_003 + step)

    def configure_optimizers(self) -> Any:
        """Separate rates for head and backbone; the schedule moves every step."""
        parts: tuple[Any, ...] = (self.head, self.backbone)
        moving = [[p for p in part.parameters() if p.requires_grad] for part in parts]
        if not any(moving):
            raise UserError(
                "Nothing to train: the backbone is frozen and the head has no weights. Set finetune.blocks=2."
            )
        optimizer = self.optimizer(*moving)  # type: ignore[misc]
        schedule = self.scheduler(optimizer, self._steps())  # type: ignore[misc]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        """Optimiser steps of the whole run.

        Lightning's own estimate starts the training loader, before a resumed run knows its epoch.
        """
        trainer: Any = self.trainer
        epochs = math.ceil(len(trainer.datamodule.stream()) / trainer.accumulate_grad_batches) * trainer.max_epochs
        return min(epochs, trainer.max_steps) if trainer.max_steps > 0 else epochs

    # -- evaluation --

    def on_validation_epoch_start(self) -> None:
        """Encode the images of the validation pairs."""
        self._encode("val", int(self.trainer.num_val_batches[0]))

    def on_test_epoch_start(self) -> None:
        """Encode the images of the test pairs; what is reported starts here."""
        self.tables, self.seconds = [], {"encode": 0.0, "match": 0.0}
        self._encode(self.trainer.datamodule.split, int(self.trainer.num_test_batches[0]))  # type: ignore[attr-defined]

    def validation_step(self, batch: PairBatch) -> None:
        """Match and score."""
        self._match(batch)

    def test_step(self, batch: PairBatch) -> None:
        """Match and score; keep the rows."""
        self.tables.append(self._match(batch))

    def on_validation_epoch_end(self) -> None:
        """Log `val/<subset>/pck@<alpha>`, per image."""
        self._log("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/...` and gather the table."""
        self._log("test")
        self.table = gather(self.tables)

    @torch.no_grad()
    def _encode(self, split: str, batches: int) -> None:
        """Every image that the pairs ahead look at, once; none where pairs must be seen whole."""
        start = time.perf_counter()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        categories = data.categories(split)
        keypoints = len(data.pairs(split)[0].source.keypoints)
        self.pck = PCK(categories, keypoints).to(self.device)
        self.features = {}
        loader = [] if self.backbone.pairwise else data.images(split, batches)
        with Progress(transient=True, disable=self.global_rank > 0) as bar:
            for views in bar.track(loader, description="Encoding images"):
                with self.trainer.precision_plugin.forward_context():
                    maps = self.backbone(views.image.to(self.device, non_blocking=True))
                self.features.update(zip(views.name, maps.values, strict=True))
        self.seconds["encode"] += time.perf_counter() - start

    def _match(self, batch: PairBatch) -> pa.Table:
        """Score a batch of pairs from their images' features; the rows of its keypoints."""
        start = time.perf_counter()
        assert self.pck is not None
        stride, (source, target) = self.backbone.stride, batch[:2]
        a, b = (self._seen if self.backbone.pairwise else self._known)(source, target)
        similarity = self.head(a, b, source.keypoints).float()
        predicted = from_view(to_image(self.localise(similarity), stride), target.scale, target.offset)
        truth = from_view(target.keypoints, target.scale, target.offset)
        index = torch.tensor([self.pck.categories.index(name) for name in batch.category], device=self.device)
        self.pck.update(predicted, truth, batch.extent, batch.shared, batch.ambiguous, index)
        points = torch.cat((from_view(source.keypoints, source.scale, source.offset), truth, predicted), dim=-1)
        table = rows(
            pair=batch.pair, source=source.name, target=target.name, category=batch.category, points=points,
            extent=batch.extent, shared=batch.shared, ambiguous=batch.ambiguous,
            score=similarity.flatten(2).amax(-1), localise=described(self.localise),
        )  # fmt: skip
        self.seconds["match"] += time.perf_counter() - start
        return table

    def _log(self, stage: str) -> None:
        assert self.pck is not None
        self.scores = self.pck.compute()
        self.features = {}
        for subset in SUBSETS:
            for alpha, value in self.scores["pck"][subset]["image"].items():
                if value is not None:
                    self.log(f"{stage}/{subset}/pck@{alpha}", value)

    # -- checkpoints --

    def moving(self) -> dict[str, Tensor]:
        """What training changes, and the buffers that tuning added: of the backbone, and the whole head."""
        names = self.saved | {f"head.{name}" for name in self.head.state_dict()}
        return {name: value for name, value in self.state_dict().items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what moves, and what it moved away from."""
        checkpoint["state_dict"] = self.moving()
        checkpoint["base"] = {"backbone": self.backbone.name, "sha256": self.backbone.sha256}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse weights that were trained on another base, or other parts of it."""
        base, own = checkpoint["base"], {"backbone": self.backbone.name, "sha256": self.backbone.sha256}
        if base != own:
            raise UserError(
                f"The checkpoint was trained on {base['backbone']} with weights sha256 {base['sha256'][:12]}; this "
                f"backbone is {own['backbone']} with {own['sha256'][:12]}. Give the same backbone and weights."
            )
        odd = sorted(checkpoint["state_dict"].keys() ^ self.moving().keys())
        if odd:
            raise UserError(
                f"The checkpoint and this run train different weights: {', '.join(odd[:3])}. Use its finetune and head."
            )


def described(rule: Callable[..., Any]) -> str:
    """A localiser with its arguments, for tables.

    >>> from semcorr.localise import window_soft_argmax
    >>> described(partial(window_soft_argmax, window=9))
    'window_soft_argmax(window=9)'
    """
    if not isinstance(rule, partial):
        return rule.__name__
    given = ", ".join(f"{key}={value}" for key, value in rule.keywords.items())
    return f"{rule.func.__name__}({given})" if given else rule.func.__name__
