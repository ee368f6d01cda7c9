"""Finished runs on made-up pairs, as the report reads them, and the command that makes it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from random_tables import batches, table
from typer.testing import CliRunner

from semcorr.metrics.breakdown import pck_from_predictions
from semcorr.metrics.confidence import pck_intervals
from semcorr.metrics.predictions import is_correct, load_predictions
from semcorr.report.command import app
from semcorr.report.configurations import build_configurations
from semcorr.report.runs import read_runs

SIZES = (40, 40)


def run_dir(root: Path, off: float = 0.0, sizes=SIZES, config: dict | None = None, **metrics) -> Path:
    """A run on made-up pairs, its predictions moved by `off` pixels; `config` and `metrics` replace what is usual."""
    root.mkdir(parents=True)
    rows = table([one | {"predicted": one["predicted"] + off} for one in batches(*sizes)])
    found = load_predictions(rows)
    usual = {
        **pck_from_predictions(found), "pooling": "image", "protocol": "semcorr", "localise": "argmax",
        "split": "spair test",
        "strict": False, "pairs": len(found.pairs), "images": len(found.images), "trained_parameters": 0,
        "seconds": {"encode": 1.5, "match": 0.5},
        "intervals": pck_intervals(found, is_correct(found, [0.1]), [0.1], 100),
        "left_right": {"confused": 0.25, "asked": 100}, "classes": {},
    }  # fmt: skip
    usual["headline"] = usual["pck"]["all"]["image"]
    (root / "metrics.json").write_text(json.dumps(usual | metrics))
    pq.write_table(
        rows.append_column("protocol", pa.array([(usual | metrics)["protocol"]] * len(rows))),
        root / "predictions.parquet",
    )
    cfg = {
        "data": {"_target_": "semcorr.data.spair.SPair", "root": "nowhere", "split": "test", "resize": "squash"},
        "backbone": {"_target_": "semcorr.models.backbones.timm_model.TimmModel", "name": "tiny", "size": 96},
        "finetune": {"_target_": "semcorr.models.finetune.last_blocks.last_blocks", "_partial_": True, "blocks": 0},
        "head": {"_target_": "semcorr.models.heads.cosine.Cosine"},
        "logger": {"_target_": "semcorr.engine.loggers.CSVScalarLogger"},
        "localise": {"_target_": "semcorr.matching.readouts.window_soft_argmax", "_partial_": True, "window": 15},
        "trainer": {"_target_": "lightning.Trainer", "precision": "32-true"}, "seed": 1,
        "provenance": {"backbone": "tiny", "git": "0123456789", "weights_sha256": "ab" * 32},
        "protocol": {"_target_": "semcorr.evaluation.protocols.protocol_preset", "name": "semcorr", "resize": "squash"},
    }  # fmt: skip
    OmegaConf.save(OmegaConf.merge(cfg, config or {}), root / "config.yaml")
    return root


def window(root: Path, size: int, off: float = 0.0, seed: int = 1) -> Path:
    return run_dir(root / f"w{size}_{seed}", off, config={"localise": {"window": size}, "seed": seed})


def typed(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def made(*folders: Path):
    return build_configurations(read_runs(folders))
