"""Fixtures of the tests that train: a small model, and the command in this process."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cai_process import Finished
from tiny_model import save_tiny_model

from cai.cli import main


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a chat template and random weights."""
    return save_tiny_model(tmp_path_factory.mktemp("start") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def light_collections() -> Iterator[None]:
    """The garbage collections that trainers ask for pass over all that the modules hold, which takes seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def cai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs `cai` with the words given, in this process, as the command line does."""

    def in_process(*words: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["cai", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return Finished(end.value.code, *capsys.readouterr())

    return in_process
