"""TSS: the official tree, the published list, .flo files, and what is refused."""

import re
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dense import write_flow, write_tss, write_tss_pair

from semcorr.core.errors import UserError
from semcorr.data import flow_file
from semcorr.data.caltech101 import Caltech101
from semcorr.data.davis import DAVIS
from semcorr.data.download.verify import verify_benchmark
from semcorr.data.flow_file import read_flow
from semcorr.data.pascal_parts import PascalParts
from semcorr.data.tapvid import TapVid
from semcorr.data.tss import FILES, GROUPS, TSS, read_foreground


def tss(root, **options) -> TSS:
    return TSS(root=str(root), size=96, workers=0, **options)


@pytest.mark.parametrize("folder", [".", "TSS_CVPR2016"])
def test_both_directions_of_every_folder_are_pairs(tmp_path, folder):
    write_tss(tmp_path / folder)
    pairs = tss(tmp_path).cases("test")
    assert [(pair.name, pair.category) for pair in pairs] == [
        ("FG3DCar/car_001/1", "FG3DCar"), ("FG3DCar/car_001/2", "FG3DCar"), ("JODS/horse_1_2/1", "JODS"),
        ("JODS/horse_1_2/2", "JODS"), ("PASCAL/bus/3/1", "PASCAL"), ("PASCAL/bus/3/2", "PASCAL"),
    ]  # fmt: skip
    second = pairs[1]
    assert (second.source.path.name, second.target.path.name) == ("image2.png", "image1.png")
    assert (second.truth.flow.name, second.truth.mask.name) == ("flow2.flo", "mask2.png")


def test_the_image_that_a_flow_leads_into_is_mirrored_where_the_flag_says_so(tmp_path):
    pairs = tss(write_tss(tmp_path)).cases("test")
    assert [pair.target.mirrored for pair in pairs] == [False] * 4 + [True] * 2
    assert not any(pair.source.mirrored for pair in pairs)


def test_the_published_list_names_the_flow_s_image_second(tmp_path):
    write_tss(tmp_path)
    rows = [
        "source_image,target_image,flow_direction,flip_img_A,category",
        "PASCAL/bus/3/image2.png,PASCAL/bus/3/image1.png,1,1,6",
        "FG3DCar/car_001/image1.png,FG3DCar/car_001/image2.png,2,0,1",
    ]
    (tmp_path / "test_pairs_tss.csv").write_text("\n".join(rows))
    pairs = tss(tmp_path, pairs="test_pairs_tss.csv").cases("test")
    assert pairs == [tss(tmp_path).cases("test")[i] for i in (4, 1)]


@pytest.mark.parametrize(
    "row", ["FG3DCar/car_001/image1.png,FG3DCar/car_001/image2.png,1,0,1", "a/image2.png,b/image1.png,1,0,1"]
)
def test_a_list_that_says_it_otherwise_is_refused(tmp_path, row):
    write_tss(tmp_path)
    (tmp_path / "l.csv").write_text(f"source_image,target_image,flow_direction,flip_img_A,category\n{row}\n")
    with pytest.raises(UserError, match=r"line 2: a flow of direction 1 begins in image1\.png"):
        tss(tmp_path, pairs="l.csv").setup("test")


def test_a_flow_is_read_row_by_row_and_unknown_above_a_billion(tmp_path):
    flow = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    flow[0, 0] = [1e10, 1e10]
    flow[1, 2, 1] = np.nan
    write_flow(tmp_path / "a.flo", flow)
    values, known = read_flow(tmp_path / "a.flo", "Mend it.")
    assert known.tolist() == [[False, True, True], [True, True, False]]
    assert torch.equal(values[known], torch.from_numpy(flow)[known])
    assert not values[~known].any()


