"""Tests against a real vLLM, marked `vllm`: run with the Python that `.ci/vllm-env` prints."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from cai.engines.weights import resolve_model


def pytest_configure(config: pytest.Config) -> None:
    """vLLM leaves the contexts of its message queues to the garbage collector, which warns."""
    left = "ignore:Exception ignored in. <function Context.__del__:pytest.PytestUnraisableExceptionWarning"
    config.addinivalue_line("filterwarnings", left)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed; use the Python of .ci/vllm-env"))


@pytest.fixture(scope="session")
def model() -> str:
    """Directory of the default model."""
    return resolve_model(None)
