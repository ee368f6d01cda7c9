"""A damaged file of an annotation tool is read, or is one sentence: never another error."""

import copy
import json
import random
import re
from pathlib import Path

import pytest
from random_damage import JUNK, damage, refusal, spoil_tree
from tool_files import CVAT, LABEL_STUDIO, SEVERAL, write_images, write_tool_files

from semcorr.inference.transfer.annotations import read_annotations, read_objects


def spoil_text(text: str, pattern: str, draw: random.Random) -> str:
    """Put junk in place of some of what a pattern finds, drop some, repeat some."""
    for _ in range(draw.randrange(1, 4)):
        match = draw.choice(list(re.finditer(pattern, text)))
        start, end = match.span(1)
        new = draw.choice([draw.choice(JUNK), "", text[start:end] * 2])
        text = text[:start] + new + text[end:]
    return text


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tools")
    write_images(root)
    return root


def outcomes(root: Path, contents: list[tuple[str, bytes]]) -> tuple[int, int]:
    """How many are read, and how many refused."""
    read = refused = 0
    for name, content in contents:
        path = root / name
        path.write_bytes(content)
        messages = [
            refusal(lambda path=path: read_objects(path, root / "images")),
            refusal(lambda path=path: read_annotations(path, root / "images", category="cat")),
        ]
        assert all(len(message) < 900 for message in messages)
        refused += bool(messages[0])
        read += not messages[0]
    return read, refused


@pytest.mark.parametrize("kind", ["cvat", "label-studio", "deeplabcut"])
def test_damaged_bytes_are_read_or_refused(root, tmp_path, kind):
    path = write_tool_files(tmp_path)[kind]

    read, refused = outcomes(root, [(path.name, damage(path.read_bytes(), seed)) for seed in range(70)])

    assert read >= 1
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "text", "pattern"),
    [
        ("annotations.xml", CVAT, r'(?:="|>)([^"<>\n]+)["<]'),
        ("annotations.xml", CVAT, r"<(/?[a-z]+)[ >]"),
        ("CollectedData_me.csv", SEVERAL, r"([^,\n]*)[,\n]"),
    ],
)
def test_damaged_fields_are_read_or_refused(root, name, text, pattern):
    draw = random.Random(pattern)

    read, refused = outcomes(root, [(name, spoil_text(text, pattern, draw).encode()) for _ in range(80)])

    assert read + refused == 80
    assert refused > 20


def test_damaged_tasks_of_label_studio_are_read_or_refused(root):
    draw = random.Random(0)
    contents = [json.dumps(spoil_tree(copy.deepcopy(LABEL_STUDIO), draw)).encode() for _ in range(150)]

    read, refused = outcomes(root, [("project.json", content) for content in contents])

    assert read > 15
    assert refused > 30
