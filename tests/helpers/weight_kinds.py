"""Files that people give for weights and that are none, by kind: how to write one, and what must be said."""

import bz2
import datetime
import gzip
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save, save_file
from torchscript_cases import script

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 346378731\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please log in</body></html>"
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>'
State = dict[str, torch.Tensor]


def saved(content: object) -> bytes:
    torch.save(content, buffer := BytesIO())
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    with zipfile.ZipFile(buffer := BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    with tarfile.open(fileobj=(buffer := BytesIO()), mode="w") as archive:
        member = tarfile.TarInfo("model.pth")
        member.size = len(content)
        archive.addfile(member, BytesIO(content))
    return buffer.getvalue()


def numpy_archive() -> bytes:
    np.savez(buffer := BytesIO(), a=np.ones(2))
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    torch.save(content, buffer := BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def packed(own: State) -> bytes:
    return save({key: value.contiguous() for key, value in own.items()})


def whole_numbers(own: State) -> State:
    """Vectors alone, as some quantisers leave them."""
    return {key: (100 * value).to(torch.int8) if value.ndim == 1 else value for key, value in own.items()}


OTHER: dict[str, tuple[Callable[[State], bytes], str]] = {
    "pointer": (lambda _: POINTER.encode(), r"is a Git LFS pointer.*git lfs pull"),
    "login page": (lambda _: PAGE.encode(), r"is an HTML page.*Download the weights file itself"),
    "page after a mark": (lambda _: b"\xef\xbb\xbf\n  <html lang='en'>", r"is an HTML page"),
    "XML error": (lambda _: ERROR.encode(), r"is an XML text"),
    "JSON error": (lambda _: json.dumps({"error": "Repository not found"}).encode(), r"is a JSON text"),
    "text": (lambda _: b"Access to this model is restricted.\n", r"is a text, which begins with 'Access to this"),
    "empty": (lambda _: b"", r"is empty \(0 bytes\)"),
    "zip of it": (lambda own: zipped(**{"model.pth": saved(own)}), r"is a ZIP archive of 1 files \(model\.pth\)"),
    "zip cut short": (lambda own: saved(own)[:2000], r"is cut short"),
    "numpy archive": (lambda _: numpy_archive(), r"archive of NumPy arrays"),
    "tar": (lambda own: tarred(saved(own)), r"is a tar archive\. Unpack it"),
    "gzip": (lambda own: gzip.compress(saved(own)), r"compressed by gzip\. Unpack it"),
    "bzip2": (lambda own: bz2.compress(saved(own)), r"compressed by bzip2"),
    "xz": (lambda own: lzma.compress(saved(own)), r"compressed by xz"),
    "gzip of a page": (
        lambda _: gzip.compress(PAGE.encode()),
        r"compressed by gzip, and what is in it is an HTML page",
    ),
    "gzip cut short": (lambda own: gzip.compress(saved(own))[:300], r"compressed by gzip, and damaged or cut short"),
    "wide page": (lambda _: PAGE.encode("utf-16"), r"is an HTML page"),
    "page that refers": (lambda _: b"<meta http-equiv=refresh content='0; url=/login'>", r"is an HTML page"),
    "page after blanks": (lambda _: b"\n" * 5000 + PAGE.encode(), r"is an HTML page"),
    "western text": (lambda _: "Accès refusé".encode("cp1252"), r"is a text, which begins with 'Accès"),
    "blanks": (lambda _: b" \n\n", r"holds only blanks"),
    "zeros": (lambda _: bytes(5000), r"holds zeros where its content should begin, as a download does that never"),
    "safetensors cut short": (lambda own: packed(own)[:-1000], r"is cut short: a safetensors file of \d+ bytes"),
    "header cut short": (lambda own: packed(own)[:300], r"is cut short: a safetensors file of 300 bytes"),
    "pickle cut short": (lambda own: legacy(own)[:-1000], r"is cut short \(unexpected EOF"),
    "pictures": (
        lambda _: zipped(**{"a.jpg": b"1", "b.jpg": b"2"}),
        r"is a ZIP archive of 2 files .*Download",
    ),
    "torch.export": (
        lambda _: zipped(**{"m/archive_format": b"pt2", "m/data": b"2"}),
        r"a program of torch\.export",
    ),
    "ONNX": (lambda _: b"\x08\x08\x12\x07pytorch\x1a" + bytes(50), r"is a protocol buffer, as ONNX's"),
    "a program": (lambda _: b"\x7fELF" + bytes(50), r"is a program"),
    "bytes of nothing known": (lambda _: b"\xa7\x0d\x0d\x0a" + bytes(50), r"by its first bytes \(a7 0d 0d 0a"),
    "whole numbers": (lambda own: saved(whole_numbers(own)), r"is quantised \(.* is int8\)"),
    "float8": (lambda own: saved({k: v.to(torch.float8_e4m3fn) for k, v in own.items()}), r"is quantised"),
    "arrays": (lambda own: saved({k: v.numpy() for k, v in own.items()}), r"numpy\S+; nothing .* arrays of NumPy"),
    "two networks of MoCo": (
        lambda own: saved({"state_dict": under("module.base_encoder.", own) | under("module.momentum_encoder.", own)}),
        r"holds 2 networks, under 'base_encoder\.' and 'momentum_encoder\.'",
    ),
    "a download of which the end is missing": (
        lambda own: packed(own)[:-300_000] + bytes(300_000),
        r"ends in zeros, as a download does that never finished",
    ),
    "HDF5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), r"HDF5 file, as Keras"),
    "GGUF": (lambda _: b"GGUF\3\0\0\0" + bytes(100), r"GGUF"),
    "a list": (lambda _: saved([1, 2]), r"it holds a list"),
    "no tensors": (lambda _: saved({"optimizer": {"state": {}}, "epoch": 3}), r"holds no weights, only 'optimizer'"),
    "a whole module": (
        lambda _: saved(torch.nn.Linear(2, 2)),
        r"wants to call torch\.nn\.modules\.linear\.Linear.*state_dict",
    ),
    "of semcorr": (
        lambda own: saved({"state_dict": own, "base": {"backbone": "tiny", "sha256": "0"}}),
        r"checkpoint of a training run of semcorr.*checkpoint=RUN_DIR",
    ),
    "quantised": (
        lambda own: saved({k: v.to(torch.int8) if v.ndim == 2 else v for k, v in own.items()}),
        r"is quantised \(.* is int8\)",
    ),
    "sparse": (lambda own: saved(own | {"norm.weight": own["norm.weight"].to_sparse()}), r"not a plain tensor"),
}


def half(own: State) -> object:
    return {key: value.half() for key, value in own.items()}


def chunked(own: State, going_on: bool = True) -> State:
    """Two blocks to a chunk."""

    def name(key: str) -> str:
        if not key.startswith("blocks."):
            return key
        _, number, rest = key.split(".", 2)
        return f"blocks.{int(number) // 2}.{int(number) if going_on else int(number) % 2}.{rest}"

    return {name(key): value for key, value in own.items()}


def under(prefix: str, own: State) -> State:
    return {prefix + key: value for key, value in own.items()}


WRAPPED: dict[str, Callable[[State], object]] = {
    "state dict": lambda own: own,
    "teacher": lambda own: {"student": under("module.", half(own)), "teacher": under("module.backbone.", own)},
    "lightning": lambda own: {"state_dict": under("model.", own), "epoch": 3, "optimizer_states": [{"a": 1}]},
    "two networks": lambda own: {"state_dict": under("student.", {k: v + 1 for k, v in own.items()})
                                 | under("teacher.", own)},
    "of a name of one's own": lambda own: under("net.feature_extractor.", own) | {"net.criterion.w": torch.ones(2)},
    "of peft, without an adapter": lambda own: under("base_model.model.", own),
    "of MoCo's query": lambda own: {"state_dict": under("module.encoder_q.", own) | {"module.queue": torch.ones(2, 2)}},
    "of I-JEPA": lambda own: {"encoder": half(own), "predictor": {"w": torch.ones(2)}, "target_encoder": own},
    "of a script": lambda own: {"epoch": 3, "model_state_dict": own, "optimizer_state_dict": {"state": {}}},
    "beside an empty one": lambda own: {"model": {}, "net": own},
    "with notes": lambda own: {"state_dict": own, "best": np.float64(3.5), "when": datetime.datetime(2026, 1, 2),
                               "out": Path("runs"), "hyper_parameters": OmegaConf.create({"lr": 0.1, "of": [1, 2]})},
    "encoder": lambda own: under("encoder.", own) | {"projector.0.weight": torch.ones(3, 3)},
    "compiled": lambda own: {"model": under("_orig_mod.module.", own)},
    "sharded": lambda own: {k.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): v for k, v in own.items()},
    "recomputed": lambda own: {k.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): v
                               for k, v in own.items()},
    "chunks": chunked,
    "chunks that begin again": lambda own: chunked(own, going_on=False),
    "chunks of a teacher": lambda own: {"teacher": under("backbone.", chunked(own)) | {"dino_head.w": torch.ones(1)}},
    "double": lambda own: {key: value.double() for key, value in own.items()},
    "with a classifier": lambda own: own | {"head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)},
}  # fmt: skip


def write_as(how: str, state: State, path: Path) -> None:
    """As one of the four containers, whatever the ending of the path."""
    if how == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif how == "script":
        script(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
