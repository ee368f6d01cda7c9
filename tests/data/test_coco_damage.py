"""A damaged COCO file gives what the undamaged one gives, less what was damaged, or one sentence."""

import copy
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from coco_forms import EXPECTED, FILES, content, list_scored, read, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_damage import damage, refusal

from semcorr.inference.transfer.annotations import read_annotations

NUMBERS = [float("nan"), float("inf"), -float("inf")]
JUNK = [None, True, False, "", "x", "NaN", [], {}, [None], [[]], {"a": 1}, "\\", "\n", *NUMBERS]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
Place = tuple[str | int, ...]


def places(tree: object, above: Place = ()) -> Iterator[Place]:
    """Of everything in a file."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*above, key)
        yield from places(value, (*above, key))


def spoil(form: dict, place: Place, draw: random.Random) -> None:
    """Put something else in a place, take it away, repeat it, or write it as text."""
    *above, key = place
    for step in above:
        form = form[step]
    kind = draw.randrange(5)
    if kind == 0 and isinstance(form[key], int | float) and not isinstance(form[key], bool) and "id" in str(key):
        form[key] = str(form[key])
    elif kind == 1:
        del form[key]
    elif kind == 2 and isinstance(form, list):
        form.insert(key, copy.deepcopy(form[key]))
    else:
        form[key] = copy.deepcopy(draw.choice(JUNK))


def damaged(draw: random.Random) -> tuple[bytes, list[Place]]:
    form = content()
    chosen = draw.choices(list(places(form)), k=draw.randrange(1, 4))
    done = []
    for place in chosen:
        try:
            spoil(form, place, draw)
            done.append(place)
        except (KeyError, IndexError, TypeError, AttributeError):  # the damage before it took the place away
            continue
    return json.dumps(form).encode(draw.choice(ENCODINGS)), done


def right(records: list[tuple], done: list[Place]) -> None:
    """All of the file, but what was damaged: that may be left out, or have the box of its keypoints."""
    expected = {one[0]: one for one in EXPECTED}
    touched = {FILES[place[1]] if len(place) > 1 else None for place in done if place[0] in ("images", "annotations")}
    some = {file for file in FILES if file in touched or None in touched}
    assert {one[0] for one in records} >= set(FILES) - some
    assert len({one[0] for one in records}) == len(records)
    for one in records:
        assert one[:4] == expected[one[0]][:4]
        displayed = [point for point, visible in zip(one[2], one[3], strict=True) if visible]
        around = (*map(min, zip(*displayed, strict=True)), *map(max, zip(*displayed, strict=True)))
        assert one[4] == expected[one[0]][4] or (one[0] in some and one[4] == around)


def check(root: Path, draw: random.Random, seen: list[str]) -> None:
    text, done = damaged(draw)
    (root / "keypoints.json").write_bytes(text)
    message = refusal(lambda: right(list_scored(read(root)), done))
    assert not message or (message.startswith(str(root)) and "official" not in message)
    seen.append("refused" if message else "read")
    refusal(lambda: read_annotations(root / "keypoints.json", root / "images"))


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_to_its_fields_is_a_right_answer_or_a_user_error(tmp_path, count):
    root, seen = write(tmp_path), []
    healthy = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

    @settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=healthy)
    @given(st.randoms(use_true_random=False))
    def every(draw: random.Random) -> None:
        check(root, draw, seen)

    every()
    assert min(seen.count("read"), seen.count("refused")) >= count // 10


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_to_its_bytes_is_no_traceback(tmp_path, count):
    text = json.dumps(content()).encode()
    readers = [
        partial(read, write(tmp_path)),
        partial(read_annotations, tmp_path / "keypoints.json", tmp_path / "images"),
    ]
    refused = 0
    for seed in range(count):
        (tmp_path / "keypoints.json").write_bytes(damage(text, seed))
        refused += sum(bool(refusal(reader)) for reader in readers)
    assert refused > count // 2
