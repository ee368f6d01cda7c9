"""python -m semcorr.prepare as typed: what is told, where things go, and the exit code."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_ap10k import write_ap10k
from tiny_archives import Server, listing, packed, serving
from tiny_benchmarks import edit, write_spair, write_willow
from tiny_davis import still, write_davis
from tiny_dense import write_caltech, write_tss

from semcorr import prepare
from semcorr.data.ap10k import AP10K
from semcorr.data.caltech101 import FOLDER, LIST
from semcorr.data.download import http as fetch
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.proposal_flow import PFWillow
from semcorr.data.spair import SPair
from semcorr.engine.known_targets import conf_dir

pytestmark = pytest.mark.integration

SPAIR_FILE, WILLOW_FILES = "SPair-71k.tar.gz", ("PF-dataset.zip", "test_pairs.csv")


def packed_tree(tree: Path, kind: str, top: str = "") -> bytes:
    return packed({f"{top}{name}": content for name, content in listing(tree).items() if content is not None}, kind)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Has two tiny benchmarks under the names of the official archives, and nothing else is to be had."""
    made = tmp_path_factory.mktemp("made")
    write_spair(made / "spair")
    write_willow(made / "willow")
    with serving() as it:
        it.files[SPAIR_FILE] = packed_tree(made / "spair", "tar.gz", "SPair-71k/")
        it.files["PF-dataset.zip"] = packed_tree(made / "willow/PF-dataset", "zip", "PF-dataset/")
        it.files["test_pairs.csv"] = (made / "willow/test_pairs.csv").read_bytes()
        for benchmark in (SPair, PFWillow):
            archives = tuple(ArchiveInfo(file, it.url(file)) for file, _, _ in benchmark.recipe.archives)
            monkeypatch.setattr(benchmark, "recipe", benchmark.recipe._replace(archives=archives))
            monkeypatch.setattr(benchmark, "official", {})
        monkeypatch.setattr(SPair, "splits", ("test",))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(fetch, "PAUSE", 0)
        yield it


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """typed("spair --verify") is `python -m semcorr.prepare spair --verify` in an empty folder; the exit code."""

    def run(line: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        return prepare.main(line.split())

    return run


@pytest.fixture
def only_two(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other benchmarks' archives are not to be had here."""
    monkeypatch.setattr(prepare, "list_obtainable", lambda: {"pf_willow": PFWillow.recipe, "spair": SPair.recipe})


@pytest.mark.parametrize("name", ["davis", "tss", "caltech101"])
def test_benchmarks_without_keypoints_come_from_archives_that_one_has(typed, tmp_path, monkeypatch, capfd, name):
    made = tmp_path / "made"
    if name == "davis":
        write_davis(write_davis(made, split="train", a=still()), split="val", b=still())
    else:
        {"tss": write_tss, "caltech101": write_caltech}[name](made)
    archives = {
        "davis": {"DAVIS-2017-trainval-480p.zip": lambda: packed_tree(made, "zip", "DAVIS/")},
        "tss": {"TSS_CVPR2016.zip": lambda: packed_tree(made, "zip", "TSS_CVPR2016/")},
        "caltech101": {
            "101_ObjectCategories.tar.gz": lambda: packed_tree(made / FOLDER, "tar.gz", f"{FOLDER}/"),
            LIST: (made / LIST).read_bytes,
        },
    }[name]
    for file, pack in archives.items():
        (tmp_path / file).write_bytes(pack())
    given = " ".join(f"--archive {file}" for file in archives)

    assert typed(f"{name} {given} --root here") == 1  # the counts are not the official ones, and nothing else is wrong

    report = json.loads((tmp_path / "here/verify.json").read_text())
    assert {check["what"] for check in report["checks"] if check["verdict"] != "ok"} == {
        "videos" if name == "davis" else "pairs"
    }
    assert typed(f"{name} --verify --root here") == 1
    assert f"{name} at here" in capfd.readouterr().out


# -- what it does --


def test_a_benchmark_goes_to_its_data_root(typed, server, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("SEMCORR_DATA", "elsewhere")
    assert typed("spair") == 0

    root = tmp_path / "elsewhere" / "SPair-71k"
    assert {"JPEGImages", "Layout", "prepared.json", "verify.json"} <= {path.name for path in root.iterdir()}
    assert list(tmp_path.rglob(".*")) == []
    report = json.loads((root / "verify.json").read_text())
    assert report["root"] == "elsewhere/SPair-71k"
    assert "preparing" not in (root / "verify.json").read_text() + capfd.readouterr().out


@pytest.mark.parametrize("line", ["spair", "spair --verify"])
def test_an_empty_data_root_is_not_the_root_of_the_disk(typed, tmp_path, capfd, monkeypatch, line):
    monkeypatch.setenv("SEMCORR_DATA", "")
    for step in ("_install", "_verify"):  # which write there
        monkeypatch.setattr(prepare, step, lambda name, cfg, folder, *_: pytest.fail(f"goes to {folder}"))
    assert typed(line) == 2
    assert "`data_root` must be text, not empty, got ''" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_licence_address_and_size_are_reported_first(typed, server, capfd, monkeypatch):
    del server.files["test_pairs.csv"]  # so that it ends after the first download
    assert typed("pf_willow --root here") == 2

    out, err = capfd.readouterr()
    for part in (PFWillow.recipe.licence, server.url("PF-dataset.zip"), " bytes", "unknown size", "here"):
        assert part in out
    assert [method for method, _ in server.requests] == ["HEAD", "HEAD", "GET", "GET"]
    assert err.startswith("Error: http://127.0.0.1")


def test_two_archives_become_one_tree(typed, server, tmp_path):
    assert typed("pf_willow --root here") == 0

    assert (tmp_path / "here/PF-dataset/car(G)/a.png").is_file()
    assert len(PFWillow(root=str(tmp_path / "here"), size=32).pairs("test")) == 2


def test_a_file_that_one_has_is_not_downloaded(typed, server, tmp_path, capfd):
    (tmp_path / "my.tgz").write_bytes(server.files.pop(SPAIR_FILE))
    assert typed("spair --archive my.tgz --root here") == 0

    assert server.requests == []
    assert (tmp_path / "my.tgz").is_file()
    assert json.loads((tmp_path / "here/prepared.json").read_text())["archives"][0]["address"] is None


def test_a_second_run_says_so_and_does_nothing(typed, server, tmp_path, capfd):
    assert typed("spair --root here") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("*")}
    server.requests.clear()

    assert typed("spair --root here") == 0
    assert "is at here already; there is nothing to do" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert server.requests == []


def test_other_counts_are_reported_with_exit_code_1_every_time(typed, server, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(SPair, "official", {"pairs": {"test": 12234}})
    for _ in range(2):
        assert typed("spair --root here") == 1
        assert "does not have its official counts" in capfd.readouterr().err
    assert (tmp_path / "here/prepared.json").is_file()


def test_a_terminal_is_asked_first(typed, server, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)

    assert typed("spair --root here") == 2
    assert "nothing is downloaded" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    assert typed("spair --root here --yes") == 0


def test_all_goes_on_after_a_failure_and_names_it_at_the_end(typed, server, only_two, tmp_path, capfd):
    del server.files["PF-dataset.zip"]
    assert typed("all") == 2

    first, *_, last = capfd.readouterr().err.splitlines()
    assert first.startswith("Error: pf_willow: http://127.0.0.1")
    assert last == "Error: 1 of 2 not as they should be: pf_willow"
    assert (tmp_path / "data/SPair-71k/prepared.json").is_file()


def test_all_hands_every_benchmark_its_own_files(typed, server, only_two, tmp_path):
    (tmp_path / "mine").mkdir()
    for file in WILLOW_FILES:
        (tmp_path / "mine" / file).write_bytes(server.files.pop(file))
    assert typed("all --archive mine/PF-dataset.zip --archive mine/test_pairs.csv") == 0

    assert (tmp_path / "data/PF-WILLOW/test_pairs.csv").is_file()
    assert (tmp_path / "data/SPair-71k/Layout").is_dir()


# -- --verify --


def test_a_tree_by_hand_is_verified_without_any_network(typed, server, tmp_path, capfd):
    write_willow(tmp_path / "hand")
    assert typed("pf_willow --verify --root hand") == 0

    assert "pf_willow at hand" in capfd.readouterr().out
    assert json.loads((tmp_path / "hand/verify.json").read_text())["failed"] is False
    assert server.requests == []


def test_verify_tells_other_counts_and_unreadable_files_with_exit_code_1(typed, server, tmp_path, capfd):
    root = write_spair(tmp_path / "hand")
    edit(root / "ImageAnnotation/cat/one.json", lambda entry: entry.pop("kps"))
    assert typed("spair --verify --root hand --report out.json") == 1

    assert "one.json" in (tmp_path / "out.json").read_text()
    assert not (root / "verify.json").exists()


def test_verify_writes_where_it_can_or_says_so(typed, server, tmp_path, capfd):
    write_willow(tmp_path / "hand")
    assert typed("pf_willow --verify --root hand --report no/such/folder.json") == 2

    assert "no/such/folder.json cannot be written" in capfd.readouterr().err


# -- mistakes --

MISTAKES = {
    "spiar": ["no benchmark is called `spiar`. Did you mean spair?"],
    "synthetic": ["`synthetic` has nothing to download. There are ", "spair"],
    "coco_keypoints": ["`coco_keypoints` has nothing to download"],
    "pascal_parts": ["`pascal_parts` has nothing to download"],
    "common": ["no benchmark is called `common`"],
    "spair --verify --root nowhere": ["spair is not at nowhere: no such folder", "--root DIR"],
    "spair --archive nothing.zip": ["--archive nothing.zip: no such file"],
    "spair --archive .": ["--archive .: it is a folder"],
    "spair --verify --archive a.zip": ["no effect beside --verify"],
    "spair --report a.json": ["no effect without --verify"],
    "all --root here": ["`all` goes to every benchmark's own data.root", "SEMCORR_DATA"],
    "all --archive strange.zip": ["no benchmark has such a file, only", "PF-dataset.zip"],
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_in_a_user_error_and_exit_code_2(typed, server, only_two, tmp_path, capfd, line):
    assert typed(line) == 2

    error = capfd.readouterr().err
    assert error.startswith("Error: ")
    assert all(part in error for part in MISTAKES[line]), error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interruption_is_a_line_and_exit_code_130(typed, server, tmp_path, capfd, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semcorr.data.download.install.extract_archive", interrupted)
    assert typed("spair --root here") == 130
    assert capfd.readouterr().err == "Interrupted. What was downloaded is kept. Run the same line again to go on\n"
    assert [path.name for path in tmp_path.iterdir()] == [".here.downloads"]


# -- the program --


def test_help_comes_at_once():
    """It needs no torch: that alone would take seconds."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "semcorr.prepare", "--help"], capture_output=True)

    assert done.returncode == 0
    assert b"--archive" in done.stdout
    assert b"torch" not in done.stderr


def test_every_recipe_can_be_followed():
    """Of all benchmarks in conf/data: addresses, a landmark within the tree, a line about the licence."""
    recipes = prepare.list_obtainable()

    assert {"spair", "pf_willow"} <= set(recipes) <= {path.stem for path in (conf_dir() / "data").glob("*.yaml")}
    for recipe in recipes.values():
        assert isinstance(recipe, DownloadRecipe)
        assert recipe.licence
        assert "\n" not in recipe.licence
        assert not Path(recipe.marker_file).is_absolute()
        files = [archive.file for archive in recipe.archives]
        assert files
        assert len(set(files)) == len(files)
        assert all(Path(file).name == file for file in files)
        assert all(archive.url.startswith(("https://", "http://")) for archive in recipe.archives)


@pytest.mark.slow
def test_an_official_tree_unpacked_by_hand_gets_the_pairs_it_lacks(typed, tmp_path, monkeypatch):
    root = write_ap10k(tmp_path / "mine", usual=3, pictures=True)
    monkeypatch.setattr(AP10K, "official", {})
    before = {name: content for name, content in listing(root).items() if not name.startswith("pairs")}

    assert typed("ap10k --root mine") == 0

    assert (root / "pairs" / "manifest.json").is_file()
    assert {name: content for name, content in listing(root).items() if not name.startswith("pairs")} == before
    assert typed("ap10k --root mine") == 0
