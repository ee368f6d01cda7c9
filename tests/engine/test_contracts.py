"""Plug-ins of other packages that break what they promise are refused in a sentence, before any image is read."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from backbone_cases import VIT
from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import nn

from semcorr import Matcher
from semcorr.cli.compose import compose_config
from semcorr.core import interfaces
from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.engine.build import build_datamodule, build_module, build_part, build_training_parts
from semcorr.engine.contracts import (
    list_left_out,
    require_backbone,
    require_call,
    require_gradients,
    require_head,
    require_loss,
    require_optimizer,
    require_readout,
    require_schedule,
    require_terms,
)
from semcorr.engine.run_config import check_config
from semcorr.matching.readouts import ReadoutList, argmax, readout_label, readout_shorthand
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.heads.cosine import Cosine
from semcorr.models.losses import GaussianCrossEntropy, WeightedSum
from semcorr.train import train


class Backbone(TimmModel):
    """A backbone of this file, as one of another package, which changes its map."""

    def __init__(self, change=lambda maps: maps, runs_without_values: bool = True):
        super().__init__("vit_tiny_patch16_224", size=64, pretrained=False, **VIT)
        self.change, self.runs_without_values = change, runs_without_values

    def forward(self, image):
        if not self.runs_without_values:
            image.mean().item()  # fails on the meta device
        return self.change(super().forward(image))


class Siamese(Cosine):
    """A head of this file, which takes one image at a time."""

    def __init__(self, change=lambda maps: maps, similarity=lambda values: values):
        super().__init__()
        self.change, self.similarity = change, similarity
        self.inner = nn.Dropout(0.5)

    def transform(self, maps):
        return self.change(maps)

    def compare(self, descriptors, target):
        return self.similarity(super().compare(descriptors, target))


class Pairs(nn.Module):
    """A head of this file, which takes both images at once."""

    def __init__(self, similarity=lambda values: values, **attributes):
        super().__init__()
        self.similarity = similarity
        vars(self).update(attributes)

    def forward(self, source, target, points):
        return self.similarity(Cosine()(source, target, points))


def resized(maps: FeatureMap, factor: float, stride: float) -> FeatureMap:
    return FeatureMap(nn.functional.interpolate(maps.values, scale_factor=factor), maps.stride * stride)


@pytest.mark.parametrize("runs_without_values", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps.values, r"must return a FeatureMap of an image, got \(2, \d+, 8, 8\) of float32"),
        (lambda maps: None, "must return a FeatureMap of an image, got None"),
        (lambda maps: resized(maps, 0.5, 1), r"its map must be \(2, \d+, 8, 8\) of stride 8, got \(2, \d+, 4, 4\)"),
        (lambda maps: FeatureMap(maps.values[..., :-1], maps.stride), r"got \(2, \d+, 8, 7\) of float32 of stride 8"),
        (lambda maps: FeatureMap(maps.values[:1], maps.stride), r"got \(1, \d+, 8, 8\)"),
        (lambda maps: FeatureMap(torch.cat([maps.values] * 2, 1), maps.stride), "says that it has"),
        (lambda maps: FeatureMap(maps.values, 16), "of stride 16"),
        (lambda maps: FeatureMap(maps.values.int(), maps.stride), "of int32"),
    ],
)
def test_a_backbone_of_another_map_than_it_says_is_refused(change, message, runs_without_values):
    with pytest.raises(UserError, match=message) as error:
        require_backbone(Backbone(change, runs_without_values))

    assert str(error.value).startswith(f"`backbone._target_`: {__name__}.Backbone ")


@pytest.mark.parametrize("runs_without_values", [True, False])
def test_a_backbone_that_keeps_its_word_is_left_as_it_was(runs_without_values):
    backbone = Backbone(runs_without_values=runs_without_values).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    require_backbone(backbone)

    assert torch.equal(torch.rand(1), expected)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Nameless(interfaces.Backbone):
    """A backbone of this file without most attributes."""

    size, stride = 64, 8


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Conv2d(3, 8, 8, 8), r"Conv2d is not a backbone\. Inherit semcorr\.core\.interfaces\.Backbone"),
        (Nameless(), r"Nameless has no name, channels, widths, blocks, sha256\. Add what"),
    ],
)
def test_a_network_that_is_no_backbone_is_refused_with_what_it_lacks(backbone, message):
    with pytest.raises(UserError, match=message):
        require_backbone(backbone)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("sha256", None, r"sha256 must be text, .* got None"),
        ("name", 3, "name must be text, got 3"),
        ("size", "64", "size must be a number of pixels, got '64'"),
        ("stride", 0, "stride must be a number of pixels, got 0"),
        ("widths", [1, 2], r"widths must be a list of numbers whose sum is channels, \d+, got \[1, 2\]"),
        ("read", lambda image: {"map": image}, "read must return a list of maps .* got a dict"),
        ("read", lambda image: None, "read must return a list of maps .* got a NoneType"),
        (
            "read",
            lambda image, mask: [image],
            r"failed: TypeError: .* missing 1 required positional argument: 'mask'",
        ),
        ("read", lambda image: 1 / 0, r"failed: ZeroDivisionError: division by zero \(<lambda>, line \d+ of .*\.py\)"),
        ("read", lambda image: sys.exit(0), "failed: SystemExit: 0"),
    ],
)
def test_a_backbone_that_breaks_a_promise_in_an_attribute_or_fails_is_refused(attribute, value, message):
    backbone = Backbone()
    vars(backbone)[attribute] = value

    with pytest.raises(UserError, match=message) as error:
        require_backbone(backbone)

    assert str(error.value).startswith(f"`backbone._target_`: {__name__}.Backbone")


def test_a_backbone_without_a_list_of_blocks_is_refused(monkeypatch):
    monkeypatch.setattr(Backbone, "blocks", 4, raising=False)

    with pytest.raises(UserError, match="blocks must be a list of modules, got 4"):
        require_backbone(Backbone())


class Lazy(Pairs):
    def __init__(self):
        super().__init__()
        self.mix = nn.LazyConv2d(8, 1)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (object(), "is not a head. Inherit torch.nn.Module"),
        (Lazy(), "head.mix.weight has no shape yet"),
        (Pairs(lambda values: 1 / 0), "failed: ZeroDivisionError: division by zero"),
        (Siamese(lambda maps: FeatureMap(maps.values, "8")), "of stride '8'"),
        (Siamese(lambda maps: FeatureMap(None, 8)), "must return a map of tensors, got None"),
    ],
)
def test_a_head_that_is_none_or_fails_is_refused(head, message):
    with pytest.raises(UserError, match=message):
        require_head(head, Backbone())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Siamese(lambda maps: maps.values), "transform must return a FeatureMap, got"),
        (Siamese(lambda maps: resized(maps, 2, 1)), "stride is its pixels per cell: of 2 images of 64 x 64 pixels got"),
        (Siamese(lambda maps: FeatureMap(maps.values[..., :-1], maps.stride)), "must return a map of the whole image"),
        (Siamese(similarity=lambda values: values.flatten(2)), "must return similarities"),
        (
            Siamese(similarity=lambda values: values[..., :-1]),
            r"of 2 pairs of 3 points \(2, 3, 8, 8\), got \(2, 3, 8, 7\)",
        ),
        (Pairs(lambda values: None), "must return similarities .* got None"),
        (Pairs(lambda values: values[:, 1:]), r"got \(2, 2, 8, 8\)"),
        (Pairs(lambda values: values > 0), "of bool"),
        (Pairs(lambda values: values[..., :4, :4]), r"got \(2, 3, 4, 4\)"),
        (Pairs(lambda values: nn.functional.interpolate(values, scale_factor=2)), "attribute fineness = 2"),
    ],
)
def test_a_head_whose_similarities_are_on_no_grid_of_the_image_is_refused(head, message):
    with pytest.raises(UserError, match=message) as error:
        require_head(head, Backbone())

    assert re.match(rf"`head\._target_`: {re.escape(__name__)}\.(Siamese|Pairs)", str(error.value))


@pytest.mark.parametrize(
    "head",
    [
        Siamese(),
        Siamese(lambda maps: resized(maps, 2, 0.5)),  # a finer grid, and its stride
        Pairs(),
        Pairs(lambda values: nn.functional.interpolate(values, scale_factor=2), fineness=2),
    ],
)
def test_a_head_on_the_grid_or_a_finer_one_is_taken(head):
    require_head(head.train(), Backbone())

    assert all(module.training for module in head.modules())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3, requires_grad=True), r"own must return a tensor of one number, got \(3,\) of float32"),
        (0.5, "got a float"),
        (None, "got None"),
        ({"loss": 1}, "got a dict"),
        (torch.tensor(1), "of int64"),
        (torch.tensor(1.0), "depends on no trainable weight"),
    ],
)
def test_a_loss_that_nothing_can_follow_is_refused(value, message):
    with pytest.raises(UserError, match=message):
        require_terms({"own": value})


def read(change, similarity):
    return change(argmax(similarity))


def read_points(similarity, points):
    return argmax(similarity)


class Reader:
    """A readout of this file that is an object."""

    def __call__(self, similarity):
        return argmax(similarity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[..., 0], r"got \(2, 3\) of float32"),
        (lambda cells: cells.long(), "of int64"),
        (lambda cells: cells.double(), "of float64"),
        (lambda cells: None, "got None"),
        (lambda cells: cells.numpy(), "got a ndarray"),
        (lambda cells: (cells, cells), "got a tuple"),
        (lambda cells: cells * torch.nan, "on the grid, from 0 to 7 on one of 8 x 8 cells, got nan to nan"),
        (lambda cells: cells + 1e6, r"got 1e\+06 to"),
        (lambda cells: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_a_readout_that_gives_no_cell_for_every_point_is_refused(change, message):
    for localise in (partial(read, change), ReadoutList(["argmax", partial(read, change)])):
        with pytest.raises(UserError, match=message) as error:
            require_readout(localise)

        assert str(error.value).startswith(f"`localise._target_`: {__name__}.read ")


def test_a_readout_that_is_an_object_is_taken_and_named_after_its_class():
    require_readout(Reader())

    assert readout_label(Reader()) == readout_shorthand(Reader()) == "Reader"
    assert readout_label(partial(Reader(), scale=2)) == "Reader(scale=2)"


@pytest.mark.parametrize(
    ("key", "part", "message"),
    [
        ("localise", read_points, "called with 1 argument: similarities"),
        ("localise", partial(Reader), "is a class, and would be built anew at each call. Leave out localise._partial_"),
        ("finetune", Pairs(), "called with 1 argument: the backbone"),
        ("finetune", nn.Module(), "Module cannot be called"),
        ("finetune", object(), "cannot be called. It is called with 1 argument: the backbone"),
        (
            "optimizer",
            partial(torch.optim.SGD, lr=0.1),
            "called with 2 arguments: trainable parameters of head and loss",
        ),
        ("scheduler", lambda optimizer: None, "steps of the run, steps of an epoch"),
    ],
)
def test_a_part_that_takes_other_arguments_is_refused_by_its_signature(key, part, message):
    with pytest.raises(UserError, match=message) as error:
        require_call(key, part)

    assert str(error.value).startswith(f"`{key}._target_`: ")


def own_loss(similarity, cells, mask, scale=1.0):
    return similarity.mean() * scale


def test_a_loss_of_another_signature_is_refused_also_in_a_sum():
    require_loss(partial(own_loss, scale=2.0))
    require_loss(WeightedSum({"own": own_loss, "other": GaussianCrossEntropy()}, {"own": 1.0, "other": 1.0}))
    for loss in (read_points, WeightedSum({"own": read_points}, {"own": 1.0})):
        with pytest.raises(UserError, match=r"read_points takes other arguments.* similarity, true cells, mask"):
            require_loss(loss)


def test_an_optimizer_without_a_weight_of_the_model_is_refused():
    weights = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    part = torch.optim.SGD([weights[0]])

    require_optimizer(part, weights, read)

    assert [id(left_out) for left_out in list_left_out(part, weights)] == [id(weights[1])]
    with pytest.raises(UserError, match=r"test_contracts\.read reaches none of the 10 trainable weights"):
        require_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))]), weights, read)
    with pytest.raises(UserError, match=r"must return a torch\.optim\.Optimizer, got None"):
        require_optimizer(None, weights, read)
    with pytest.raises(UserError, match=r"must return a torch\.optim\.lr_scheduler\.LRScheduler, got None"):
        require_schedule(None, read)


def test_a_loss_whose_gradient_reaches_no_weight_is_refused():
    weights = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    with pytest.raises(UserError, match=r"own_loss reaches none of the 10 trainable weights"):
        require_gradients(own_loss, weights)
    weights[1].sum().backward()

    require_gradients(own_loss, weights)


# -- parts by the path of their class, as a configuration names them --


def constant_loss(similarity, cells, mask):
    return torch.tensor(1.0, requires_grad=True)


def foreign_weights(head, backbone):
    return torch.optim.SGD([nn.Parameter(torch.ones(1))])


def first_weight(head, backbone):
    return torch.optim.SGD([*head, *backbone][:1], lr=0.1)


def choose_nothing(head, backbone):
    raise RuntimeError("nothing is chosen")


def tune_nothing(backbone):
    raise KeyError("blocks.12")


class Broken(Cosine):
    def __init__(self, value=torch.nan):
        super().__init__()
        if value is None:
            raise RuntimeError("no weights file")
        if value == "exit":
            sys.exit(0)
        self.scale = nn.Parameter(torch.tensor(value))


def own(cfg, key, name, **options):
    cfg[key] = {"_target_": f"{__name__}.{name}", **options}
    return cfg


@pytest.mark.integration
@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("loss", "constant_loss", r"`loss`: .*constant_loss reaches none of the [\d,]+ trainable weights"),
        (
            "optimizer",
            "foreign_weights",
            r"`optimizer\._target_`: .*foreign_weights reaches none of the [\d,]+ trainable",
        ),
        (
            "optimizer",
            "choose_nothing",
            r"`optimizer\._target_`: .*choose_nothing failed: RuntimeError: nothing is chosen",
        ),
        ("finetune", "tune_nothing", r"`finetune\._target_`: .*tune_nothing failed: KeyError: 'blocks\.12'"),
    ],
)
def test_a_training_that_would_change_no_weight_ends_before_its_first_update(config, tiny, key, name, message):
    cfg = own(config("train", *tiny, "finetune.blocks=1"), key, name, _partial_=True)

    with pytest.raises(UserError, match=message):
        train(cfg)

    assert Path(cfg.run_dir).exists() == (key == "loss")  # which is known at the first step


@pytest.mark.integration
def test_an_optimizer_that_leaves_weights_out_is_told(config, tiny, capsys):
    line = ["finetune.blocks=1", "data.steps=1", "trainer.max_epochs=1"]
    train(own(config("train", *tiny, *line), "optimizer", "first_weight", _partial_=True))

    assert re.search(r"`optimizer` leaves [\d,]+ of the [\d,]+ trainable weights as they are", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"Broken failed: RuntimeError: no weights file \(Broken\.__init__, line \d+ of .*test_contracts\.py\)"),
        ("exit", "Broken failed: SystemExit: 0"),
        (torch.nan, "Broken: 1 of the 1 numbers in scale are not finite .* Correct how it sets its weights"),
    ],
)
def test_a_head_that_fails_ends_the_program_or_starts_with_nan_is_named(config, tiny, value, message):
    with pytest.raises(UserError, match=message) as error:
        build_module(own(config("evaluate", *tiny), "head", "Broken", value=value))

    assert str(error.value).startswith(f"`head._target_`: {__name__}.Broken")


def test_a_function_that_lacks_partial_is_told_so():
    section = OmegaConf.create({"_target_": f"{__name__}.own_loss"})

    with pytest.raises(UserError, match=r"own_loss failed: TypeError: .* A function needs loss\._partial_=true\."):
        build_part("loss", section)


@pytest.mark.parametrize("key", ["data", "store", "pairs", "pose", "protocol", "corrupt"])
def test_a_part_of_another_kind_is_refused(config, tiny, key):
    cfg = own(config("train" if key == "pairs" else "evaluate", *tiny), key, "Kindless")

    with pytest.raises(
        UserError, match=rf"`{key}\._target_`: {__name__}\.Kindless must be a semcorr\..*, got a Kindless"
    ):
        build_datamodule(cfg, "data", ()) if key in ("data", "corrupt") else build_module(cfg)


class Kindless:
    """A part of this file that is none."""

    def __init__(self, size=0):
        pass


def test_parts_of_a_training_are_checked_when_they_are_built(config, tiny):
    cfg = own(config("train", *tiny), "scheduler", "tune_nothing", _partial_=True)

    with pytest.raises(UserError, match=r"`scheduler\._target_`: .*tune_nothing takes other arguments"):
        build_training_parts(cfg)


def test_a_module_that_ends_the_program_as_it_is_imported_is_named(config, tiny, tmp_path, monkeypatch):
    (tmp_path / "ending_module.py").write_text("import sys; sys.exit('run the setup first')")
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("head", "data"):
        cfg = config("evaluate", *tiny)
        cfg[key]._target_ = "ending_module.Part"

        with pytest.raises(
            UserError, match=rf"`{key}\._target_`: 'ending_module.Part' cannot be imported: .*run the setup first"
        ):
            check_config(cfg)


def test_one_term_with_a_gradient_is_enough():
    require_terms({"own": torch.tensor(1.0), "other": torch.tensor(1.0, requires_grad=True)})


def test_a_configuration_is_composed_inside_a_hydra_application_of_the_users():
    with initialize(version_base="1.3", config_path=None):
        own = GlobalHydra.instance().hydra

        cfg = compose_config("evaluate", ["backbone=tiny"])
        Matcher.load("backbone=tiny")

        assert cfg.backbone.size
        assert GlobalHydra.instance().hydra is own
    assert not GlobalHydra.instance().is_initialized()


def test_similarities_that_are_no_numbers_are_reported_before_points_are_matched_back():
    matcher = Matcher.load("backbone=tiny")
    matcher.module.head = Siamese(similarity=lambda values: values * torch.nan)

    with pytest.raises(UserError, match="the similarities of these pictures are not finite"):
        matcher.match(*(torch.rand(3, 40, 60) for _ in range(2)), [(20, 20)])
