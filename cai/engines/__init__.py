"""Engines: one small protocol, several ways to run a model. Each is imported only when it is opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs, Engine, EngineInfo, ReplyLogprob
from cai.errors import EngineError

__all__ = ["ChoiceLogprobs", "Engine", "EngineInfo", "ReplyLogprob", "open_engine"]


@asynccontextmanager
async def open_engine(config: EngineConfig) -> AsyncIterator[Engine]:
    """Open the engine that `config` asks for, and close it in the end.

    Raises:
        EngineError: the model or server cannot be used, or a package is missing (the extra to install is named).
        ConfigError: an option does not fit the engine.
    """
    engine = await _opened(config)
    try:
        yield engine
    finally:
        await engine.aclose()


async def _opened(config: EngineConfig) -> Engine:
    if config.engine == "scripted":
        from cai.engines.scripted import open_scripted

        return open_scripted(config)
    if config.engine == "openai":
        from cai.engines.openai import open_openai

        return await open_openai(config)
    extra = "hf" if config.engine == "transformers" else "vllm"
    try:
        if config.engine == "vllm":
            from cai.engines.vllm import open_vllm

            return await open_vllm(config)
        from cai.engines.transformers import open_transformers

        return await open_transformers(config)
    except ModuleNotFoundError as error:
        raise EngineError(
            f"the engine `{config.engine}` needs the package {error.name}: pip install 'constitutional-ai[{extra}]'"
        ) from None
