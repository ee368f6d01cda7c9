"""python -m semcorr.evaluate: score a backbone, or a training run, on a benchmark."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from semcorr.cli import hydra_main
from semcorr.core.files import ROOM, require_writable


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score `cfg.data`'s split and leave the results in `cfg.run_dir`.

    Returns:
        What metrics.json holds.
    """
    from semcorr.data.tapvid import TapVid
    from semcorr.errors import UserError
    from semcorr.run import build, make_trainer, read_checkpoint, score
    from semcorr.track_results import print_tracks, write_tracks
    from semcorr.tracking import Tracking

    require_writable(Path(cfg.run_dir), "run_dir", ROOM)
    module, data = build(cfg)
    if cfg.checkpoint:
        content = read_checkpoint(Path(cfg.checkpoint))
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"], strict=False)
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


def main() -> None:
    """The command."""
    hydra_main(evaluate, "evaluate")


if __name__ == "__main__":
    main()
