"""What a run saved is read back as it was, and what is the user's own stays free."""

import inspect
from pathlib import Path

import pytest
import yaml
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from saved_runs import save_run

from semcorr import evaluate, train
from semcorr.cli.compose import compose_config, expand_list_overrides, merge_checkpoint_config, register_readouts
from semcorr.cli.errors import user_message
from semcorr.core.errors import UserError
from semcorr.engine.known_targets import conf_dir, config_search_path, read_known_targets
from semcorr.engine.plain_yaml import read_plain_yaml
from semcorr.engine.run_config import resolve_protocol_resize
from semcorr.engine.saved_config import drop_store, escape_interpolations, is_run, read_run_config, refuse_generating

pytestmark = pytest.mark.integration

LINE = ["data=synthetic", "backbone=tiny", "trainer=cpu"]


def edit(run: Path, **sections: object) -> Path:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(saved | sections))
    return run


@pytest.fixture
def run(config, tmp_path) -> Path:
    return save_run(config("train", *LINE), tmp_path / "run")


# -- as it was --


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "line",
    [
        [],
        ["localise=all", "protocol=geoaware"],
        ["localise=several", "localise.rules=[argmax,window_5]"],
        ["finetune=peft", "finetune.tuner=road", "+finetune.variant=road_2", "+finetune.r=4"],
        ["+trainer.limit_val_batches=0.5", "+trainer.max_time='00:12:00:00'", "trainer.devices=[0,1]"],
        ["backbone=dinov2", "+backbone.facet=key", "+backbone.drop_path_rate=0.1", "backbone.layers=[-4,-1]"],
        ["logger=wandb", "+logger.entity=team", "logger.tags=[a,b]", "store=disk"],
        ["pose=adaptive", "+pose.rotations.cup=[90]", "loss=together", "augment=standard", "pairs=pose_variant"],
        ["data@test=pf_willow", "experiment=unified/bottleneck"],
        ["++backbone.debias=3", "+upsample@backbone.upsample=joint_bilateral", "backbone.upsample.factor=4"],
        ["+upsample@backbone.upsample=anyup", "backbone.upsample.chunk=100"],
        ["data=animal_pose", "backbone=sd_dinov2", "finetune=cpm", "head=aggregation", "protocol=all"],
        [
            "data=tapvid_davis",
            "backbone=tiny",
            "protocol=[semcorr,geoaware]",
            "localise=window_5",
            "scheduler=constant",
        ],
        ["experiment=marco"],
    ],
    ids=" ".join,
)
def test_what_a_command_line_makes_is_read_back_as_it_was(config, tmp_path, line):
    register_readouts(line)
    cfg = config("train", *LINE, *expand_list_overrides(line))
    resolve_protocol_resize(cfg)

    saved = OmegaConf.to_container(read_run_config(save_run(cfg, tmp_path / "run")))

    saved.pop("provenance")
    assert saved == OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("path", ["${x}", "\\${x}", "a\\\\${b}c", "${oc.env:HOME}", "end\\", "$x", "it's: {x}"])
def test_a_path_is_read_back_whatever_it_is_called(config, tmp_path, path):
    cfg = config("evaluate", *LINE)
    cfg.checkpoint = escape_interpolations(path)
    assert cfg.checkpoint == path

    assert read_run_config(save_run(cfg, tmp_path / "run")).checkpoint == path


def test_a_run_of_before_lacks_what_came_later(run):
    """Pairs were as they are, scored by our own protocol."""
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("augment", "pairs", "protocol", "pose", "store", "feature_dropout", "compile", "corrupt"):
        del saved[key]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))

    assert "pose" not in read_run_config(run)


def test_a_training_run_is_not_gone_on_with_from_an_evaluation(config, tmp_path):
    folder = save_run(config("evaluate", *LINE), tmp_path / "run")
    line = [f"checkpoint={folder}"]

    with pytest.raises(UserError, match="is not a training run"):
        merge_checkpoint_config(config("train", *line), line)


def test_a_folder_is_a_run_by_its_configuration(run, tmp_path):
    assert is_run(run)
    assert not is_run(tmp_path)
    assert not is_run(Path("x" * 5000))


# -- the user's own --


def own_head(folder: Path) -> Path:
    """A tree of the user's, with a head in it."""
    (folder / "head").mkdir(parents=True)
    (folder / "head" / "mine.yaml").write_text("_target_: my.Head\nmode: fine\n")
    return folder


@pytest.mark.parametrize(
    "typed", [["head._target_=my.Head"], ["++head._target_=my.Head"], ["head={_target_: my.Head}"]], ids=" ".join
)
def test_what_is_typed_on_this_line_may_be_called(run, typed):
    edit(run, head={"_target_": "my.Head", "width": 3})

    assert read_run_config(run, typed).head._target_ == "my.Head"
    with pytest.raises(UserError, match=r"`head._target_` is 'my.Head', which no installed file of the group head"):
        read_run_config(run)
    with pytest.raises(UserError, match=r"`head._target_`"):  # a choice is none that the saved file could be read by
        read_run_config(run, ["head=cosine", "backbone._target_=my.Head"])


def test_a_typed_target_brings_no_other_with_it(run):
    edit(run, head={"_target_": "my.Head", "inner": {"_target_": "os.system"}})

    with pytest.raises(UserError, match=r"`head.inner._target_` stands where nothing is called"):
        read_run_config(run, ["head._target_=my.Head"])