def test_a_foreground_is_what_is_not_black(tmp_path):
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8)).save(tmp_path / "colour.png")
    for name in ("grey", "colour"):
        assert read_foreground(tmp_path / f"{name}.png", (3, 1)).tolist() == [[False, True, True]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": -5}, "`data.resize`: squash leaves nothing of a square of -5 pixels"),
        ({"size": 64, "resize": "corner+60"}, r"`data.resize`: corner\+60 leaves nothing of a square of 64 pixels"),
        ({"encode_batch": 0}, "`data.encode_batch` must be at least 1 or null, got 0"),
        ({"split": "none"}, "`data.split` must be one of .*, got 'none'"),
        ({"workers": -1}, "`data.workers` must be"),
        ({"batch_size": 0}, "`data.batch_size` must be at least 1 or null, got 0"),
        ({"cache_gb": float("nan")}, "`data.cache_gb` must be 0, which is off, or more"),
        ({"seed": "x"}, "`data.seed` must be a whole number"),
    ],
)
@pytest.mark.parametrize("kind", [TSS, DAVIS, Caltech101, TapVid, PascalParts])
def test_options_are_checked_as_those_of_every_benchmark(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(**{"root": ".", "size": 96, "split": kind.splits[0], **options})


def test_an_option_that_no_benchmark_has_is_refused_from_python():
    with pytest.raises(TypeError, match=r"TSS\(\) got an unexpected keyword argument 'batch_siz'"):
        TSS(root=".", size=96, batch_siz=3)
    TSS(root=".", size=0, batch_size=3, all_pairs=None)  # a backbone's size may not be known yet


def test_verify_counts_pairs_and_flows(tmp_path):
    checks = {check.what: check for check in verify_benchmark(tss(write_tss(tmp_path))).checks}
    assert (checks["pairs"].found, checks["pairs"].official, checks["flows"].found) == (3, 400, 6)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("flow1.flo", b"", r"flow1\.flo is not a \.flo file: it does not begin with PIEH"),
        ("flow1.flo", b"PIEH" + struct.pack("<ii", 96, 96), r"flow1\.flo says 96 x 96 pixels and has 12 bytes"),
        ("flow1.flo", b"PIEH" + struct.pack("<ii", -1, 2**30), "says -1 x 1073741824 pixels"),
        ("flow1.flo", b"PIEH" + struct.pack("<ii4f", 2, 1, 0, 0, 0, 0), r"is 2 x 1 pixels, image1\.png 96 x 96"),
        ("flip_gt.txt", b"2", "must hold 0 or 1, got '2'"),
        *((name, None, rf"FG3DCar/a/{re.escape(name)}'? does not exist") for name in sorted(FILES)),
        ("image2.png", b"no", r"image2\.png is damaged"),
    ],
)
def test_damage_is_reported_before_anything_runs(tmp_path, file, content, message):
    folder = write_tss(tmp_path) / "FG3DCar" / "a"
    write_tss_pair(folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        tss(tmp_path).setup("test")


@pytest.mark.parametrize("group", GROUPS[1:])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_group_without_pairs_is_refused_and_not_left_out_of_the_mean(tmp_path, group, is_there):
    shutil.rmtree(write_tss(tmp_path) / group)
    if is_there:
        (tmp_path / group / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{group} holds no pair"):
        tss(tmp_path).setup("test")


def test_a_pair_that_a_list_has_twice_is_refused(tmp_path):
    row = "FG3DCar/car_001/image1.png,FG3DCar/car_001/image2.png,2,0,1"
    (write_tss(tmp_path) / "l.csv").write_text(
        f"source_image,target_image,flow_direction,flip_img_A,category\n{row}\n{row}"
    )
    with pytest.raises(UserError, match="has the pair FG3DCar/car_001/2 twice"):
        tss(tmp_path, pairs="l.csv").setup("test")


def test_no_flow_is_read_before_it_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(flow_file, "read_content", lambda *_: pytest.fail("all of a flow is read"))
    assert len(tss(write_tss(tmp_path)).cases("test")) == 6


def test_another_folder_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds neither FG3DCar nor TSS_CVPR2016/FG3DCar"):
        tss(tmp_path).setup("test")
    (tmp_path / "FG3DCar").mkdir()
    with pytest.raises(UserError, match="FG3DCar holds no pair, and the score is a mean over FG3DCar, JODS, PASCAL"):
        tss(tmp_path).setup("test")
    with pytest.raises(UserError, match=r"semcorr\.prepare tss"):
        tss(tmp_path / "nowhere").setup("test")
    with pytest.raises(UserError, match=r"`data\.extent` must be one of source, target, got 'box'"):
        tss(tmp_path, extent="box")
