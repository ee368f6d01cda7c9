"""What a line or a run says and a matcher does not do is refused, or said."""

import pytest
from saved_runs import save_run

from semcorr import Matcher
from semcorr.core.errors import UserError
from semcorr.inference.load import restore_model

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "option",
    [
        *("pose=adaptive", "pose.mirror=true", "corrupt=fog_3", "store=disk", "trainer.precision=16", "kap=true"),
        *("data=synthetic", "data.root=/x", "data.split=val", "data.batch_size=7", "data_root=/x", "name=foo"),
        *("run_dir=foo", "logger=tensorboard", "objective=x"),
    ],
)
def test_what_changes_no_match_is_refused(option):
    with pytest.raises(UserError, match=f"`{option}` changes what semcorr.evaluate does, and no match: .*Leave it out"):
        Matcher.load("tiny", option, device="cpu")


@pytest.mark.parametrize(
    "option", ["pose=none", "corrupt=none", "store=memory", "localise=[argmax]", "finetune=frozen"]
)
def test_what_holds_anyway_may_be_typed(option, caplog):
    restore_model("tiny", [option])

    assert not caplog.records


def test_the_geometry_of_a_benchmark_may_be_typed():
    assert restore_model("tiny", ["data.resize=letterbox"]).resize == "letterbox"


@pytest.mark.parametrize(("model", "options"), [("tiny hog", []), ("tiny", ["backbone=hog"])])
def test_what_is_given_twice_is_reported(model, options, caplog):
    restore_model(model, options)

    (record,) = caplog.records
    assert record.getMessage() == "`backbone` is given twice: backbone=hog counts, not backbone=tiny"


@pytest.mark.parametrize("model", [[], ["backbone.size=32"], {"backbone": "tiny"}, 5, b"tiny", "", " "])
def test_a_model_is_text_or_a_path(model):
    with pytest.raises(UserError, match=r"`model` must be text or a Path, got .* Give a backbone, a run's directory"):
        restore_model(model)


@pytest.mark.parametrize("override", [["backbone.size=32"], {"backbone.size": 32}, "hog"])
def test_an_override_is_a_setting(override):
    with pytest.raises(UserError, match=r"an override must be text, got .* Give each as 'backbone.size=32'"):
        restore_model("tiny", [override])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("localise=all", r"4 were given \(window_15, .*\). Give one, as localise=window_15"),
        ("localise=[argmax,window_5]", r"2 were given \(argmax, window_5\). Give one, as localise=argmax"),
        ("protocol=[semcorr,geoaware]", "Give one, as protocol=semcorr"),
    ],
)
def test_points_are_found_by_one_readout(option, message):
    with pytest.raises(UserError, match=message):
        Matcher.load(f"backbone=tiny {option}", device="cpu")


def test_what_a_run_was_scored_with_is_reported_once(config, tmp_path, caplog):
    run = save_run(
        config("evaluate", "backbone=tiny", "pose=adaptive", "corrupt=fog", "localise=all"), tmp_path / "run"
    )
    restore_model(run)

    (record,) = caplog.records
    assert record.getMessage() == (
        f"{run}: not used here, where two pictures are matched: "
        "of 4 readouts all but the first, window_15; pose; corrupt"
    )


def test_tuning_without_a_run_is_reported_as_untrained(caplog):
    restore_model("backbone=tiny finetune=lora")

    assert "finetune=lora: its weights are untrained" in caplog.text
