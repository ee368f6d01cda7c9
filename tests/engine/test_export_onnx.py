"""--format onnx: a graph that takes pixels and gives the run's features, or a sentence why there is none."""

from functools import partial

import onnxruntime
import pytest
import torch
from backbone_cases import squeezenet, tiny
from exported_runs import FACTS, features, loud, moved, of_run
from exported_runs import no_graph as no_graph
from exported_runs import run as run
from exported_runs import runs as runs
from exported_runs import typed as typed

from semcorr.core.errors import UserError
from semcorr.core.interfaces import Backbone
from semcorr.core.types import FeatureMap
from semcorr.engine.export import export_onnx, relative_difference
from semcorr.models.backbones.timm_model import TimmModel
from semcorr.models.finetune.adapters import adaptformer, houlsby
from semcorr.models.finetune.last_blocks import last_blocks

pytestmark = pytest.mark.integration


def test_a_graph_takes_pixels_and_gives_the_runs_features(typed, run, tmp_path, capfd):
    """At another size than the run's, for which position embeddings are resampled in the graph."""
    trained = run("lora")
    assert typed(trained, "--format", "onnx", "--size", "48x80", "--out", "b.onnx") == 0

    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    (image,), (values,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", [1, 3, 48, 80])
    assert (values.name, values.shape) == ("features", [1, 48, 6, 10])
    given = torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(5))
    found = torch.from_numpy(session.run(None, {"image": given.numpy()})[0])
    assert relative_difference(found, features(of_run(trained), given)) < 1e-4
    assert session.get_modelmeta().custom_metadata_map["run"] == str(trained.resolve())
    output = capfd.readouterr()
    assert "differ from the run's by at most" in output.out
    assert "onstant folding" not in output.out + output.err
    assert "Warning" not in output.out + output.err


def sam() -> TimmModel:
    torch.manual_seed(0)
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "window_size": 3, "global_attn_indexes": (1,)}
    return TimmModel("samvit_base_patch16", 64, pretrained=False, **shape).eval()


GRAPHS = {
    "adaptformer": (partial(tiny, depth=2), partial(adaptformer, width=4)),
    "houlsby, two layers": (partial(squeezenet, layers=[0, 2]), partial(houlsby, width=4)),
    "attention with a mask": (sam, partial(last_blocks, blocks=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_computes_what_the_backbone_does(tmp_path, case):
    build, tune = GRAPHS[case]
    backbone = loud(build())
    image = torch.rand(1, 3, backbone.size, 2 * backbone.size)
    before = features(backbone, image)
    tune(backbone)

    assert relative_difference(before, features(moved(backbone), image)) > 1e-3
    assert export_onnx(backbone, tmp_path / "b.onnx", (backbone.size, 2 * backbone.size), FACTS) < 1e-4


def test_a_frozen_run_is_exported_as_a_graph_and_has_no_other_weights(typed, run, no_graph, capfd, monkeypatch):
    monkeypatch.setattr("semcorr.engine.export._run", lambda path, image: features(of_run(frozen), image).numpy())
    frozen = run("frozen")
    assert typed(frozen, "--format", "onnx", "--out", "b.onnx") == 0
    assert ", frozen\n" in capfd.readouterr().out

    for format in ("merged", "peft"):
        assert typed(frozen, "--format", format) == 2
        error = capfd.readouterr().err
        assert "is a frozen run: it trained nothing" in error
        assert "backbone.weights=FILE" in error


@pytest.mark.slow
def test_a_graph_too_large_for_one_file_has_its_weights_beside_it(typed, run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    assert typed(run("lora"), "--format", "onnx", "--out", "b.onnx") == 0

    assert {path.name for path in tmp_path.iterdir()} == {"b.onnx", "b.onnx.data"}
    assert onnxruntime.InferenceSession(tmp_path / "b.onnx").get_outputs()[0].shape == [1, 48, 8, 8]


# -- mistakes --


def test_what_the_exporter_cannot_do_is_a_user_error_and_its_own_words_are_not_shown(tmp_path, capfd):
    class Odd(Backbone):
        name, size, stride, pairwise = "odd", 8, 8, False

        def forward(self, image: torch.Tensor) -> FeatureMap:
            return FeatureMap(image * float(image.mean() > 0.5), 8)

    with pytest.raises(UserError, match=r"odd cannot be written as an ONNX graph: .*[^.]\. Try another --format\."):
        export_onnx(Odd(), tmp_path / "b.onnx", (8, 8), FACTS)
    assert capfd.readouterr() == ("", "")


def test_what_sees_two_images_is_no_graph(tmp_path):
    backbone = tiny()
    backbone.pairwise = True
    with pytest.raises(UserError, match="depend on both images of a pair, and a graph takes one"):
        export_onnx(backbone, tmp_path / "b.onnx", (64, 64), FACTS)


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("semcorr.core.extras.is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"onnx and onnxscript, which are not installed: pip install 'semcorr.onnx.'"):
        export_onnx(tiny(), tmp_path / "b.onnx", (64, 64), FACTS)


def test_without_onnxruntime_it_says_that_nothing_was_checked(typed, run, no_graph, capfd, monkeypatch):
    monkeypatch.setattr("semcorr.engine.export.is_installed", lambda package: package != "onnxruntime")
    assert typed(run("last_blocks"), "--format", "onnx", "--out", "b.onnx") == 0
    assert "Not checked: onnxruntime is not installed" in capfd.readouterr().out
