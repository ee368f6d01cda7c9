"""What is asked of a device: to be waited for at the borders of stages alone, and to multiply as a run says."""

import types
from unittest.mock import create_autospec

import pytest
import torch

from semcorr.core import device as devices
from semcorr.core.device import copy_to_host, float32_products, full_float32, read_clock
from semcorr.matching import similarity


def products() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("tf32", "inside"), [(True, ("high", True)), (False, ("highest", False))])
def test_products_are_as_before_after_the_block_also_where_it_raises(tf32, inside):
    before = products()

    with float32_products(tf32):
        assert products() == inside
    with pytest.raises(KeyError), float32_products(tf32):
        raise KeyError

    assert products() == before


def test_similarities_are_not_in_tf32_inside_a_run_that_is():
    with float32_products(tf32=True):
        with full_float32("cuda"):
            inside = products()
        after = products()

    assert (inside, after) == (("highest", False), ("high", True))


@pytest.mark.parametrize("function", [similarity.cosine_similarity, similarity.product_similarity])
def test_every_similarity_asks_for_full_precision(monkeypatch, function):
    requested = []

    def record(device_type: str):
        requested.append(device_type)
        return full_float32(device_type)

    monkeypatch.setattr(similarity, "full_float32", record)
    function(torch.ones(1, 2, 3), torch.ones(1, 3, 4, 4))

    assert requested == ["cpu"]


def test_the_clock_is_read_after_the_device_is_done_and_a_cpu_is_not_waited_for(monkeypatch):
    events = []
    module = types.SimpleNamespace(synchronize=lambda device: events.append(str(device)))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: events.append("read") or 7.0)

    assert read_clock(torch.device("cuda", 1)) == read_clock(torch.device("cpu")) == 7.0
    assert events == ["cuda:1", "read", "read"]


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu"])
def test_every_device_is_waited_for_by_a_call_that_pytorch_takes(monkeypatch, name):
    module = getattr(torch, name)
    wait = create_autospec(module.synchronize)  # with its signature
    monkeypatch.setattr(module, "synchronize", wait)

    read_clock(torch.device(name))

    wait.assert_called_once()


def test_tensors_of_another_device_come_in_one_copy():
    class Far(torch.Tensor):
        """As if it lay elsewhere."""

        @property
        def device(self) -> torch.device:
            return torch.device("meta")

    values = [torch.rand(2, 3), torch.rand(0, 2), torch.rand(4)]

    copies = copy_to_host([value.as_subclass(Far) for value in values])

    assert all(torch.equal(torch.Tensor(copy), value) for copy, value in zip(copies, values, strict=True))
    assert copy_to_host(values)[0] is values[0]
