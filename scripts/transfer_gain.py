"""What voting gains over one source when a few annotated images label the others; on AnimalPose.

    python scripts/transfer_gain.py data/animal-pose
    python scripts/transfer_gain.py data/animal-pose --model "backbone=squeezenet"

Five images of each category are drawn, and label the category's other images by their boxes, as
`python -m semcorr.transfer` does; three times. A point is right within a tenth of the longer side of its box.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
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
from semcorr.inference.transfer.annotations import AnnotatedObject, read_objects
from semcorr.inference.transfer.crop import Crop, crop_picture
from semcorr.inference.transfer.pipeline import open_object_image, open_source
from semcorr.inference.transfer.propagate import (
    USES,
    LabelledSource,
    PropagatedKeypoints,
    SourceSimilarities,
    boxed_locations,
    check_rule,
    compute_source_similarities,
    propagate_from_similarities,
    read_out_points,
)
from semcorr.inference.transfer.vote import PRIOR_WEIGHT, source_fitness, vote_similarity
from semcorr.store.encode import split_into_chunks

ALPHA = 0.1
Hits = dict[str, tuple[Tensor, Tensor]]  # per rule: right (s k) or (1 k), and where it has an answer


def main(
    root: Annotated[Path, typer.Argument(help="With keypoints.json and images/.")],
    model: Annotated[str | None, typer.Option("--model")] = None,
    sources: Annotated[int, typer.Option("--sources", min=2, help="LabelledSource images per category.")] = 5,
    draws: Annotated[int, typer.Option("--draws", min=1)] = 3,
    most: Annotated[int | None, typer.Option("--most", min=1, help="Targets per category; all, if left out.")] = None,
    device: Annotated[str | None, typer.Option("--device")] = None,
) -> None:
    with report_user_errors("evaluate"):
        kinds, things, _ = read_objects(root / "keypoints.json", root / "images", "xyxy")
        matcher = Matcher.load(model, device=device)
        check_rule(matcher)
        scores: list[dict[str, tuple[float, float]]] = []
        believed: list[Tensor] = []
        with Progress(transient=True) as bar:
            task = bar.add_task("Labelling", total=None)
            jobs = [job(kinds, things, sources, draw, most) for draw in range(draws)]
            bar.update(task, total=sum(len(targets) for drawn in jobs for _, _, targets in drawn))
            for drawn in jobs:
                found: list[Hits] = []
                for kind, some, targets in drawn:
                    known = [each for one in some for each in open_source(matcher, one, kinds[kind], flip=True)]
                    for thing, part, target in encoded(matcher, targets):
                        asked = compute_source_similarities(matcher, known, target)
                        placed = propagate_from_similarities(matcher, known, target, asked, "vote", PRIOR_WEIGHT)
                        rules = judged(matcher, asked, thing, part, target)
                        rules |= by_place(matcher, known, asked, placed, thing, part, target)
                        found.append(rules)
                        believed.append(scored(placed, thing, part))
                        bar.advance(task)
                scores.append(summary(found))
    show(scores, sources, sum(len(targets) for _, _, targets in jobs[0]))
    show_scores(torch.cat(believed))


def job(kinds, things: Sequence[AnnotatedObject], sources: int, draw: int, most: int | None):
    """Of one draw: category, sources, targets."""
    found = []
    for kind in kinds:
        mine = [thing for thing in things if thing.category == kind and bool(thing.keypoint_mask.any())]
        random.Random(f"{draw}/{kind}").shuffle(mine)
        found.append((kind, mine[:sources], mine[sources:][:most]))
    return found


def encoded(matcher: Matcher, targets: Sequence[AnnotatedObject]):
    for some in split_into_chunks(list(targets), matcher.batch):
        parts = [crop_picture(open_object_image(thing), thing.box) for thing in some]
        yield from zip(some, parts, matcher.encode_all([part.picture for part in parts]), strict=True)


def judged(
    matcher: Matcher, asked: SourceSimilarities, thing: AnnotatedObject, part: Crop, target: EncodedPicture
) -> Hits:
    """What every rule says of one target: whether it is right, of the keypoints the target shows."""
    own = SourceSimilarities(
        asked.similarity[::2], asked.keypoint_mask[::2], asked.stride
    )  # sources alternate with their mirror images
    alone = torch.stack([read_out_points(matcher, some, own.stride) for some in own.similarity])
    said = {"one source": (alone, own.keypoint_mask)}
    median = geometric_median(alone, own.keypoint_mask).masked_fill(~own.keypoint_mask.any(0)[:, None], 0.0)
    said["geometric median of all"] = (median[None], own.keypoint_mask.any(0)[None])
    for note, some in (("", own), (", also mirrored", asked)):
        fit = source_fitness(some.similarity, some.keypoint_mask)
        for name, use in (("best source", "best"), ("vote of all", "vote")):
            found = read_out_points(
                matcher, vote_similarity(some.similarity, USES[use](fit, some.keypoint_mask)), some.stride
            )
            said[name + note] = (found[None], some.keypoint_mask.any(0)[None])
    return {rule: (right(points, thing, part, target), there.cpu()) for rule, (points, there) in said.items()} | {
        "": (thing.keypoint_mask[None], own.keypoint_mask.any(0).cpu()[None])
    }


def by_place(
    matcher: Matcher,
    known: Sequence[LabelledSource],
    asked: SourceSimilarities,
    found: PropagatedKeypoints,
    thing: AnnotatedObject,
    part: Crop,
    target: EncodedPicture,
) -> Hits:
    """The vote that also counts where sources have a keypoint; and that alone, which looks at no feature."""
    shown = asked.keypoint_mask
    even = shown / shown.sum(0).clamp_min(1)
    blind = read_out_points(matcher, boxed_locations(known, even, asked), asked.stride)
    there = shown.any(0).cpu()[None]
    return {
        "place alone": (right(blind[None], thing, part, target), there),
        "vote of all, also mirrored, and place": (near(found.points, thing, part)[None], there),
    }


def right(points: Tensor, thing: AnnotatedObject, part: Crop, target: EncodedPicture) -> Tensor:
    """(s k) of points (s k 2) in the network's pixels."""
    return torch.stack([near(target.placement.from_view(some).cpu(), thing, part) for some in points])


