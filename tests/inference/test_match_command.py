"""python -m semcorr.match, as typed; the quickstart, the tour and the page about matching, as they stand there."""

import ast
import base64
import io
import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT

from semcorr import Matcher, match
from semcorr.core.types import FeatureMap
from semcorr.data.pictures import load_picture
from semcorr.data.synthetic import write_synthetic
from semcorr.inference.encoded import EncodedPicture, place_picture
from semcorr.inference.foreground import foreground_cells, foreground_grid
from semcorr.inference.matches import Match
from semcorr.inference.plots import LEGEND

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.jpg, b.jpg, and pictures/ with three more."""
    folder = tmp_path_factory.mktemp("pictures")
    write_synthetic(folder / "drawn", images={"trn": 0, "val": 0, "test": 5}, categories=["cat"])
    drawn = sorted((folder / "drawn/JPEGImages/cat").glob("*.jpg"))
    (folder / "pictures").mkdir()
    for path, name in zip(drawn, ["a.jpg", "b.jpg", *(f"pictures/{i}.jpg" for i in range(3))], strict=True):
        path.rename(folder / name)
    return folder


@pytest.fixture
def typed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """typed("a.jpg b.jpg --mutual") is the exit code of that line, and what it said."""

    def main(line: str, *more: str) -> tuple[int, str]:
        words = ["--device", "cpu", *more, *([] if "--out" in more else ["--out", str(tmp_path / "out")])]
        monkeypatch.chdir(folder)
        code = match.main([*line.split(), *words])
        output = capsys.readouterr()
        return code, output.out + output.err

    return main


TINY = ("--model", "tiny")


def test_points_are_matched_as_matcher_does_and_drawn(typed, folder, tmp_path):
    code, output = typed("a.jpg b.jpg --points 120,80 20.5,40 --dense --pca", *TINY)

    assert code == 0, output
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"b.png", "b_warped.png", "b_features.png", "matches.json"}
    found = json.loads((out / "matches.json").read_text())
    expected = Matcher.load("tiny", device="cpu").match(folder / "a.jpg", folder / "b.jpg", [[120, 80], [20.5, 40]])
    rows = found["targets"][0]["matches"]
    assert [row["source"] for row in rows] == [[120, 80], [20.5, 40]]
    assert np.allclose([row["target"] for row in rows], expected.points, atol=0.01)
    assert np.allclose([row["score"] for row in rows], expected.scores, atol=1e-4)
    assert [row["consistent"] for row in rows] == expected.consistent.tolist()
    with Image.open(folder / "a.jpg") as image:
        assert found["size"] == list(image.size)
    with Image.open(out / "b.png") as drawn:
        assert drawn.height == 480 + LEGEND
    assert f"{rows[0]['target'][0]:.1f}" in output


def test_the_mark_of_a_point_is_drawn_where_the_point_is(typed, folder, tmp_path):
    typed("a.jpg a.jpg --points 120,80", *TINY)
    with Image.open(folder / "a.jpg") as image, Image.open(tmp_path / "out/a.png") as drawn:
        scale = 480 / image.height
        plain = np.asarray(image.convert("RGB").resize((round(image.width * scale), 480))).astype(int)
        changed = np.abs(np.asarray(drawn)[:480, : plain.shape[1]] - plain).sum(-1) > 150

    rows, columns = np.nonzero(changed[:, : int(120.5 * scale) + 12])  # the line leads to the right
    assert np.median(columns) == pytest.approx(120.5 * scale, abs=3)
    assert np.median(rows) == pytest.approx(80.5 * scale, abs=3)


def test_a_folder_is_matched_in_one_go_over_a_grid(typed, tmp_path):
    code, output = typed("a.jpg pictures", "--most", "9", *TINY)

    assert code == 0, output
    found = json.loads((tmp_path / "out/matches.json").read_text())
    assert [Path(target["target"]).name for target in found["targets"]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [target["image"] for target in found["targets"]] == ["0.png", "1.png", "2.png"]
    sources = [[row["source"] for row in target["matches"]] for target in found["targets"]]
    assert sources[0] == sources[1] == sources[2]
    assert 4 <= len(sources[0]) <= 20


def test_mutual_neighbours_are_as_many_as_asked_for(typed, tmp_path):
    assert typed("a.jpg b.jpg --mutual --most 5", *TINY)[0] == 0
    assert len(json.loads((tmp_path / "out/matches.json").read_text())["targets"][0]["matches"]) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg b.jpg --points 9999,3", "outside a.jpg"),
        ("a.jpg b.jpg --points here", "120,80"),
        ("a.jpg b.jpg --points 1_0,3", "must be like 120,80"),
        ("a.jpg b.jpg --points", "`--points` has no value"),
        ("a.jpg b.jpg --points --dense", "`--points` has no value"),
        ("a.jpg b.jpg --points 3,3 --mutual", "no effect beside --mutual"),
        ("a.jpg nothing.jpg", "nothing.jpg does not exist"),
        ("a.jpg text.jpg", "text.jpg is damaged or not an image"),
        ("a.jpg cut --points 3,3", "z.jpg is damaged"),
        ("a.jpg b.jpg --model tinny", "Did you mean tiny"),
        ("a.jpg b.jpg --model bob's", "bob's is neither a directory nor a line of words"),
    ],
)
def test_a_mistake_is_a_user_error_and_leaves_nothing(typed, folder, tmp_path, line, message):
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut").mkdir(exist_ok=True)
    (folder / "cut/a.jpg").write_bytes((folder / "b.jpg").read_bytes())
    (folder / "cut/z.jpg").write_bytes((folder / "b.jpg").read_bytes()[:3000])

    code, output = typed(line, *(() if "--model" in line else TINY))

    assert code == 2
    assert message in " ".join(output.split())
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())

    assert typed(line, "--out", str(tmp_path / "new/deep/folder"), *(() if "--model" in line else TINY))[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_picture_whose_name_begins_with_a_dash_is_distinguished_from_a_flag(typed, folder):
    shutil.copy(folder / "b.jpg", folder / "-b.jpg")

    code, output = typed("a.jpg -b.jpg", *TINY)

    assert code == 2
    assert "`-b.jpg` reads as a flag. Give ./-b.jpg if the file is meant." in " ".join(output.split())
    assert typed("a.jpg ./-b.jpg --points 3,3", *TINY)[0] == 0


def test_what_is_in_the_folder_already_stays(typed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()

    assert typed("a.jpg b.jpg --points 3,3", *TINY)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine.txt", "b.png", "matches.json"}


def test_a_picture_that_is_read_is_not_written_over(typed, folder, tmp_path):
    picture_folder = tmp_path / "mine"
    picture_folder.mkdir()
    for name in ("a", "b", "b_warped"):
        with Image.open(folder / "a.jpg") as image:
            image.save(picture_folder / f"{name}.png")
    (tmp_path / "link").symlink_to(picture_folder)
    before = {path: path.read_bytes() for path in picture_folder.iterdir()}

    for line in (
        f"{picture_folder}/a.png {picture_folder}/b.png",
        f"{picture_folder}/b_warped.png {picture_folder}/b.png --dense",
        f"b.jpg {picture_folder}",
    ):
        code, output = typed(line, "--out", str(tmp_path / "link"), "--model", "nothing")  # before a model is loaded
        assert code == 2
        assert "is one of the pictures that are read" in " ".join(output.split())
    assert {path: path.read_bytes() for path in picture_folder.iterdir()} == before


def test_a_warp_and_a_sheet_of_the_same_name_are_written_apart(typed, folder, tmp_path):
    (tmp_path / "two").mkdir()
    for name, source in (("b", "b.jpg"), ("b_warped", "a.jpg")):
        shutil.copy(folder / source, tmp_path / f"two/{name}.jpg")

    assert typed(f"a.jpg {tmp_path}/two --dense --points 3,3", *TINY)[0] == 0

    written = {"b.png", "b_warped.png", "b_warped.jpg.png", "b_warped.jpg_warped.png", "matches.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    found = json.loads((tmp_path / "out/matches.json").read_text())
    assert [target["image"] for target in found["targets"]] == ["b.png", "b_warped.jpg.png"]


def test_the_grid_lies_over_what_is_unlike_the_border():
    values = torch.zeros(1, 2, 20, 24)
    values[:, 0] = 1
    values[0, :, 6:14, 8:18] = torch.tensor([0.0, 1.0])[:, None, None]
    maps = FeatureMap(values, 10)
    _, place = place_picture(
        load_picture(np.random.default_rng(0).integers(0, 255, (200, 240, 3), dtype=np.uint8)), 240, "corner"
    )

    found = foreground_cells(maps, torch.ones(20, 24, dtype=torch.bool))
    points = foreground_grid(EncodedPicture(maps, None, place, "a"), maps, count=20)

    assert found[7:13, 9:17].all()
    assert found.sum() == found[5:15, 7:19].sum()  # a cell around it at most
    assert 12 <= len(points) <= 30
    assert ((points > torch.tensor([69, 49])) & (points < torch.tensor([190, 150]))).all()


def test_a_picture_thinner_than_a_cell_has_a_grid(typed, tmp_path):
    """No cell's centre lies on it, letterboxed: 2000 x 20 pixels are 192 x 2 for the network."""
    row = np.random.default_rng(0).integers(0, 255, (20, 2000, 3), dtype=np.uint8)
    Image.fromarray(row).save(tmp_path / "thin.png")
    model = "backbone=efficientnet_lite0 backbone.size=192 data.resize=letterbox"

    code, output = typed(f"{tmp_path}/thin.png b.jpg --most 8", "--model", model)

    assert code == 0, output
    sources = [
        row["source"] for row in json.loads((tmp_path / "out/matches.json").read_text())["targets"][0]["matches"]
    ]
    assert len({x for x, _ in sources}) >= 4
    assert all(-0.5 <= x <= 1999.5 and -0.5 <= y <= 19.5 for x, y in sources)


