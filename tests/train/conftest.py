"""What the tests of training share."""

from collections.abc import Iterator

import pytest
import torch
from in_process import cai, light_collections, tiny  # noqa: F401 (fixtures)

from cai.train import run


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at weights alone: to draw the curves takes longer than to train."""
    monkeypatch.setattr(run, "write_curves", lambda *_: None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in the same order in all processes, and no threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
