from itertools import combinations

import pytest
import torch

from semcorr.data.keypoints import (
    benchmark_metadata,
    flip_from_names,
    flip_permutation,
    geometry_aware_mask,
    groups_from_names,
    keypoint_names,
    symmetry_groups,
)

TABLES = [("spair71k", category) for category in benchmark_metadata("spair71k")["categories"]] + [("ap10k", "lion")]
ANIMAL_POSE = [
    "L_Eye", "R_Eye", "L_EarBase", "R_EarBase", "Nose", "Throat", "TailBase", "Withers",
    "L_F_Elbow", "R_F_Elbow", "L_B_Elbow", "R_B_Elbow", "L_F_Knee", "R_F_Knee", "L_B_Knee", "R_B_Knee",
    "L_F_Paw", "R_F_Paw", "L_B_Paw", "R_B_Paw",
]  # fmt: skip
SPELT_OUT = [
    "left_eye", "right_eye", "left_ear_base", "right_ear_base", "nose", "throat", "tail_base", "withers",
    "left_front_elbow", "right_front_elbow", "left_back_elbow", "right_back_elbow",
    "left_front_knee", "right_front_knee", "left_back_knee", "right_back_knee",
    "left_front_paw", "right_front_paw", "left_back_paw", "right_back_paw",
]  # fmt: skip


def bools(*ids: int) -> torch.Tensor:
    return torch.tensor([i in ids for i in range(8)])


def mirrored(name: str) -> str:
    return name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")


@pytest.mark.parametrize(("benchmark", "category"), TABLES)
def test_flipping_twice_changes_nothing(benchmark, category):
    flip = flip_permutation(benchmark, category)

    assert len(flip) == benchmark_metadata(benchmark)["slots"]
    assert [flip[flip[i]] for i in range(len(flip))] == list(range(len(flip)))


@pytest.mark.parametrize(("benchmark", "category"), TABLES)
def test_a_flip_exchanges_left_and_right_and_nothing_else(benchmark, category):
    names, flip = keypoint_names(benchmark, category), flip_permutation(benchmark, category)

    assert {i: names[flip[i]] for i in names} == {i: mirrored(name) for i, name in names.items()}
    assert [flip[i] for i in range(len(flip)) if i not in names] == [i for i in range(len(flip)) if i not in names]


@pytest.mark.parametrize(("benchmark", "category"), TABLES)
def test_groups_hold_named_keypoints_each_in_one_group_at_most(benchmark, category):
    groups = symmetry_groups(benchmark, category)
    members = [i for group in groups for i in group]

    assert set(members) <= set(keypoint_names(benchmark, category))
    assert len(members) == len(set(members))
    assert all(len(group) >= 2 for group in groups)


def test_the_tables_count_what_the_benchmarks_have():
    categories = benchmark_metadata("spair71k")["categories"]

    assert len(categories) == 18
    assert sum(len(keypoint_names("spair71k", category)) for category in categories) == 319
    official = benchmark_metadata("spair71k")["official"]
    assert official["pairs"] == {"train": 53_340, "val": 5_384, "test": 12_234}
    assert set(official["pairs_per_category"]["test"]) == set(categories)
    assert sum(official["pairs_per_category"]["test"].values()) == 12_234
    pascal = benchmark_metadata("pf_pascal")["official"]
    assert {split: sum(counts.values()) for split, counts in pascal["pairs_per_category"].items()} == pascal["pairs"]
    assert len(benchmark_metadata("ap10k_multi_instance")["ids"]) == 1_847
    assert len(keypoint_names("ap10k", "lion")) == 17


def test_unused_slots_have_no_name():
    assert {11, 12}.isdisjoint(keypoint_names("spair71k", "bicycle"))
    assert {8, 9}.isdisjoint(keypoint_names("spair71k", "bus"))
    assert max(keypoint_names("spair71k", "bicycle")) == 13  # ids are not closed up over the hole
    assert max(keypoint_names("spair71k", "bus")) == 29


@pytest.mark.parametrize(
    ("in_target", "in_source", "expected"),
    [
        ((2, 3), (2, 3), (2, 3)),
        ((2, 3), (2,), (2,)),  # the twin need not be visible in the source
        ((2,), (2, 3), ()),  # but in the target
        ((0, 2, 3), (0,), ()),  # 0 has no twin
        ((2, 4), (2, 4), ()),  # of two groups
        ((4, 6), (4, 5, 6), (4, 6)),  # two of a group of four
        ((4, 5, 6, 7), (5,), (5,)),
        ((7,), (4, 5, 6, 7), ()),
    ],
)
def test_a_keypoint_is_ambiguous_where_the_target_shows_two_of_its_group(in_target, in_source, expected):
    groups = ((2, 3), (4, 5, 6, 7))
    shared = bools(*in_source) & bools(*in_target)

    assert geometry_aware_mask(shared, bools(*in_target), groups).tolist() == bools(*expected).tolist()


