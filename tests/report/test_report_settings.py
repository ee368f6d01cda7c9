"""Runs are one configuration over seeds if all that moves their numbers is the same, training data included."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_runs import made, run_dir

from semcorr.report.robustness import plot_robustness

pytestmark = pytest.mark.integration

UNCORRUPTED = {"_target_": "semcorr.data.corruptions.corruption.Uncorrupted"}
FOG = {"_target_": "semcorr.data.corruptions.weather.Fog", "severity": 3, "images": "both", "seed": 0}
CATS = {
    "_target_": "semcorr.data.coco_keypoints.COCOKeypoints", "root": "cats", "seed": 1, "resize": "squash", "steps": 9,
}  # fmt: skip
TRAINING = {
    "loss": {"_target_": "semcorr.models.losses.gaussian_cross_entropy", "_partial_": True},
    "optimizer": {"_target_": "semcorr.engine.optim.adamw", "_partial_": True},
    "scheduler": {"_target_": "semcorr.engine.optim.constant_rate", "_partial_": True},
}
SPAIR = {"_target_": "semcorr.data.spair.SPair", "root": "nowhere", "split": "test", "resize": "squash", "seed": 1}


def trained(root: Path, seed: int, data: dict, **config) -> Path:
    """On `data`, scored on SPair-71k: `data@test=spair`."""
    test = {"test": SPAIR | {"seed": seed}}
    return run_dir(root, config={"data": data | {"seed": seed}, **TRAINING, "seed": seed, **test, **config})


def evaluated(root: Path, run: Path, seed: int, **config) -> Path:
    return run_dir(root, config={"checkpoint": str(run), "seed": seed, **config})


def groups(*folders: Path) -> set[frozenset[str]]:
    return {frozenset(run.folder.name for run in entry.runs) for entry in made(*folders)}


def test_clean_trainings_and_their_checkpoints_are_not_corrupted(tmp_path):
    """Their config.yaml says so; that of a run of before says nothing, and is the same but for its seed."""
    clean = {"corrupt": UNCORRUPTED, "start_from": None}
    runs = trained(tmp_path / "a", 1, CATS, **clean), trained(tmp_path / "b", 2, CATS)
    scored = evaluated(tmp_path / "c", runs[0], 1, corrupt=clean["corrupt"], localise={"window": 5})

    assert plot_robustness(made(*runs, scored)) is None
    assert groups(*runs, scored) == {frozenset("ab"), frozenset("c")}


def test_a_clean_training_is_the_clean_one_of_its_corrupted_scores(tmp_path):
    run = trained(tmp_path / "a", 1, CATS, corrupt=FOG)
    scored = [evaluated(tmp_path / "clean", run, 1), evaluated(tmp_path / "fog", run, 1, corrupt=FOG)]

    (figure,) = plot_robustness(made(*scored)).parts

    (row,) = figure.table.rows
    assert (row[1], row[2], row[5]) == ("fog", row[4], "0.0")  # the predictions are the same, and nothing is lost


def test_training_data_tell_runs_apart_that_were_scored_on_the_same(tmp_path):
    runs = (
        trained(tmp_path / "a", 1, CATS),
        trained(tmp_path / "b", 2, CATS),
        trained(tmp_path / "c", 2, CATS | {"steps": 5}),
    )

    assert groups(*runs) == {frozenset("ab"), frozenset("c")}
    assert {entry.label for entry in made(*runs)} == {"tiny, steps 9", "tiny, steps 5"}


@pytest.mark.parametrize("other", [{"_target_": "semcorr.data.ap10k.AP10K"}, {"steps": 5}, {"resize": "letterbox"}])
def test_checkpoints_are_told_apart_by_what_they_were_trained_on(tmp_path, other):
    runs = [trained(tmp_path / f"run{i}", i, CATS | (other if i == 3 else {})) for i in (1, 2, 3)]
    scored = [evaluated(tmp_path / str(i), run, i) for i, run in enumerate(runs, 1)]

    assert groups(*scored) == {frozenset("12"), frozenset("3")}


def test_a_training_run_and_the_evaluation_of_another_seed_of_it_are_one_configuration(tmp_path):
    """Whether training ended with the benchmark or it was scored afterwards."""
    runs = [trained(tmp_path / str(i), i, CATS) for i in (1, 2)]

    assert groups(runs[0], evaluated(tmp_path / "later", runs[1], 2)) == {frozenset({"1", "later"})}


def test_the_same_benchmark_for_both_is_named_once(tmp_path):
    """What was trained and scored on SPair-71k, and what was by `data@test=spair`."""
    own = run_dir(tmp_path / "own", config={**TRAINING, "seed": 1})
    both = trained(tmp_path / "both", 2, SPAIR)

    assert groups(own, both) == {frozenset({"own", "both"})}


def test_random_weights_are_one_configuration_over_seeds(tmp_path):
    """Their checksums differ as the seeds do; those of files tell networks apart."""
    drawn, files = ({"pretrained": False}, "drawn"), ({"weights": "w.pth"}, "files")
    for backbone, name in (drawn, files):
        for seed in (1, 2):
            known = {"provenance": {"weights_sha256": f"{seed}" * 64}}
            run_dir(tmp_path / f"{name}{seed}", config={"backbone": backbone, "seed": seed, **known})

    assert groups(tmp_path / "drawn1", tmp_path / "drawn2") == {frozenset({"drawn1", "drawn2"})}
    assert groups(tmp_path / "files1", tmp_path / "files2") == {frozenset({"files1"}), frozenset({"files2"})}


def test_a_checkpoint_that_is_gone_is_reported_by_its_name_alone(tmp_path):
    runs = [evaluated(tmp_path / name, tmp_path / "lost" / name, 1) for name in "ab"]

    assert groups(*runs) == {frozenset("a"), frozenset("b")}
    assert not any(str(tmp_path) in str(entry.settings) for entry in made(*runs))


def test_an_audit_reads_what_was_scored(tmp_path):
    run = made(trained(tmp_path / "a", 1, CATS))[0].runs[0]

    assert (run.cfg.data._target_, run.cfg.trained_on._target_) == (SPAIR["_target_"], CATS["_target_"])
    assert "test" not in OmegaConf.to_container(run.cfg)


def test_corruption_is_that_of_the_scored_images_whatever_the_training_run_was_scored_on(tmp_path):
    """A training run that says that its images are as they are is an older one that does not say so."""
    older, run = trained(tmp_path / "1", 1, CATS), trained(tmp_path / "2", 2, CATS, corrupt=UNCORRUPTED)
    foggy = trained(tmp_path / "foggy", 3, CATS, corrupt=FOG)
    clean = evaluated(tmp_path / "clean", foggy, 3, corrupt=UNCORRUPTED)
    scored = evaluated(tmp_path / "scored", run, 2, corrupt=FOG)

    assert groups(older, run, clean, foggy, scored) == {frozenset({"1", "2", "clean"}), frozenset({"foggy", "scored"})}
    (section,) = plot_robustness(made(older, foggy)).parts
    assert [row[1] for row in section.table.rows] == ["fog"]
    assert plot_robustness(made(older, run, clean)) is None


def test_runs_are_told_apart_by_the_training_that_their_weights_began_with(tmp_path):
    """Not by the name of its folder, which is another for every seed; a run from no other one may not say so."""
    first = [trained(tmp_path / f"first{i}", i, CATS | ({"steps": 5} if i == 3 else {})) for i in (1, 2, 3)]
    runs = [trained(tmp_path / str(i), i, SPAIR, start_from=str(run)) for i, run in enumerate(first, 1)]
    older, newer = trained(tmp_path / "4", 4, SPAIR), trained(tmp_path / "5", 5, SPAIR, start_from=None)

    assert groups(*runs, older, newer) == {frozenset("12"), frozenset("3"), frozenset("45")}
    assert "steps 9" in " ".join(entry.label for entry in made(*runs))


def test_runs_are_told_apart_by_the_teacher_that_they_learned_from(tmp_path):
    teacher = {"_target_": "semcorr.engine.teacher.EMATeacher", "momentum_end": None}
    configs = [{"callbacks": {"ema_teacher": {**teacher, "momentum": momentum}}} for momentum in (0.99, 1.0, 1.0)]
    runs = [trained(tmp_path / str(i), i, CATS, **config) for i, config in enumerate(configs)]

    assert groups(*runs) == {frozenset("0"), frozenset("12")}
    assert {entry.label for entry in made(*runs)} == {"tiny, momentum 0.99", "tiny, momentum 1.0"}
    scored = [evaluated(tmp_path / f"scored{i}", run, i) for i, run in enumerate(runs)]
    assert groups(*scored) == {frozenset(["scored0"]), frozenset(["scored1", "scored2"])}


def test_a_run_whose_start_is_gone_has_its_name(tmp_path):
    runs = [trained(tmp_path / str(i), i, SPAIR, start_from=f"gone/{name}") for i, name in ((1, "a"), (2, "b"))]
    assert {entry.label for entry in made(*runs)} == {"tiny, start_from a", "tiny, start_from b"}


def test_configurations_that_differ_by_what_only_one_of_them_sets_have_labels_of_their_own(tmp_path):
    """As `backbone.debias=1`, which a run without it does not name."""
    runs = [run_dir(tmp_path / "plain"), run_dir(tmp_path / "set", config={"backbone": {"debias": 1}})]
    runs += [run_dir(tmp_path / f"set{x}", config={"backbone": {"debias": 2, "upsample": x}}) for x in ("a", "b")]
    labels = {run.folder.name: entry.label for entry in made(*runs) for run in entry.runs}
    assert labels["plain"] == "tiny"
    assert len(set(labels.values())) == 4
    assert made(*runs[:2])[1].label == "tiny, debias 1"
