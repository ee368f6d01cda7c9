"""Measure the gain of voting over a single source when a few annotated images label the others, on AnimalPose.

    python scripts/measure_transfer_gain.py data/animal-pose
    python scripts/measure_transfer_gain.py data/animal-pose --model "backbone=squeezenet"

Five random images of each category label the other images of the category by their boxes, as
`python -m semcorr.transfer` does; this is repeated three times. A point is correct within a tenth of the longer side of
its box.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from semcorr.cli.errors import report_user_errors
from semcorr.inference import Matcher
from semcorr.inference.encoded import EncodedPicture
from semcorr.inference.transfer.annotations import read_objects
from semcorr.inference.transfer.crop import Crop, crop_picture
from semcorr.inference.transfer.objects import AnnotatedObject
from semcorr.inference.transfer.pipeline import open_object_image, open_source
from semcorr.inference.transfer.propagate import (
    PRIOR_WEIGHT,
    USES,
    LabelledSource,
    PropagatedKeypoints,
    SourceSimilarities,
    boxed_locations,
    check_readout,
    compute_source_similarities,
    propagate_from_similarities,
    read_out_points,
    source_fitness,
    vote_similarity,
)
from semcorr.store.encode import split_into_chunks

ALPHA = 0.1
Hits = dict[str, tuple[Tensor, Tensor]]  # per rule: correct (s k) or (1 k), and whether the rule predicts the point


def main(
    root: Annotated[Path, typer.Argument(help="With keypoints.json and images/.")],
    model: Annotated[str | None, typer.Option("--model")] = None,
    sources: Annotated[int, typer.Option("--sources", min=2, help="Labelled images per category.")] = 5,
    draws: Annotated[int, typer.Option("--draws", min=1)] = 3,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Targets per category; all, if left out.")] = None,
    device: Annotated[str | None, typer.Option("--device")] = None,
) -> None:
    with report_user_errors("evaluate"):
        content = read_objects(root / "keypoints.json", root / "images", "xyxy")
        kinds, objects = content.categories, content.objects
        matcher = Matcher.load(model, device=device)
        check_readout(matcher)
        scores: list[dict[str, tuple[float, float]]] = []
        vote_scores: list[Tensor] = []
        with Progress(transient=True) as bar:
            task = bar.add_task("Labelling", total=None)
            jobs = [draw_job(kinds, objects, sources, draw, most) for draw in range(draws)]
            bar.update(task, total=sum(len(targets) for categories in jobs for _, _, targets in categories))
            for categories in jobs:
                hits: list[Hits] = []
                for kind, labelled, targets in categories:
                    known = [x for item in labelled for x in open_source(matcher, item, kinds[kind], flip=True)]
                    for target_object, part, target in encode_targets(matcher, targets):
                        similarities = compute_source_similarities(matcher, known, target)
                        placed = propagate_from_similarities(matcher, known, target, similarities, "vote", PRIOR_WEIGHT)
                        rules = score_rules(matcher, similarities, target_object, part, target)
                        rules |= score_locations(matcher, known, similarities, placed, target_object, part, target)
                        hits.append(rules)
                        vote_scores.append(stack_scores(placed, target_object, part))
                        bar.advance(task)
                scores.append(summarise_hits(hits))
    print_rules(scores, sources, sum(len(targets) for _, _, targets in jobs[0]))
    print_scores(torch.cat(vote_scores))


def draw_job(
    kinds: Iterable[str], objects: Sequence[AnnotatedObject], sources: int, draw: int, most: int | None
) -> list[tuple[str, list[AnnotatedObject], list[AnnotatedObject]]]:
    """Draw the sources: list each category with its sources and targets.

    Args:
        kinds: Ids of the categories.
        objects: All objects of the benchmark.
        sources: Number of sources of a category.
        draw: Number of the draw, which decides by which objects the others are labelled.
        most: Largest number of targets of a category; None for all.
    """
    splits = []
    for kind in kinds:
        annotated = [item for item in objects if item.category == kind and bool(item.keypoint_mask.any())]
        random.Random(f"{draw}/{kind}").shuffle(annotated)
        splits.append((kind, annotated[:sources], annotated[sources:][:most]))
    return splits


def encode_targets(
    matcher: Matcher, targets: Sequence[AnnotatedObject]
) -> Iterator[tuple[AnnotatedObject, Crop, EncodedPicture]]:
    """Yield every target with its crop and the encoded crop."""
    for chunk in split_into_chunks(list(targets), matcher.batch):
        parts = [crop_picture(open_object_image(item), item.box) for item in chunk]
        yield from zip(chunk, parts, matcher.encode_all([part.picture for part in parts]), strict=True)


def score_rules(
    matcher: Matcher,
    similarities: SourceSimilarities,
    target_object: AnnotatedObject,
    part: Crop,
    target: EncodedPicture,
) -> Hits:
    """Score the rules that use only features on one target; the key "" holds the keypoints it shows."""
    # sources alternate with their mirror images
    unmirrored = SourceSimilarities(similarities.similarity[::2], similarities.keypoint_mask[::2], similarities.stride)
    single = torch.stack([read_out_points(matcher, x, unmirrored.stride) for x in unmirrored.similarity])
    predictions = {"one source": (single, unmirrored.keypoint_mask)}
    median = geometric_median(single, unmirrored.keypoint_mask).masked_fill(
        ~unmirrored.keypoint_mask.any(0)[:, None], 0.0
    )
    predictions["geometric median of all"] = (median[None], unmirrored.keypoint_mask.any(0)[None])
    for note, x in (("", unmirrored), (", also mirrored", similarities)):
        fit = source_fitness(x.similarity, x.keypoint_mask)
        for name, use in (("best source", "best"), ("vote of all", "vote")):
            voted = read_out_points(matcher, vote_similarity(x.similarity, USES[use](fit, x.keypoint_mask)), x.stride)
            predictions[name + note] = (voted[None], x.keypoint_mask.any(0)[None])
    return {
        rule: (are_correct(points, target_object, part, target), mask.cpu())
        for rule, (points, mask) in predictions.items()
    } | {"": (target_object.keypoint_mask[None], unmirrored.keypoint_mask.any(0).cpu()[None])}


def score_locations(
    matcher: Matcher,
    known: Sequence[LabelledSource],
    similarities: SourceSimilarities,
    placed: PropagatedKeypoints,
    target_object: AnnotatedObject,
    part: Crop,
    target: EncodedPicture,
) -> Hits:
    """Score the vote that also counts locations of the sources' keypoints, and these locations without features."""
    is_labelled = similarities.keypoint_mask
    uniform = is_labelled / is_labelled.sum(0).clamp_min(1)
    points = read_out_points(matcher, boxed_locations(known, uniform, similarities), similarities.stride)
    mask = is_labelled.any(0).cpu()[None]
    return {
        "place alone": (are_correct(points[None], target_object, part, target), mask),
        "vote of all, also mirrored, and place": (are_near(placed.points, target_object, part)[None], mask),
    }


