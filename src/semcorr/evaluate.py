"""python -m semcorr.evaluate: score a backbone, or a training run, on a benchmark."""

from pathlib import Path

from omegaconf import DictConfig

from semcorr.cli.hydra_app import hydra_main
from semcorr.core.files import ROOM, require_writable
from semcorr.core.interrupt import advise_on_interrupt
from semcorr.core.text_files import JsonObject


def evaluate(cfg: DictConfig) -> JsonObject:
    """Score `cfg.data`'s split and leave the results in `cfg.run_dir`.

    Returns:
        What metrics.json holds.
    """
    from semcorr.core.errors import UserError
    from semcorr.data.tapvid import TapVid
    from semcorr.engine.build import build_datamodule_and_module, build_trainer, score_and_save
    from semcorr.engine.callbacks import refuse_to_replace
    from semcorr.engine.checkpoints import load_trained
    from semcorr.engine.run_dir import refuse_other_run
    from semcorr.engine.tracking import TrackingModule
    from semcorr.engine.trainer_options import check_processes

    check_processes(cfg.trainer)
    require_writable(Path(cfg.run_dir), "run_dir", ROOM)
    refuse_to_replace(Path(cfg.run_dir))
    refuse_other_run(Path(cfg.run_dir), cfg)
    module, data = build_datamodule_and_module(cfg)
    refuse_other_run(Path(cfg.run_dir), cfg, filled=True)
    if cfg.checkpoint:
        load_trained(module, Path(cfg.checkpoint))
    module.kap = cfg.kap
    module.pose.check(module.backbone, data)
    trainer = build_trainer(cfg, Path(cfg.run_dir))
    if isinstance(data, TapVid) and module.backbone.pairwise:
        raise UserError(f"`data`: {module.backbone.name} sees images in pairs, which a video has not. Choose another")
    if isinstance(data, TapVid) and (len(module.specs) > 1 or module.specs[0].protocol.name != "semcorr"):
        raise UserError("`protocol`: TAP-Vid has its own. Leave `protocol` out, and give one read-out, by `localise`.")
    if isinstance(data, TapVid):
        cycle = data.cycle_threshold if data.occlusion == "cycle" else None
        return score_and_save(cfg, trainer, TrackingModule(module, cycle), data)
    return score_and_save(cfg, trainer, module, data)


def _evaluate(cfg: DictConfig) -> JsonObject:
    kept = f" Features that were computed are in the store {cfg.store.root}." if cfg.store.get("root") else ""
    with advise_on_interrupt(lambda: f"No scores were written.{kept} Run the same line again"):
        return evaluate(cfg)


def main() -> None:
    """The command."""
    hydra_main(_evaluate, "evaluate")


if __name__ == "__main__":
    main()
