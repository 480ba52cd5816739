"""What device="cuda" says where something is missing; most of this runs everywhere."""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, _device, nn, optim


def fake(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setitem(sys.modules, "gradstack._cuda", module)
    monkeypatch.setattr(_device, "_opened", {})


def module_with(devices: tuple[int, int, str], version: str = _core.__version__) -> Any:
    def opened(_: int) -> Any:
        raise AssertionError("must not be opened")

    return types.SimpleNamespace(__version__=version, devices=lambda: devices, open=opened)


MISSING = [
    (None, r"no CUDA module.*GRADSTACK_CUDA=ON"),
    (module_with((0, 0, "no driver")), "no NVIDIA driver"),
    (module_with((0, 13000, "no CUDA-capable device is detected")), r"13\.0.*no CUDA-capable"),
    (module_with((1, 13000, ""), "0.0.0"), r"version 0\.0\.0"),
]


@pytest.mark.parametrize(("module", "message"), MISSING)
def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, module: Any, message: str) -> None:
    fake(monkeypatch, module)
    net, x = nn.Linear(2, 1), np.zeros((4, 2))
    with pytest.raises(RuntimeError, match=message):
        gs.fit(net, x, x[:, :1], cost=nn.MSELoss(), optimizer=optim.SGD(), device="cuda")
    with pytest.raises(RuntimeError, match=message):
        gs.Trainer(net, nn.MSELoss(), optim.SGD(), device="cuda:0")
    with pytest.raises(RuntimeError, match=message):
        net.to("cuda")
    assert net.device == "cpu"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, module_with((2, 13000, "")))
    with pytest.raises(RuntimeError, match=r"'cuda:2'.*has 2"):
        nn.Linear(2, 1).to("cuda:2")


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise ImportError("libcublasLt.so.13: cannot open shared object file")

    fake(monkeypatch, None)
    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(RuntimeError, match=r"libcublasLt\.so\.13.*gradstack\[cuda\]"):
        nn.Linear(2, 1).to("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CUDA", "", None, 0])
def test_unknown_devices(device: Any) -> None:
    with pytest.raises(ValueError, match="device must be"):
        nn.Linear(2, 1).to(device)


def test_this_machine_says_what_it_lacks() -> None:
    """With whatever is installed here: it opens, or the error names the missing part."""
    try:
        said = _device.open_device("cuda").name
    except _device.DeviceMissingError as error:
        said = str(error)
        assert not os.environ.get("GRADSTACK_REQUIRE_CUDA"), said
        said = said.partition("'cuda': ")[2]
    assert said