def test_the_quickstart_runs_as_it_is(tmp_path, monkeypatch, capsys):
    script = ROOT / "examples/quickstart.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))

    assert len(script.read_text().splitlines()) <= 15
    assert len(re.findall(r"cosine 0\.\d\d", capsys.readouterr().out)) == 2


@pytest.mark.slow
def test_the_tour_runs_cell_by_cell_and_shows_pictures(tmp_path, monkeypatch):
    """As a notebook does, which shows what the last line of a cell is worth."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    displayed = []
    for cell in json.loads((ROOT / "examples/tour.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = ast.parse("".join(cell["source"])).body
            last = lines.pop() if isinstance(lines[-1], ast.Expr) else None
            exec(compile(ast.Module(lines, []), "cell", "exec"), names)
            displayed.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None)

    assert sum(isinstance(one, Image.Image) for one in displayed) == 2
    assert all(match.plot() for match in displayed if isinstance(match, Match))
    assert sum(isinstance(one, Match) for one in displayed) == 2
    assert 0.1 < displayed[-1]["all"] < 0.5


def test_the_tour_is_stored_as_it_was_run_with_pictures_and_no_path_of_a_machine():
    text = (ROOT / "examples/tour.ipynb").read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    data = [output["data"] for cell in cells for output in cell["outputs"] if "data" in output]
    pictures = [Image.open(io.BytesIO(base64.b64decode(each["image/jpeg"]))) for each in data if "image/jpeg" in each]

    assert len(text) < 1_500_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len(pictures) == 4
    assert all(min(picture.size) >= 480 for picture in pictures)
    words = [str(value) for each in data for kind, value in each.items() if not kind.startswith("image")]
    words += ["".join(output.get("text", "")) for cell in cells for output in cell["outputs"]]
    assert not re.search(r"/(tmp|home|root|work|usr|opt)/|Error|Warning", "".join(words))


def test_every_example_of_the_page_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/matching.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}

    assert len(blocks) >= 3
    for block in blocks:
        exec(block, names)


def test_what_was_written_is_named_and_not_what_else_lies_there(folder, typed, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    code, output = typed(f"{folder / 'a.jpg'} {folder / 'b.jpg'} --points 5,5", "--out", str(tmp_path))
    assert code == 0, output
    assert f"Wrote {tmp_path}: b.png, matches.json\n" in output
