"""What the tests of comparisons share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from in_process import cai, light_collections, tiny  # noqa: F401 (fixtures)

from cai.train import evaluation_files, run

sys.path.append(str(Path(__file__).resolve().parent.parent / "train"))  # processes.py


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
