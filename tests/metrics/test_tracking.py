"""TAP-Vid's scores: by hand, and against the definition spelt out point by point."""

import pytest
import torch

from semcorr.data.tapvid import first_queries, strided_queries
from semcorr.metrics.predictions import gather_tables
from semcorr.metrics.tracking import (
    ORDER,
    SCHEMA,
    THRESHOLDS,
    build_track_rows,
    mean_over_videos,
    tapvid_metrics,
    video_scores,
)

NEVER = torch.zeros(1, 4, dtype=torch.bool)


def slow_queries(occluded: list[list[bool]], mode: str) -> list[tuple[int, int]]:
    """(track, frame) of every query."""
    frames = range(len(occluded[0]))
    if mode == "strided":
        return [(n, t) for t in frames if t % 5 == 0 for n in range(len(occluded)) if not occluded[n][t]]
    firsts = [(n, [t for t in frames if not row[t]]) for n, row in enumerate(occluded)]
    return [(n, visible[0]) for n, visible in firsts if visible]


def slow_scores(predicted, hidden, truth, occluded, queries, mode: str) -> dict:
    """The definition, one query and one frame after the other, on nested lists; one row of `predicted` a query."""
    scores: dict = {"delta": {}, "jaccard": {}}
    for threshold in (1, 2, 4, 8, 16):
        right = visible = positive = false_positive = same = count = 0
        for q, (n, start) in enumerate(queries):
            for t in range(len(truth[n])):
                if t == start or (mode == "first" and t < start):
                    continue
                (x, y), (u, v) = predicted[q][t], truth[n][t]
                within = (x - u) * (x - u) + (y - v) * (y - v) < threshold * threshold
                count += 1
                same += hidden[q][t] == occluded[n][t]
                visible += not occluded[n][t]
                right += within and not occluded[n][t]
                positive += within and not occluded[n][t] and not hidden[q][t]
                false_positive += not hidden[q][t] and (occluded[n][t] or not within)
        scores["delta"][str(threshold)] = right / visible
        scores["jaccard"][str(threshold)] = positive / (visible + false_positive)
        scores["OA"] = same / count
    scores["delta_avg"] = sum(scores["delta"].values()) / 5
    scores["AJ"] = sum(scores["jaccard"].values()) / 5
    return scores


