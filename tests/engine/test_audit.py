"""What moves a number from one convention to the next, and what is said to a folder that cannot be audited."""

import json

import pytest
from saved_runs import save_run
from typer.testing import CliRunner

from semcorr import evaluate, train
from semcorr.audit import app, audit_run, walk_axes
from semcorr.core.errors import UserError
from semcorr.evaluation.protocols import PRESETS, SEMCORR, ScoringSpec, protocol_preset
from semcorr.matching.readouts import argmax

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scored(tmp_path_factory, creatures):
    """A finished run of the tiny backbone, by several protocols."""
    from hydra import compose, initialize_config_dir

    from semcorr.engine.known_targets import conf_dir

    run = tmp_path_factory.mktemp("audit") / "run"
    line = ["data=synthetic", f"data.root={creatures}", "data.train=3", "data.val=2", "data.test=3", "data.pixels=96",
            "data.workers=0", "backbone=tiny", "trainer=cpu", f"run_dir={run}", "protocol=all"]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("evaluate", line)
    return run, evaluate.evaluate(cfg)


@pytest.mark.parametrize("end", [one for one in PRESETS if not one.exact], ids=lambda one: one.name)
def test_a_walk_changes_one_axis_at_a_time_and_arrives(end):
    start = ScoringSpec(SEMCORR.with_resize(end.resize), argmax)

    steps = walk_axes(start, end)

    before = start
    for step in steps:
        changed = {key for key, value in vars(step.spec.protocol).items() if value != getattr(before.protocol, key)}
        assert changed in ({step.axis}, {"scaling", "clamp"}, {"strict", "alphas"}, set())
        assert changed or step.axis == "read_out"
        before = step.spec
    last = {**vars(before.protocol), "name": end.name, "readout": before.readout, "resize_on": end.resize_on}
    assert last == vars(end)


def test_a_walk_from_a_protocol_to_itself_is_empty():
    assert (
        walk_axes(ScoringSpec(protocol_preset("dift"), protocol_preset("dift").readout), protocol_preset("dift")) == []
    )


def test_an_audit_begins_with_our_number_and_ends_with_theirs(scored):
    """The first and last numbers are those that evaluate gave; the steps add up to what lies between."""
    run, metrics = scored

    found = audit_run(run)

    assert set(found["protocols"]) == {"dift", "visual_ai", "sd4match", "marco"}
    assert found["start"]["headline"] == metrics["headline"]
    for name, walk in found["protocols"].items():
        reference = next(iter(metrics["protocols"][name].values()))["headline"]
        assert walk["steps"][-1]["headline"] == reference
        for alpha in reference:
            assert sum(step["moved"][alpha] for step in walk["steps"]) == pytest.approx(walk["moved"][alpha], abs=1e-12)
        biggest = {step["axis"]: max(map(abs, step["moved"].values())) for step in walk["steps"]}
        assert biggest[walk["most"]] == max(biggest.values())


@pytest.mark.slow
def test_other_pixels_are_audited_beside_the_runs_own(scored, capsys):
    run, _ = scored
    squash = audit_run(run)
    assert set(squash["elsewhere"]) == {"geoaware", "sd_dino", "probe3d"}

    result = CliRunner().invoke(app, [str(run), "--resize", "letterbox"])

    assert result.exit_code == 0, result.output
    kept = json.loads((run / "audit.json").read_text())
    assert set(kept) == {"squash", "letterbox"}
    assert set(kept["letterbox"]["protocols"]) == {"geoaware", "sd_dino"}
    assert "semcorr -> geoaware" in result.output
    assert "probe3d needs other pixels: python -m semcorr.audit" in result.output
    assert not list(run.glob(".audit.json*"))


def test_a_trained_run_is_audited_with_its_weights(tmp_path, config, tiny):
    """Its own protocol's number again, from the checkpoint."""
    line = ["finetune.blocks=1", "protocol=semcorr", "data.steps=2", "data.batch_size=2"]
    metrics = train.train(config("train", *tiny, *line))

    found = audit_run(tmp_path / "run")

    assert found["start"]["headline"] == metrics["headline"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "metrics.json").unlink(), "has not finished: no metrics.json"),
        (
            lambda run: [(run / name).unlink() for name in ("config.yaml", "metrics.json")],
            "is not a run_dir: no config.yaml",
        ),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("lr: 1\n"), "is not of semcorr: no `data`"),
        (lambda run: (run / "audit.json").write_text("[]"), "audit.json is not an audit.json"),
    ],
    ids=["partial", "empty", "damaged", "foreign", "not ours"],
)
def test_a_folder_that_cannot_be_audited_is_refused_with_what_it_lacks(tmp_path, scored, spoil, message):
    run = tmp_path / "copy"
    run.mkdir()
    for name in ("config.yaml", "metrics.json"):
        (run / name).write_bytes((scored[0] / name).read_bytes())
    spoil(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    result = CliRunner().invoke(app, [str(run)])

    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_folder_that_is_not_there_is_reported(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path / "nowhere")])

    assert result.exit_code == 2
    assert "is not a folder" in result.output


