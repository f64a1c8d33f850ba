"""What the vLLM engine does before vLLM comes in; tests/on_vllm has the rest."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai.config import EngineConfig
from cai.engines.vllm import _environment, _Log, open_vllm, visible_devices
from cai.errors import ConfigError, EngineError


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that looks like a model's, in a Python without vLLM."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def open_with(**options: Any) -> None:
    asyncio.run(open_vllm(EngineConfig(engine="vllm", **options)))


def test_without_vllm_the_extra_to_install_is_named(model: str) -> None:
    with pytest.raises(EngineError, match=r"vLLM cannot be imported.*pip install 'constitutional-ai\[vllm\]'"):
        open_with(model=model)


def test_options_that_vllm_cannot_honour_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        open_with(base_url=("http://localhost/v1",), batch_size=4)
    assert [problem.key for problem in caught.value.problems] == ["batch_size", "base_url"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no adapter_config.json"),
        ("{", "does not give the rank"),
        (json.dumps({"peft_type": "LORA"}), "does not give the rank"),
        (json.dumps({"r": 1024}), "has rank 1024; vLLM takes at most 512"),
        (json.dumps({"r": 8, "rank_pattern": {"q_proj": 600}}), "has rank 600; vLLM takes at most 512"),
    ],
)
def test_an_adapter_that_vllm_cannot_take_is_refused_before_loading(
    model: str, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(EngineError, match=message):
        open_with(model=model, adapter=tmp_path)


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cuda:1", "", "1"), ("cuda:1", "4,6", "6"), ("cuda:0", "GPU-a,GPU-b", "GPU-a")],
)
def test_a_device_number_counts_among_the_visible_ones(device: str, visible: str, expected: str) -> None:
    assert visible_devices(device, visible) == expected


def test_a_device_that_is_not_visible_is_an_error(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(EngineError, match="there is no device cuda:2 in CUDA_VISIBLE_DEVICES=0,1"):
        open_with(model=model, device="cuda:2")
    with pytest.raises(EngineError, match="there is no device cuda:x"):
        open_with(model=model, device="cuda:x")


def test_a_failed_start_leaves_environment_and_output_as_they_were(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    before = dict(os.environ)
    with pytest.raises(EngineError):
        open_with(model=model)
    assert dict(os.environ) == before
    os.write(1, b"out")
    os.write(2, b"err")
    assert capfd.readouterr() == ("out", "err")


def test_variables_are_set_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_TEST_OLD", "old")
    with _environment({"CAI_TEST_OLD": "new", "CAI_TEST_NEW": "new"}):
        assert (os.environ["CAI_TEST_OLD"], os.environ["CAI_TEST_NEW"]) == ("new", "new")
    assert os.environ["CAI_TEST_OLD"] == "old"
    assert "CAI_TEST_NEW" not in os.environ


def test_output_of_child_processes_is_kept_and_the_first_error_in_it_is_the_cause(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = (
        "WARNING 11-21 [a.py:1] Error handling is on\n"
        "(Worker pid=5) ERROR 11-21 03:30:35 [executor.py:953] Traceback (most recent call last):\n"
        "(Worker pid=5) ERROR 11-21 03:30:35 [executor.py:953]     raise ValueError(\n"
        "(Worker pid=5) ERROR 11-21 03:30:35 [executor.py:953] ValueError: too little memory (4 [GiB])\n"
        "torch.OutOfMemoryError: later\n"
    )
    log = _Log()
    assert log.cause() == ""
    with log.capture():
        child = subprocess.Popen([sys.executable, "-c", f"import sys; input(); sys.stderr.write({lines!r})"], stdin=-1)
    child.communicate(b"\n")
    assert log.cause() == ": ValueError: too little memory (4 [GiB])"
    assert capfd.readouterr() == ("", "")
    log.close()


def test_a_bare_traceback_names_the_cause() -> None:
    log = _Log()
    with log.capture():
        os.write(2, b"Traceback (most recent call last):\n  raise x\ntorch.OutOfMemoryError: CUDA out of memory\n")
    assert log.cause() == ": torch.OutOfMemoryError: CUDA out of memory"
    log.close()