def near(points: Tensor, thing: AnnotatedObject, part: Crop) -> Tensor:
    """(k) of points (k 2) in the part's pixels."""
    assert thing.box is not None
    return (part.out_of(points) - thing.points).norm(dim=-1) <= ALPHA * max(thing.box[2:])


def scored(found: PropagatedKeypoints, thing: AnnotatedObject, part: Crop) -> Tensor:
    """Rows (k 3) of a vote: its score, whether it is right, whether the target shows the keypoint."""
    hits = near(found.points, thing, part)
    return torch.stack((found.scores, hits.float(), thing.keypoint_mask.float()), dim=-1)


def geometric_median(points: Tensor, there: Tensor, steps: int = 30) -> Tensor:
    """Of points (s k 2) that are there (s k), by Weiszfeld's iteration: the other way to vote."""
    weights = there.float()
    for _ in range(steps):
        middle = (points * weights[..., None]).sum(0) / weights.sum(0).clamp_min(1e-9)[:, None]
        weights = there / (points - middle).norm(dim=-1).clamp_min(0.01)
    return middle


def summary(found: Sequence[Hits]) -> dict[str, tuple[float, float]]:
    """Per rule, percent right of the keypoints of targets that some source shows; and of all.

    One source is the mean of all sources that show the keypoint; of all keypoints, of all sources, where one that does
    not show it is wrong.
    """
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    answerable = sum(int((hits[""][0] & hits[""][1]).sum()) for hits in found)
    everything = sum(int(hits[""][0].sum()) for hits in found)
    for hits in found:
        visible, some = (each[0] for each in hits[""])
        for rule, (correct, there) in hits.items():
            if rule:
                good = (correct & there).float()
                counts[rule][0] += float((good.sum(0) / there.sum(0).clamp_min(1))[visible & some].sum())
                counts[rule][1] += float(good.mean(0)[visible].sum())
    return {rule: (100 * one / answerable, 100 * all_ / everything) for rule, (one, all_) in counts.items()}


def show(scores: Sequence[dict[str, tuple[float, float]]], sources: int, targets: int) -> None:
    table = Table(
        title=f"PCK@{ALPHA} per point in percent; {sources} sources per category, {targets} targets, "
        f"mean of {len(scores)} draws"
    )
    for header in ("rule", "of keypoints that a source shows", "gain (least of draws)", "of all keypoints"):
        table.add_column(header, justify="left" if header == "rule" else "right")
    for rule in scores[0]:
        mine, one = ([score[name][0] for score in scores] for name in (rule, "one source"))
        gains = [a - b for a, b in zip(mine, one, strict=True)]
        every = sum(score[rule][1] for score in scores) / len(scores)
        mean, gain = sum(mine) / len(mine), sum(gains) / len(gains)
        table.add_row(rule, f"{mean:.1f}", f"{gain:+.1f} ({min(gains):+.1f})", f"{every:.1f}")
    Console(width=120).print(table)


def show_scores(rows: Tensor) -> None:
    """What --min-score leaves."""
    table = Table(title="the last rule: what scores more than --min-score, in percent")
    for header in ("--min-score", "of shown keypoints", "of these right", "of hidden keypoints"):
        table.add_column(header, justify="right")
    score, right_, shown = rows.unbind(-1)
    for least in (0.0, 0.05, 0.1, 0.2, 0.3):
        kept = score > least
        shares = kept[shown > 0].float().mean(), right_[kept & (shown > 0)].mean(), kept[shown == 0].float().mean()
        table.add_row(f"{least:g}", *(f"{100 * float(share):.0f}" for share in shares))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