def test_keys_of_the_run_may_be_otherwise_but_none_new(scored):
    with pytest.raises(UserError, match=r"has no key 'data\.rot'"):
        audit_run(scored[0], overrides=["data.rot=x"])
    result = CliRunner().invoke(app, [str(scored[0]), "data.split=dev"])
    assert (result.exit_code, "got 'dev'" in result.output) == (2, True)
    result = CliRunner().invoke(app, [str(scored[0]), "data.root=a: b"])
    assert (result.exit_code, "is not a YAML value" in result.output) == (2, True)


# -- as typed --


def typed(monkeypatch, tmp_path, *line):
    monkeypatch.chdir(tmp_path)
    return evaluate.main(line)


def test_a_list_of_readouts_as_typed(monkeypatch, tmp_path, tiny):
    """Every metric is kept per readout, and the first is the run's."""
    names = "argmax,window_5,bilinear_nn,window_15_zero,kernel_7,soft"
    assert typed(monkeypatch, tmp_path, *tiny, f"localise=[{names}]", "run_dir=OUT") == 0

    metrics = json.loads((tmp_path / "OUT" / "metrics.json").read_text())
    assert metrics["localise"] == "argmax"
    assert list(metrics["read_outs"]) == [
        "argmax", "window_soft_argmax(window=5)", "bilinear_nn", "window_soft_argmax(window=15, outside=zero)",
        "kernel_soft_argmax(sigma=7.0)", "soft_argmax",
    ]  # fmt: skip
    assert metrics["read_outs"]["argmax"] == metrics["pck"]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("line", "resize", "localise"),
    [
        (["protocol=geoaware"], "letterbox", "window_soft_argmax(window=15, temperature=0.02, outside=zero)"),
        (["protocol=visual_ai"], "squash", "kernel_soft_argmax(sigma=7.0, temperature=0.03)"),
        (["protocol=geoaware", "localise=argmax"], "letterbox", "argmax"),
        (["protocol=geoaware", "localise=window_11"], "letterbox", "window_soft_argmax(window=11)"),
        (["protocol=[semcorr,geoaware]"], "letterbox", "window_soft_argmax(window=15, temperature=0.02)"),
        (["protocol=all", "data.resize=corner"], "corner", "window_soft_argmax(window=15, temperature=0.02)"),
        ([], "squash", "window_soft_argmax(window=15, temperature=0.02)"),
        (["data.resize=letterbox"], "letterbox", "window_soft_argmax(window=15, temperature=0.02)"),
    ],
)
def test_a_protocol_brings_its_pixels_and_its_readout_unless_others_are_typed(config, tiny, line, resize, localise):
    from semcorr.cli.compose import expand_list_overrides
    from semcorr.engine.build import build_datamodule_and_module

    module, data = build_datamodule_and_module(config("evaluate", *tiny, *expand_list_overrides(line)))

    assert (data.resize, module.specs[0].localise) == (resize, localise)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["protocol=[geoaware,visual_ai]"], "geoaware needs letterbox, visual_ai needs squash"),
        (["protocol=[geo]"], "must be one of semcorr, geoaware"),
        (["protocol=geo"], "`protocol` has no choice 'geo'. Did you mean geoaware?"),
        (["localise=[argmax,windows_5]"], "no readout is called 'windows_5'. There are argmax, bilinear_nn"),
        (["localise=[]"], "must name at least one readout"),
        (["localise=window_4"], "must be odd"),
        (["protocol=dift", "data.resize=letterbox"], "must be squash for dift"),
    ],
)
def test_a_mistake_in_a_list_is_a_user_error(monkeypatch, tmp_path, tiny, capsys, line, message):
    assert typed(monkeypatch, tmp_path, *tiny, *line, "run_dir=OUT") == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "OUT").exists()


def test_a_checkpoint_is_scored_by_the_protocol_that_is_typed(tmp_path, config, tiny):
    """Not with the readout and the pixels that it was trained with."""
    from semcorr.cli.compose import merge_checkpoint_config

    saved = config("train", *tiny, "protocol=semcorr", "localise.window=5")
    save_run(saved, tmp_path / "run")

    typed_line = [f"checkpoint={tmp_path / 'run'}", "protocol=geoaware"]
    cfg = merge_checkpoint_config(config("evaluate", *typed_line), typed_line)

    assert cfg.data.resize == "letterbox"
    assert cfg.localise._target_ == "semcorr.matching.readouts.ProtocolReadout"
    own = merge_checkpoint_config(config("evaluate", typed_line[0]), typed_line[:1])
    assert (own.localise.window, own.data.resize, own.protocol.name) == (5, "squash", "semcorr")