def test_every_pair_of_a_batch_has_its_own_ambiguous_keypoints():
    target = torch.stack((bools(2, 3), bools(2, 4)))

    assert geometry_aware_mask(target, target, ((2, 3),)).tolist() == [bools(2, 3).tolist(), bools().tolist()]


def test_without_groups_nothing_is_ambiguous():
    assert not geometry_aware_mask(bools(0, 1), bools(0, 1), ()).any()


@pytest.mark.parametrize("names", [ANIMAL_POSE, SPELT_OUT])
def test_groups_from_names_join_what_differs_in_side_or_end(names):
    assert groups_from_names(names) == ((2, 3), (8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18, 19))  # no eyes


@pytest.mark.parametrize("names", [ANIMAL_POSE, SPELT_OUT])
def test_flips_from_names_exchange_sides_and_keep_ends(names):
    assert flip_from_names(names) == (1, 0, 3, 2, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14, 17, 16, 19, 18)


def test_a_side_without_its_counterpart_has_no_mirror_image():
    assert flip_from_names(["left_horn", "nose"]) is None
    assert flip_from_names(["left_eye", "left_ear", "right_ear"]) is None
    assert groups_from_names(["left_horn", "nose"]) == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["левый глаз", "правый глаз", "хвост"], (0, 1, 2)),  # no sides that are known here
        (["Ohr ä", "Ohr ö", "nose"], (0, 1, 2)),
        (["a+", "a-", "b"], (0, 1, 2)),
        (["leftRim", "rightRim", "base"], (1, 0, 2)),
        (["Auge left ä", "Auge right ä", "Auge left ö", "Auge right ö"], (1, 0, 3, 2)),
        (["left_a+", "left_a-", "right_a+", "right_a-"], None),  # whose twin is whose cannot be told
    ],
)
def test_only_twins_are_exchanged_whatever_letters_names_have(names, expected):
    assert flip_from_names(names) == expected


def test_names_of_ap10k_give_its_published_groups_and_flip():
    names = list(keypoint_names("ap10k", "lion").values())

    assert flip_from_names(names) == flip_permutation("ap10k", "lion")
    published = {frozenset(group) for group in symmetry_groups("ap10k", "lion")}
    made = {frozenset(group) for group in groups_from_names(names)}
    assert frozenset({7, 10, 13, 16}) in made & published  # the paws
    assert frozenset({6, 9, 12, 15}) in published - made  # elbows and knees are one group only there


def renumbered(groups: tuple[tuple[int, ...], ...], ids: list[int]) -> list[list[int]]:
    """GeoAware-SC's in-loop metric: groups and lone keypoints in order, and ids given out again along them."""
    grouped = {i for group in groups for i in group}
    order = sorted([*map(list, groups), *([i] for i in ids if i not in grouped)])
    fresh = iter(range(len(ids)))
    return [[next(fresh) for _ in item] for item in order]


@pytest.mark.parametrize(
    ("benchmark", "category"),
    [("spair71k", name) for name in ("bus", "car", "pottedplant", "tvmonitor")] + [("ap10k", "lion")],
)
def test_geo_aware_renumbers_ids_by_list_order_and_we_keep_them(benchmark, category):
    """A regression test: a target that shows two twins and no more is found by true ids and missed by new ones."""
    groups, ids = symmetry_groups(benchmark, category), sorted(keypoint_names(benchmark, category))
    visible = torch.zeros(30, dtype=torch.bool)
    new_groups = [set(item) for item in renumbered(groups, ids) if len(item) > 1]
    twins = next(
        two for group in groups for two in combinations(group, 2) if not any({*two} <= one for one in new_groups)
    )
    visible[list(twins)] = True

    assert geometry_aware_mask(visible, visible, groups).nonzero().flatten().tolist() == sorted(twins)


def test_in_ap10k_the_renumbering_makes_the_groups_that_were_published_by_mistake():
    """{5,6} {7-10} {11-14} {15,16} for {5,8} {6,9,12,15} {7,10,13,16} {11,14}."""
    groups = symmetry_groups("ap10k", "lion")

    found = [item for item in renumbered(groups, list(range(17))) if len(item) > 1]

    assert found == [[5, 6], [7, 8, 9, 10], [11, 12, 13, 14], [15, 16]]
    assert sorted(map(list, groups)) == [[5, 8], [6, 9, 12, 15], [7, 10, 13, 16], [11, 14]]
