"""A benchmark appears at its root whole, and a second run touches nothing."""

import hashlib
import json

from tiny_archives import listing
from tiny_install import ARCHIVES, FILES, TREE, Differs, given
from tiny_install import prepare as prepare
from tiny_install import root as root
from tiny_install import server as server

from semcorr.data.download import install as tree
from semcorr.data.download.recipe import ArchiveInfo


def test_a_tree_from_the_network_is_whole_and_nothing_lies_beside_it(prepare, server, root):
    report = prepare()

    assert set(listing(root)) == TREE
    assert list(root.parent.iterdir()) == [root]
    assert (root / "images/one.jpg").read_bytes() == FILES["Bench-1.0/images/one.jpg"]
    assert json.loads((root / "verify.json").read_text()) == report.as_json() | {"files": 5}
    noted = json.loads((root / "prepared.json").read_text())
    sums = {archive["file"]: archive["sha256"] for archive in noted["archives"]}
    assert sums == {file: hashlib.sha256(content).hexdigest() for file, content in ARCHIVES.items()}
    assert noted["archives"][1] | {"sha256": ""} == {
        "file": "pairs.csv", "address": server.url("pairs.csv"), "bytes": 4, "sha256": "",
    }  # fmt: skip
    assert noted["official_counts"] is True


def test_files_of_the_users_are_used_and_stay(prepare, server, root, tmp_path):
    archives = given(tmp_path / "mine", *ARCHIVES)
    prepare(given=archives)

    assert set(listing(root)) == TREE
    assert [path.read_bytes() for path in archives] == list(ARCHIVES.values())
    assert server.requests == []


def test_what_is_about_to_happen_is_reported_before_anything_is_downloaded(prepare, server, root, tmp_path):
    seen = []
    prepare(given=given(tmp_path / "mine", "pairs.csv"), announce=lambda it: seen.append((it, list(server.requests))))

    [(sources, requests)] = seen
    assert [source.local_file and source.local_file.name for source in sources] == [None, "pairs.csv"]
    assert requests == []


def test_the_only_archive_may_have_any_name(prepare, server, root, tmp_path):
    [archive] = given(tmp_path / "mine", "bench.tar.gz")
    archive = archive.rename(tmp_path / "mine" / "downloaded (1)")
    prepare(given=[archive], archives=(ArchiveInfo("bench.tar.gz", server.url("bench.tar.gz")),))

    assert set(listing(root)) == TREE - {"pairs.csv"}


def test_a_second_run_touches_nothing(prepare, server, root):
    prepare()
    before = {path: path.stat().st_mtime_ns for path in [root.parent, root, *root.rglob("*")]}
    server.requests.clear()

    assert prepare() is None
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert server.requests == []


def test_a_tree_prepared_by_hand_is_left_alone(prepare, server, root):
    (root / "Layout").mkdir(parents=True)
    (root / "Layout/test.txt").write_text("mine")
    before = listing(root)

    assert prepare() is None
    assert listing(root) == before


def test_an_empty_folder_is_filled(prepare, root):
    root.mkdir(parents=True)
    prepare()

    assert set(listing(root)) == TREE


def test_a_link_to_another_disk_is_followed(prepare, root, tmp_path):
    root.parent.mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    prepare()

    assert root.is_symlink()
    assert set(listing(tmp_path / "elsewhere")) == TREE


def test_other_counts_than_the_official_ones_are_kept_and_noted(prepare, root):
    assert prepare(Differs).failed
    assert set(listing(root)) == TREE
    assert not tree.has_official_counts(root)