def are_correct(points: Tensor, target_object: AnnotatedObject, part: Crop, target: EncodedPicture) -> Tensor:
    """Tell which points (s k 2), in the network's pixels, are correct (s k)."""
    return torch.stack([are_near(target.placement.from_view(x).cpu(), target_object, part) for x in points])


def are_near(points: Tensor, target_object: AnnotatedObject, part: Crop) -> Tensor:
    """Tell which points (k 2), in pixels of the crop, are correct (k)."""
    assert target_object.box is not None
    return (part.from_crop(points) - target_object.points).norm(dim=-1) <= ALPHA * max(target_object.box[2:])


def stack_scores(vote: PropagatedKeypoints, target_object: AnnotatedObject, part: Crop) -> Tensor:
    """Return rows (k 3) of a vote: its score, whether it is correct, whether the target shows the keypoint."""
    correct = are_near(vote.points, target_object, part)
    return torch.stack((vote.scores, correct.float(), target_object.keypoint_mask.float()), dim=-1)


def geometric_median(points: Tensor, is_given: Tensor, steps: int = 30) -> Tensor:
    """Compute the geometric median of the points (s k 2) that `is_given` (s k) marks, by Weiszfeld's iteration."""
    weights = is_given.float()
    for _ in range(steps):
        middle = (points * weights[..., None]).sum(0) / weights.sum(0).clamp_min(1e-9)[:, None]
        weights = is_given / (points - middle).norm(dim=-1).clamp_min(0.01)
    return middle


def summarise_hits(draws: Sequence[Hits]) -> dict[str, tuple[float, float]]:
    """Return the percentage of correct keypoints per rule: of keypoints that some source shows, and of all.

    "One source" is a mean over sources: in the first percentage over those that show the keypoint, in the second over
    all, where a source that does not show the keypoint counts as wrong.
    """
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    answerable = sum(int((hits[""][0] & hits[""][1]).sum()) for hits in draws)
    keypoint_count = sum(int(hits[""][0].sum()) for hits in draws)
    for hits in draws:
        visible, labelled = (mask[0] for mask in hits[""])
        for rule, (correct, predicted) in hits.items():
            if rule:
                hit = (correct & predicted).float()
                counts[rule][0] += float((hit.sum(0) / predicted.sum(0).clamp_min(1))[visible & labelled].sum())
                counts[rule][1] += float(hit.mean(0)[visible].sum())
    return {
        rule: (100 * labelled / answerable, 100 * total / keypoint_count) for rule, (labelled, total) in counts.items()
    }


def print_rules(scores: Sequence[dict[str, tuple[float, float]]], sources: int, targets: int) -> None:
    """Print a table of the rules, with their gain over one source."""
    table = Table(
        title=f"PCK@{ALPHA} per point in percent; {sources} sources per category, {targets} targets, "
        f"mean of {len(scores)} draws"
    )
    for header in ("rule", "of keypoints that a source shows", "gain (least of draws)", "of all keypoints"):
        table.add_column(header, justify="left" if header == "rule" else "right")
    for rule in scores[0]:
        values, baseline = ([score[name][0] for score in scores] for name in (rule, "one source"))
        gains = [a - b for a, b in zip(values, baseline, strict=True)]
        overall = sum(score[rule][1] for score in scores) / len(scores)
        mean, gain = sum(values) / len(values), sum(gains) / len(gains)
        table.add_row(rule, f"{mean:.1f}", f"{gain:+.1f} ({min(gains):+.1f})", f"{overall:.1f}")
    Console(width=120).print(table)


def print_scores(rows: Tensor) -> None:
    """Print the shares of keypoints that --min-score keeps."""
    table = Table(title="the last rule: what scores more than --min-score, in percent")
    for header in ("--min-score", "of shown keypoints", "of these right", "of hidden keypoints"):
        table.add_column(header, justify="right")
    score, correct, visible = rows.unbind(-1)
    for least in (0.0, 0.05, 0.1, 0.2, 0.3):
        mask = score > least
        shares = (
            mask[visible > 0].float().mean(),
            correct[mask & (visible > 0)].mean(),
            mask[visible == 0].float().mean(),
        )
        table.add_row(f"{least:g}", *(f"{100 * float(share):.0f}" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
