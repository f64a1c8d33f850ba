"""Options that every command with a model shares. They override the keys of the same name in a config file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console

from cai.config import EngineConfig, EngineName, SamplingConfig, StrictModel

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_ENGINE_OPTIONS = (
    click.option(
        "--engine", type=click.Choice(get_args(EngineName)), help="How the model is run. Default: transformers."
    ),
    click.option("--model", help="Directory, hub id, or a server's model name. Default: SmolLM2-135M-Instruct."),
    click.option("--adapter", type=click.Path(path_type=Path), help="Directory of a LoRA adapter."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Default: auto."),
    click.option("--device", help="auto, cpu, cuda, cuda:1, mps. Default: auto."),
    click.option(
        "--format",
        type=click.Choice(["auto", "chat", "transcript"]),
        help="Chat template, or Human/Assistant turns for a base model. Default: auto.",
    ),
    click.option("--system", help="System prompt of drafts and of answers to helpful prompts."),
    click.option("--base-url", multiple=True, help="OpenAI-compatible server; repeat it for several."),
    click.option("--api-key-env", help="Environment variable with the server's key. Default: OPENAI_API_KEY."),
    click.option("--timeout", type=float, help="Seconds that one request to a server may take. Default: 600."),
    click.option("--max-retries", type=int, help="Further tries after 429, 5xx or a timeout. Default: 5."),
    click.option("--concurrency", type=int, help="Chains in flight. Default: what keeps the engine busy."),
    click.option("--batch-size", type=int, help="Rows in a forward pass (transformers)."),
    click.option("--max-model-len", type=int, help="Context length in tokens. Default: the model's own."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with the model."),
    click.option("--script", type=click.Path(path_type=Path), help="Answers of the scripted engine (YAML)."),
)
_SAMPLING_OPTIONS = (
    click.option("--max-tokens", type=int, help="Longest reply in tokens. Default: 256."),
    click.option("--temperature", type=float, help="Default: 1, as in the paper."),
    click.option("--top-p", type=float, help="Default: 1."),
    click.option("--stop", multiple=True, help="End replies before this text; repeat it for several."),
)


WRITING: Mapping[str, type[StrictModel]] = {"engine": EngineConfig, "sampling": SamplingConfig}
"""Sections of the configuration of a stage that writes replies."""


def add_options(command: CommandT, options: Sequence[Callable[[CommandT], CommandT]]) -> CommandT:
    """Add options to a command, in the order in which its help is to list them."""
    for option in reversed(options):
        command = option(command)
    return command


def engine_options(command: CommandT) -> CommandT:
    """Add the options of the engine to a command."""
    return add_options(command, _ENGINE_OPTIONS)


def writing_options(command: CommandT) -> CommandT:
    """Add the options of engine and sampling to a command."""
    return add_options(command, (*_ENGINE_OPTIONS, *_SAMPLING_OPTIONS))


def overrides(options: Mapping[str, Any], sections: Mapping[str, type[StrictModel]] = WRITING) -> dict[str, Any]:
    """Nest flat command-line options like a stage's config; options that were not given are left out.

    An option that is a field of one of `sections` goes there.
    """
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    nested: dict[str, Any] = {section: {} for section in sections}
    for name, value in given.items():
        place = next((section for section, model in sections.items() if name in model.model_fields), None)
        if place is None:
            nested[name] = value
        else:
            nested[place][name] = value
    return nested


def console(*, stderr: bool = False) -> Console:
    """The console to print on; without a terminal, wide enough not to break lines."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=max(found.width, 120))
