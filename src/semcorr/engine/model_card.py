"""The model card of a shared run: what the Hugging Face Hub reads, and what a reader wants to know."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from omegaconf import DictConfig

from semcorr.core.errors import UserError
from semcorr.core.text_files import JsonMapping, JsonObject
from semcorr.engine.run_config import benchmark_name
from semcorr.engine.run_dir import METRICS, read_scores
from semcorr.metrics.pck import SUBSETS

ALPHA = "0.1"
REMEDY = "Score the run again, or remove the file."
TAGS = ["semantic-correspondence", "keypoint-matching", "semcorr"]


def format_model_card(cfg: DictConfig, run: Path, name: str, license: str, facts: JsonMapping) -> str:
    """Format the card of a trained run, with its scores where the run has them.

    Args:
        cfg: Configuration of the run, with its provenance.
        run: Directory of the run, whose metrics.json holds the scores of its best checkpoint.
        name: What the model is loaded by.
        license: Identifier of the trained weights' licence.
        facts: `trained`, the number of trained weights as text, and `checkpoint`, which they are of: `best` or `last`.

    Returns:
        Markdown below a YAML front matter.
    """
    section = cfg.test if "test" in cfg else cfg.data
    benchmark = benchmark_name(section) or str(section._target_).rpartition(".")[2]
    scores = _read_card_scores(run) if facts["checkpoint"] == "best" else {}
    data = ModelCardData(
        license=license,
        library_name="semcorr",
        tags=TAGS,
        model_name=name.rpartition("/")[2],
        eval_results=_list_results(scores, benchmark) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_format_text(cfg, name, benchmark, scores, facts)}"


def _read_card_scores(run: Path) -> JsonObject:
    """Read the scores of a run; empty where it has none, as while it is trained."""
    path = run / METRICS
    if not path.is_file():
        return {}
    scores = read_scores(path, REMEDY)
    try:
        for subset in SUBSETS:
            _pck(scores, subset)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged (it lacks {error}). {REMEDY}") from None
    return scores


def _pck(scores: JsonMapping, subset: str) -> float | None:
    """Return the PCK of a subset of keypoints; None where the benchmark has none of them."""
    value: float | None = scores["pck"][subset]["image"][ALPHA]
    return value


def _list_results(scores: JsonMapping, benchmark: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="keypoint-matching",
            task_name="Semantic correspondence",
            dataset_type=benchmark,
            dataset_name=benchmark,
            dataset_split=str(scores.get("split", "test")).rpartition(" ")[2],
            metric_type="pck",
            metric_name=f"PCK@{ALPHA} per image, {subset}",
            metric_value=round(100 * value, 2),
        )
        for subset in (SUBSETS if scores else ())
        if (value := _pck(scores, subset)) is not None
    ]


def _format_text(cfg: DictConfig, name: str, benchmark: str, scores: JsonMapping, facts: JsonMapping) -> str:
    provenance = cfg.provenance
    versions = ", ".join(f"{package} {version}" for package, version in provenance.get("packages", {}).items())
    rows = {
        "Backbone": f"`{provenance.backbone}`, base weights of sha256 `{provenance.weights_sha256}`",
        "Trained": f"{facts['trained']} weights, checkpoint `{facts['checkpoint']}`; "
        f"finetune `{_name_target(cfg.finetune)}`, head `{_name_target(cfg.head)}`, loss `{_name_target(cfg.loss)}`",
        "Data": f"`{benchmark_name(cfg.data) or _name_target(cfg.data)}`",
        "Command": "`python -m semcorr.train`; every setting is in `config.yaml`",
        "Versions": versions or "not recorded",
        "Revision": f"`{provenance.git}`" if provenance.get("git") else "not recorded",
    }
    return "\n".join(
        [
            f"# {name.rpartition('/')[2]}",
            "",
            "Semantic correspondence with semcorr: given a point on an object in one picture, find the same point",
            "on another object of its kind.",
            "",
            "```python",
            "from semcorr import Matcher",
            "",
            f"matcher = Matcher.load({json.dumps(name)})",
            'match = matcher.match("a.jpg", "b.jpg", points=[(120, 80)])',
            "```",
            "",
            "This repository holds the trained weights alone. The base weights are got by the backbone's name, or",
            'given as `Matcher.load(..., "backbone.weights=FILE")`; any other than those below are refused.',
            "",
            *_format_table(("", ""), rows.items()),
            *_format_scores(scores, benchmark),
            "",
            "The base weights and the data keep their own licences, which may forbid uses that this one allows.",
            "",
        ]
    )


def _name_target(section: DictConfig) -> str:
    return str(section._target_).rpartition(".")[2]


def _format_scores(scores: JsonMapping, benchmark: str) -> list[str]:
    if not scores:
        return ["", "No scores were recorded."]
    values = [(subset, _pck(scores, subset)) for subset in SUBSETS]
    rows = [(subset, "-" if value is None else f"{100 * value:.1f}") for subset, value in values]
    title = f"{scores.get('split', benchmark)}, {scores.get('pairs')} pairs, protocol {scores.get('protocol')}"
    return ["", *_format_table((title, f"PCK@{ALPHA} per image, percent"), rows)]


def _format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
