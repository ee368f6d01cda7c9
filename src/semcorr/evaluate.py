"""python -m semcorr.evaluate: score a backbone, or a training run, on a benchmark."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from semcorr.cli import hydra_main
from semcorr.core.files import ROOM, require_writable
from semcorr.core.interrupt import advising


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score `cfg.data`'s split and leave the results in `cfg.run_dir`.

    Returns:
        What metrics.json holds.
    """
    from semcorr.callbacks import refuse_to_replace
    from semcorr.checkpoint_files import load_trained
    from semcorr.data.tapvid import TapVid
    from semcorr.errors import UserError
    from semcorr.run import build, make_trainer, score
    from semcorr.run_dir import refuse_other_run
    from semcorr.track_results import print_tracks, write_tracks
    from semcorr.tracking import Tracking
    from semcorr.trainer_options import check_processes

    check_processes(cfg.trainer)
    require_writable(Path(cfg.run_dir), "run_dir", ROOM)
    refuse_to_replace(Path(cfg.run_dir))
    refuse_other_run(Path(cfg.run_dir), cfg)
    module, data = build(cfg)
    refuse_other_run(Path(cfg.run_dir), cfg, filled=True)
    if cfg.checkpoint:
        load_trained(module, Path(cfg.checkpoint))
    module.kap = cfg.kap
    module.pose.check(module.backbone, data)
    trainer = make_trainer(cfg, Path(cfg.run_dir))
    if isinstance(data, TapVid) and module.backbone.pairwise:
        raise UserError(f"`data`: {module.backbone.name} sees images in pairs, which a video has not. Choose another")
    if isinstance(data, TapVid) and (len(module.readings) > 1 or module.readings[0].protocol.name != "semcorr"):
        raise UserError("`protocol`: TAP-Vid has its own. Leave `protocol` out, and give one read-out, by `localise`.")
    if isinstance(data, TapVid):
        cycle = data.cycle_threshold if data.occlusion == "cycle" else None
        return score(cfg, trainer, Tracking(module, cycle), data, (write_tracks, print_tracks))
    return score(cfg, trainer, module, data)


def _evaluate(cfg: DictConfig) -> dict[str, Any]:
    kept = f" Features that were computed are in the store {cfg.store.root}." if cfg.store.get("root") else ""
    with advising(lambda: f"No scores were written.{kept} Run the same line again"):
        return evaluate(cfg)


def main() -> None:
    """The command."""
    hydra_main(_evaluate, "evaluate")


if __name__ == "__main__":
    main()
