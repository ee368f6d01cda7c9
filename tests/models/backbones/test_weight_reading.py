"""A file of weights is read in whatever it is wrapped, and nothing in it is ever run."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchscript_cases import script

from semcorr.core.errors import UserError
from semcorr.models.weights.checkpoints import read_weights, unwrap_checkpoint


def test_every_kind_of_tensor_in_a_torchscript_archive_is_read(tmp_path):
    state = {
        "a.strided": torch.arange(12.0).reshape(3, 4).T,
        "a.b.sixteen": torch.ones(2, dtype=torch.float16),
        "brain": torch.ones(2, dtype=torch.bfloat16),
        "integers": torch.arange(3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }
    script(state, tmp_path / "some.pt")

    read = read_weights(tmp_path / "some.pt")

    assert set(read) == set(state)
    for key, value in state.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value), key


class Malice:
    """On being unpickled, makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def pickled(malice: Malice, path: Path) -> None:
    path.write_bytes(pickle.dumps({"norm.weight": malice}, protocol=2))


def saved(malice: Malice, path: Path) -> None:
    torch.save({"norm.weight": malice}, path)


def scripted(malice: Malice, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("archive/data.pkl", pickle.dumps({"norm.weight": malice}, protocol=2))


@pytest.mark.parametrize("how", [pickled, saved, scripted])
def test_a_pickle_that_wants_to_run_code_is_reported_and_not_run(tmp_path, how):
    mark, path = tmp_path / "mark", tmp_path / "model.pt"
    how(Malice(mark), path)

    with pytest.raises(UserError, match=r"`backbone\.weights`: .*model\.pt .*wants to call .*nothing in it was run"):
        read_weights(path)

    assert not mark.exists()
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists()  # it would have


def test_a_folder_of_hugging_faces_layout_is_read_whole_or_in_shards(tmp_path):
    parts = {"one": {"a": torch.ones(1)}, "two": {"b": torch.zeros(2)}}
    (tmp_path / "whole").mkdir()
    save_file(parts["one"] | parts["two"], tmp_path / "whole" / "model.safetensors")
    (tmp_path / "shards").mkdir()
    for name, part in parts.items():
        save_file(part, tmp_path / "shards" / f"{name}.safetensors")
    index = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(index)

    for folder in ("whole", "shards"):
        assert set(read_weights(tmp_path / folder)) == {"a", "b"}
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        read_weights(tmp_path)


def test_a_shard_that_is_missing_is_reported(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')

    with pytest.raises(UserError, match=r"gone\.safetensors"):
        read_weights(tmp_path)


def test_the_teacher_is_taken_before_anything_else():
    state = {"w": torch.ones(1)}

    assert unwrap_checkpoint({"student": {"w": torch.zeros(1)}, "model": {}, "teacher": state}) == state
    assert unwrap_checkpoint({"student": state, "epoch": 3}) == state
    assert unwrap_checkpoint({"model": {"_orig_mod.module.w": state["w"]}}) == state
