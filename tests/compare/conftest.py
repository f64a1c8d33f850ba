"""What the tests of comparisons share."""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cai_process import Finished
from tiny_model import save_tiny_model

from cai.cli import main
from cai.train import evaluation_files, run

sys.path.append(str(Path(__file__).resolve().parent.parent / "train"))  # processes.py


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


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in the same order in all processes, and no threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def no_curves() -> Iterator[None]:
    """To draw the curves of the models takes longer than to train them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_curves", lambda *_: None)
        patch.setattr(evaluation_files, "draw_evaluation", lambda *_: b"")
        yield


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