@pytest.mark.parametrize("mode", ["first", "strided"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_and_queries_agree_with_the_definition_spelt_out(mode, seed):
    torch.manual_seed(seed)
    n, t = 12, 13
    truth, occluded = torch.rand(n, t, 2) * 256, torch.rand(n, t) < 0.4
    occluded[3] = True
    queries = {"first": first_queries, "strided": strided_queries}[mode](occluded)
    points, is_hidden = truth[queries.track], occluded[queries.track]
    predicted = points + torch.randn_like(points) * torch.rand(points.shape[:2])[..., None] * 8
    called = torch.rand(is_hidden.shape) < 0.3

    scores = tapvid_metrics(predicted, called, points, is_hidden, queries.evaluated)

    expected = slow_queries(occluded.tolist(), mode)
    assert list(zip(queries.track.tolist(), queries.frame.tolist(), strict=True)) == expected
    lists = [values.tolist() for values in (predicted, called, truth, occluded)]
    slow = slow_scores(*lists, expected, mode)
    for name in ("delta_avg", "AJ", "OA"):
        assert scores[name] == pytest.approx(slow[name], abs=1e-12)
    assert scores["delta"] == slow["delta"]
    assert scores["jaccard"] == slow["jaccard"]


def test_a_tracker_that_copies_the_query_scores_what_the_definition_says():
    """A point moves 3 pixels a frame and is hidden in frame 3; frames 1 to 4 count: 3, 6, (9,) 12 pixels off."""
    truth = torch.tensor([[[100.0 + 3 * t, 50.0] for t in range(5)]])
    occluded = torch.tensor([[False, False, False, True, False]])
    queries = first_queries(occluded)

    scores = tapvid_metrics(
        truth[:, :1].expand(1, 5, 2), torch.zeros(1, 5, dtype=torch.bool), truth, occluded, queries.evaluated
    )

    assert scores["delta"] == {"1": 0, "2": 0, "4": 1 / 3, "8": 2 / 3, "16": 1}
    assert scores["delta_avg"] == pytest.approx(0.4)
    assert scores["OA"] == 3 / 4
    # TP / (3 visible + FP): FP is what is not within, and the hidden point, called visible, always
    assert scores["jaccard"] == {"1": 0 / 7, "2": 0 / 7, "4": 1 / 6, "8": 2 / 5, "16": 3 / 4}
    assert scores["AJ"] == pytest.approx((1 / 6 + 2 / 5 + 3 / 4) / 5)


def test_a_perfect_tracker_scores_1():
    truth, occluded = torch.rand(6, 11, 2) * 256, torch.rand(6, 11) < 0.3
    for queries in (first_queries(occluded), strided_queries(occluded)):
        points, hidden = truth[queries.track], occluded[queries.track]
        scores = tapvid_metrics(points, hidden, points, hidden, queries.evaluated)
        assert [scores[name] for name in ("delta_avg", "OA", "AJ")] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_point_exactly_at_the_threshold_is_outside(threshold):
    truth, evaluated = torch.zeros(1, 4, 2), ~NEVER
    on = torch.tensor([[0.6, 0.8]], dtype=torch.double) * threshold  # 0.36 + 0.64 is exactly 1
    on = torch.stack((on[0], on[0].flip(0), torch.tensor([threshold, 0.0]), torch.tensor([0.0, -threshold])))[None]

    assert tapvid_metrics(on.double(), NEVER, truth, NEVER, evaluated)["delta"][str(threshold)] == 0
    assert tapvid_metrics(on * 0.9999, NEVER, truth, NEVER, evaluated)["delta"][str(threshold)] == 1


def test_first_queries_ignore_the_frames_up_to_the_query():
    occluded = torch.tensor([[True, True, False, False, True]])
    queries = first_queries(occluded)
    wrong_before = torch.tensor([[[99.0, 99.0]] * 3 + [[0.0, 0.0]] * 2])

    scores = tapvid_metrics(wrong_before, occluded, torch.zeros(1, 5, 2), occluded, queries.evaluated)

    assert queries.evaluated.tolist() == [[False, False, False, True, True]]
    assert scores["AJ"] == 1.0


def test_tracks_that_are_never_visible_are_not_asked_for():
    occluded = torch.tensor([[True] * 6, [False] * 6])
    assert first_queries(occluded).track.tolist() == [1]
    assert strided_queries(occluded).track.tolist() == [1, 1]


def test_strided_queries_are_every_fifth_frame_and_leave_out_only_their_own():
    queries = strided_queries(torch.zeros(2, 11, dtype=torch.bool))
    assert queries.frame.tolist() == [0, 0, 5, 5, 10, 10]
    assert queries.track.tolist() == [0, 1] * 3
    for frame, evaluated in zip(queries.frame.tolist(), queries.evaluated.tolist(), strict=True):
        assert [t for t in range(11) if not evaluated[t]] == [frame]


def test_nothing_visible_is_none_and_left_out_of_the_mean():
    hidden = tapvid_metrics(torch.zeros(1, 4, 2), ~NEVER, torch.zeros(1, 4, 2), ~NEVER, ~NEVER)
    assert hidden["delta_avg"] is hidden["AJ"] is hidden["delta"]["4"] is None
    assert hidden["OA"] == 1.0

    seen = tapvid_metrics(torch.full((1, 4, 2), 3.0), NEVER, torch.zeros(1, 4, 2), NEVER, ~NEVER)
    both = mean_over_videos({"a": hidden, "b": seen | {"OA": 0.5}})
    assert (both["delta_avg"], both["OA"]) == (seen["delta_avg"], 0.75)


def test_every_score_follows_from_the_rows_in_whatever_order_they_come():
    torch.manual_seed(0)
    tables, expected = [], {}
    for video in ("b", "a", "c"):
        truth, occluded = torch.rand(7, 9, 2) * 256, torch.rand(7, 9) < 0.3
        queries = first_queries(occluded)
        truth, occluded = truth[queries.track], occluded[queries.track]
        predicted, called = truth + torch.randn_like(truth) * 4, torch.rand(occluded.shape) < 0.3
        expected[video] = tapvid_metrics(predicted, called, truth, occluded, queries.evaluated)
        query = truth[torch.arange(len(truth)), queries.frame]
        rows = build_track_rows(
            video=video, track=queries.track, query_frame=queries.frame, query=query, truth=truth,
            predicted=predicted, occluded=occluded, predicted_occluded=called, evaluated=queries.evaluated,
            score=torch.rand(occluded.shape), localise="argmax",
        )  # fmt: skip
        assert rows.num_rows == int(queries.evaluated.sum())
        tables.append(rows)

    table = gather_tables(tables, SCHEMA, ORDER)

    assert table.schema == SCHEMA
    assert video_scores(table) == expected
    assert list(video_scores(table)) == ["a", "b", "c"]