def test_a_choice_on_the_line_replaces_that_of_the_run(config, tmp_path):
    """With its options: those of the choice before are not its own. So does another benchmark to score."""
    line = expand_list_overrides(["backbone.upsample=joint_bilateral", "data@test=pf_willow"])
    save_run(config("train", *LINE, *line), tmp_path / "run")

    typed = [f"checkpoint={tmp_path / 'run'}", "backbone.upsample=anyup", "data@test=spair", "test.root=there"]
    cfg = compose_config("train", typed)

    assert {*cfg.backbone.upsample} == {"_target_", "factor", "entry", "chunk"}
    assert (cfg.test._target_.rpartition(".")[2], cfg.test.root) == ("SPair", "there")
    assert compose_config("train", typed[:1]).test._target_.endswith("PFWillow")


def test_a_tree_on_hydras_search_path_counts(run, tmp_path):
    edit(run, head={"_target_": "my.Head", "mode": "fine"})
    tree = own_head(tmp_path / "tree")
    sources = [{"path": str(conf_dir()), "schema": "file"}, {"path": str(tree), "schema": "file"}]

    cfg = read_run_config(run, search=config_search_path(str(conf_dir()), sources))

    assert cfg.head.mode == "fine"


def test_the_command_takes_a_tree_of_the_users(run, tmp_path, monkeypatch, capfd):
    """As `--config-dir` names it; without it, the head is refused."""
    edit(run, head={"_target_": "my.Head", "mode": "fine"})
    own_head(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    outcomes = {}
    for tree in ([], ["--config-dir", "tree"]):
        code = evaluate.main(["checkpoint=run", "data=spair", "run_dir=OUT", *tree])
        outcomes[len(tree)] = (code, capfd.readouterr().err)

    assert outcomes[0][0] == outcomes[2][0] == 2
    assert "which no installed file" in outcomes[0][1]
    assert "`head._target_`: there is no 'my.Head'" in outcomes[2][1]  # the run was taken


def test_the_advice_can_be_followed_where_it_is_given(run):
    """Only train and evaluate take the sections of a run on their lines."""
    edit(run, head={"_target_": "my.Head"})

    with pytest.raises(
        UserError, match=r"If it is your own, install its package \(docs/adding/your_package\.md\)\. Give"
    ):
        read_run_config(run)
    with pytest.raises(UserError, match=r"your_package\.md\) or type it on the command line\. Give"):
        read_run_config(run, search=config_search_path(str(conf_dir())))


def test_a_target_that_is_typed_and_not_there_is_a_user_error():
    with pytest.raises(InstantiationException) as error:
        instantiate({"_target_": "my.Head"})

    assert user_message(error.value, "evaluate").startswith("there is no 'my.Head' (no module my is found)")


# -- what is the line's to say --


def test_features_are_kept_where_the_line_says(config, run):
    cfg = read_run_config(
        edit(run, store={"_target_": "semcorr.store.frozen.FeatureCacheConfig", "root": "/theirs", "dtype": "float16"})
    )

    assert drop_store(cfg) == "/theirs"
    assert (cfg.store.root, cfg.store.dtype) == (None, "float16")
    line = [f"checkpoint={run}"]
    assert merge_checkpoint_config(config("evaluate", *line), line).store.root is None


def test_nothing_is_drawn_where_only_the_run_says(run, tmp_path, monkeypatch, capfd):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    edit(run, data=saved["data"] | {"root": str(tmp_path / "theirs")})
    monkeypatch.chdir(tmp_path)
    for verb in (evaluate, train):
        code = verb.main([f"checkpoint={run}"])

        assert code == 2
        assert "theirs has no drawings" in capfd.readouterr().err
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(UserError, match=r"Give data.root=DIR"):
        refuse_generating(read_run_config(run).data)


# -- the lists --


def test_every_option_that_takes_text_is_one_that_a_saved_configuration_may_have():
    """Of what the installed files call: a new one belongs into its YAML, or, if its text is harmless, into WORDS."""
    groups = "backbone data finetune head localise loss augment pairs pose optimizer corrupt"
    for group in groups.split():
        known = read_known_targets(config_search_path(str(conf_dir()))).group(group)
        for target in known.targets:
            for name, parameter in inspect.signature(get_object(target)).parameters.items():
                text = parameter.annotation is str or "str" in str(parameter.annotation).split(" | ")
                assert not text or name in known.options | known.words, f"{target}: {name}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &x 1\nb: *x\n", "line 1: anchors and aliases are not taken"),
        ("a: 1\nb: !!str 2\n", "line 2: tags are not taken"),
        ("a: 1\na: 2\n", "line 2: the key 'a' is there twice"),
        ("a: 1\n2: 3\n", "line 2: a key must be text"),
        ("<<: {a: 1}\n", "line 1: '<<' has a meaning of its own"),
        (f"a: {'9' * 5000}\n", "line 1: a number has more than 40 digits"),
        (f"a: {2**63}\n", "is not finite, or too large"),
        ("a: .inf\n", "is not finite, or too large"),
        ("a: '\\ud800'\nb: \"\\ud800\"\n", "line 2: it has control characters"),
        ("a: " + "[" * 40, "line 1: it is nested deeper than 32"),
        ("a: [" + "1," * 20_000, "line 1: it has more than 10,000 values"),
        ("a: 1\n---\nb: 2\n", "line 2: it has more than one document"),
    ],
)
def test_yaml_that_is_not_plain_is_refused_by_its_line(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)

    with pytest.raises(UserError) as error:
        read_plain_yaml(tmp_path / "a.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
