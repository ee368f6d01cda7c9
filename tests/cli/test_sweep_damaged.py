"""A job folder that holds something else than it says is named; the other jobs go on."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from random_damage import damage

from semcorr.cli.sweep.plan import JobOutcome, SweepJob, plan_jobs, read_job_metrics
from semcorr.cli.sweep.run import LOST, run_jobs
from semcorr.engine.run_dir import JOB_FILE, config_hash

SCORES = {"split": "s", "pck": {"all": {"image": {"0.1": 0.5}}}}


def cfg(seed: int):
    return OmegaConf.create({"seed": seed, "run_dir": "x", "name": "evaluate", "checkpoint": None, "trainer": {"a": 1}})


def write_job(folder: Path, seed: int, scores: object = SCORES) -> None:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"hash": config_hash(cfg(seed)), "overrides": [f"seed={seed}"]}))
    OmegaConf.save(cfg(seed), folder / "config.yaml")
    (folder / "metrics.json").write_text(json.dumps(scores))


def launcher(ran: list[int]):
    """Of jobs that end with their seed in their scores; `ran` gets the seeds."""

    def launch(_: object, jobs: list[SweepJob]):
        for job in jobs:
            ran.append(job.cfg.seed)
            (job.folder / "metrics.json").write_text(json.dumps(SCORES | {"of": job.cfg.seed}))
            yield JobOutcome(job)

    return launch


@pytest.fixture
def go_on(tmp_path: Path):
    """Plan and run the sweep seed=1,2,3 in which jobs 0 and 1 are there; the seeds that ran, and all outcomes."""
    write_job(tmp_path / "0", 1)
    write_job(tmp_path / "1", 2)

    def go(folder: Path = tmp_path):
        ran: list[int] = []
        jobs = plan_jobs("evaluate", [([f"seed={seed}"], cfg(seed)) for seed in (1, 2, 3)], folder)
        return ran, run_jobs(jobs, folder, launcher(ran))

    return go


def test_what_is_whole_is_not_done_again(go_on) -> None:
    ran, outcomes = go_on()

    assert ran == [3]
    assert [outcome.fault for outcome in outcomes] == [0, 0, 0]


@pytest.mark.parametrize("text", ["", "not", "[]", '{"pck": {"all": NaN}}', '{"pck":' * 50_000])
def test_a_job_whose_scores_are_damaged_is_done_again_and_that_is_reported(go_on, tmp_path, caplog, text) -> None:
    (tmp_path / "1" / "metrics.json").write_text(text)

    ran, outcomes = go_on()

    assert sorted(ran) == [2, 3]
    assert [outcome.fault for outcome in outcomes] == [0, 0, 0]
    assert f"{tmp_path}/1/metrics.json " in caplog.text
    assert "Its job is done again" in caplog.text


@pytest.mark.parametrize("text", ["", "not", "[]", "{}", '{"hash": 3}', '{"hash": NaN}', "[" * 50_000])
def test_a_job_whose_note_is_damaged_is_named_and_the_others_go_on(go_on, tmp_path, text) -> None:
    (tmp_path / "1" / "job.json").write_text(text)

    ran, outcomes = go_on()

    assert ran == [3]
    assert [outcome.fault for outcome in outcomes] == [0, 2, 0]
    assert f"{tmp_path}/1/job.json " in outcomes[1].error
    assert f"Move {tmp_path}/1 away to have its job done again" in outcomes[1].error
    assert (tmp_path / "1" / "job.json").read_text() == text


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 560), marks=pytest.mark.slow)])
def test_random_damage_to_a_note_names_it_or_has_its_job_done_again(tmp_path, seeds) -> None:
    """A seed's scores are never those of another seed; the other job is not touched."""
    damaged_count = 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        for number in (0, 1):
            write_job(folder / str(number), number, SCORES | {"of": number})
        note = folder / "1" / JOB_FILE
        note.write_bytes(damage(note.read_bytes(), seed))
        content = note.read_bytes()
        ran: list[int] = []
        jobs = plan_jobs("evaluate", [([f"seed={number}"], cfg(number)) for number in (0, 1)], folder)
        first, second = run_jobs(jobs, folder, launcher(ran))

        assert first == JobOutcome(jobs[0]), seed
        assert note.read_bytes() == content, seed
        if second.fault:
            assert (second.fault, ran) == (2, []), seed
            assert f"{note} " in second.error, seed
            assert "\n" not in second.error, seed
        else:
            assert ran in ([], [1]), seed
            assert read_job_metrics(jobs[1])["of"] == 1, seed
        damaged_count += bool(second.fault or ran)
    assert damaged_count > len(seeds) / 3  # the rest is damage to what nobody reads: the overrides, white space


def test_two_folders_of_one_job_are_both_named(go_on, tmp_path) -> None:
    """The second folder's note is the first one's: neither is believed, and the job that is missing is done."""
    (tmp_path / "1" / "job.json").write_text((tmp_path / "0" / "job.json").read_text())

    ran, outcomes = go_on()

    assert sorted(ran) == [2, 3]
    assert [outcome.fault for outcome in outcomes] == [2, 0, 0]
    assert f"{tmp_path}/0 and {tmp_path}/1 claim the same job" in outcomes[0].error


@pytest.mark.parametrize("text", ["seed: 2", "seed: [", "- 1", ""])
def test_scores_are_not_taken_for_another_jobs(go_on, tmp_path, text) -> None:
    """The note says seed=1, config.yaml something else, or nothing that can be read."""
    (tmp_path / "0" / "config.yaml").write_text(text)

    ran, outcomes = go_on()

    assert ran == [3]
    assert [outcome.fault for outcome in outcomes] == [2, 0, 0]
    assert f"{tmp_path}/0/config.yaml" in outcomes[0].error


def test_a_job_that_leaves_no_scores_counts_as_lost(go_on, tmp_path) -> None:
    jobs = plan_jobs("evaluate", [(["seed=3"], cfg(3))], tmp_path)

    (outcome,) = run_jobs(jobs, tmp_path, lambda *_: iter(()))

    assert (outcome.fault, outcome.error) == (1, LOST)
