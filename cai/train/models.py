"""Models to train: found, checked, loaded, given a reward head or an adapter, and saved."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from cai.engines.chat import ChatFormat
from cai.engines.transformers import first_sentence
from cai.engines.weights import ADAPTER_CONFIG, DEFAULT_MODEL, Weights, base_of, find_weights
from cai.errors import ConfigError, EngineError
from cai.journal import whole_folder
from cai.train.config import MAX_LENGTH, TrainConfig
from cai.train.encoding import check_end_token, check_padding
from cai.train.templates import load_template

REWARD_OFFSET = "reward_offset"
"""Key of a reward model's config.json: what is taken off its raw rewards, so that reference answers average 0."""


@dataclass(frozen=True)
class Start:
    """What training starts from; nothing heavy is loaded yet."""

    name: str
    """As the user named it."""
    weights: Weights
    sha256: str
    """Of the weights, or of a hub model's commit."""
    config: Any
    """transformers' configuration of the base model."""
    gives_rewards: bool
    """Whether base or adapter has a trained reward head, as far as their files say."""
    trust_remote_code: bool
    """Whether Python code that comes with the base model may run."""
    max_length: int
    """Tokens of the longest conversation to train on."""
    tokenizer: Any
    chat: ChatFormat


def find_start(config: TrainConfig, *, generates: bool) -> Start:
    """Find the model and read its configuration and tokenizer; `generates` where it is to learn to write.

    Raises:
        ConfigError: there is no chat template; it cannot be used; no padding token can be chosen; it is a reward model
            and is to write.
        EngineError: there is no such model or adapter.
    """
    weights = find_weights(config.model, config.adapter)
    trust = config.trust_remote_code
    transformers.utils.logging.set_verbosity_error()
    if Path(weights.base).is_dir():  # a download keeps its progress bar
        transformers.utils.logging.disable_progress_bar()
    try:
        model_config = AutoConfig.from_pretrained(weights.base, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(weights.tokenizer, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise EngineError(f"the model {weights.base} cannot be loaded: {first_sentence(error)}") from None
    adapted = weights.adapter is not None and task_of(weights.adapter) == TaskType.SEQ_CLS
    gives_rewards = adapted or is_reward_model(model_config)
    if generates and gives_rewards:
        raise ConfigError(
            f"{config.adapter or config.model} is a reward model, which has no output layer to write with; name a "
            "language model"
        )
    if config.chat_template is not None:
        tokenizer.chat_template = load_template(config.chat_template)
    elif tokenizer.chat_template is None:
        raise ConfigError(
            f"{config.model} has no chat template, so it is not known how it is to write conversations; give "
            "--chat-template chatml, transcript, or a Jinja file"
        )
    check_padding(tokenizer)
    max_length = _max_length(config, model_config, weights.base)
    chat = ChatFormat(tokenizer, "chat", max_length)
    if generates:
        check_end_token(chat, stop_tokens(weights.base, tokenizer))
    return Start(
        name=config.model or DEFAULT_MODEL,
        weights=weights,
        sha256=weights_sha256(weights, model_config),
        config=model_config,
        gives_rewards=gives_rewards,
        trust_remote_code=trust,
        max_length=max_length,
        tokenizer=tokenizer,
        chat=chat,
    )


def merge_start(start: Start, config: TrainConfig, folder: Path) -> Path:
    """Write the start's base model with its adapter merged into it, and the tokenizer, whole or not at all.

    Raises:
        EngineError: the weights cannot be loaded, or the adapter belongs to another base model.
    """
    if not folder.is_dir():
        assert start.weights.adapter is not None, "there is something to merge"
        kind = AutoModelForSequenceClassification if start.gives_rewards else AutoModelForCausalLM
        model = with_adapter(_loaded(kind, start, config, "auto", **_outputs(kind)), start.weights.adapter)
        with whole_folder(folder) as partial:
            model.merge_and_unload().save_pretrained(partial)
            start.tokenizer.save_pretrained(partial)
    return folder


def load_policy(start: Start, config: TrainConfig, dtype: torch.dtype) -> Any:
    """The language model to train, with its adapter where `use_peft` asks for one.

    An adapter that the start has is trained on.

    Raises:
        EngineError: the weights cannot be loaded, or the adapter belongs to another base model.
    """
    model = _loaded(AutoModelForCausalLM, start, config, dtype)
    model.config.pad_token_id = start.tokenizer.pad_token_id
    if start.weights.adapter is not None:
        return with_adapter(model, start.weights.adapter, trainable=True)
    return get_peft_model(model, lora_config(config, TaskType.CAUSAL_LM)) if config.use_peft else model


def load_reward_model(start: Start, config: TrainConfig, dtype: torch.dtype) -> Any:
    """A model with one output, the reward; its head is new where the start is a language model.

    The new head is drawn from N(0, 1/(d + 1)) with hidden size d and has no bias (Huang et al. 2024,
    arXiv 2403.17031, detail 6), by torch's global generator.

    Raises:
        EngineError: the weights cannot be loaded, or the architecture has no linear head.
    """
    text = start.config.get_text_config()
    drawn = {} if start.gives_rewards else {"initializer_range": (text.hidden_size + 1) ** -0.5}
    model = _loaded(AutoModelForSequenceClassification, start, config, dtype, num_labels=1, **drawn)
    if not make_exact(model):
        raise EngineError(
            f"{start.name} cannot be made a reward model: {type(model).__name__} has no linear head without a bias"
        )
    model.config.get_text_config().initializer_range = text.initializer_range
    model.config.get_text_config().pad_token_id = start.tokenizer.pad_token_id
    return get_peft_model(model, lora_config(config, TaskType.SEQ_CLS)) if config.use_peft else model


class ExactHead(torch.nn.Linear):
    """A reward head that computes in float32, also below a model in bfloat16 and under mixed precision.

    A bfloat16 reward of 1 comes in steps of 1/128, so that close rewards tie and small margins are lost.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Shapes (…, hidden size) → (…, 1)."""
        with torch.autocast(input.device.type, enabled=False):
            return torch.nn.functional.linear(input.float(), self.weight.float())


def make_exact(model: Any) -> bool:
    """Have the head of a model compute in float32; False where it has no linear head without a bias."""
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        return False
    head.float()
    head.__class__ = ExactHead
    return True


def is_reward_model(model_config: Any) -> bool:
    """Whether a configuration is that of a model with one output already."""
    architectures = model_config.architectures or ()
    return model_config.num_labels == 1 and any(name.endswith("SequenceClassification") for name in architectures)


def task_of(adapter: Path) -> str | None:
    """The task of PEFT's that an adapter says it was trained for, such as `SEQ_CLS`."""
    try:
        task: str | None = json.loads((adapter / ADAPTER_CONFIG).read_bytes())["task_type"]
    except (ValueError, KeyError):
        return None
    return task


def _outputs(kind: Any) -> dict[str, int]:
    """How many outputs a model has that is loaded as transformers' class `kind`, where that is to be said."""
    return {"num_labels": 1} if kind is AutoModelForSequenceClassification else {}


def with_adapter(model: Any, adapter: Path, *, trainable: bool = False) -> Any:
    """Put a LoRA adapter on a model.

    Raises:
        EngineError: it belongs to another base model.
    """
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"the adapter {adapter} does not fit this base model: {first_sentence(error)}; name the one it was trained "
            f"on, {base_of(adapter)}, with --model"
        ) from None


def complete_model(folder: Path, start: Start, kind: Any, *, merge: bool, settings: Mapping[str, Any]) -> None:
    """Make what a trainer saved in `folder` a model that others load.

    The tokenizer stands beside it, and `settings` are added to config.json; the folder of an adapter has one too. With
    `merge` an adapter becomes a whole model, loaded as `kind`.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        shutil.rmtree(folder / "ref", ignore_errors=True)  # TRL's copy of the adapter that training began with
        if merge:
            trust = start.trust_remote_code
            base = kind.from_pretrained(base_of(folder), dtype="auto", trust_remote_code=trust, **_outputs(kind))
            merged = with_adapter(base, folder).merge_and_unload()
            merged.config.get_text_config().pad_token_id = start.tokenizer.pad_token_id
            shutil.rmtree(folder)
            merged.save_pretrained(folder)
        elif not (folder / "config.json").is_file():
            described = start.config.to_dict()
            if kind is AutoModelForSequenceClassification:
                described |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
            described["pad_token_id"] = start.tokenizer.pad_token_id
            type(start.config).from_dict(described).save_pretrained(folder)
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to trust
    start.tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    described = json.loads(file.read_bytes())
    if "use_cache" in described:  # trainers switch it off, and a model that writes without a cache is slow
        described["use_cache"] = getattr(start.config, "use_cache", True)
    file.write_text(json.dumps({**described, **settings}, indent=2) + "\n")


def _loaded(kind: Any, start: Start, config: TrainConfig, dtype: torch.dtype | str, **settings: Any) -> Any:
    if config.attn_implementation is not None:
        settings["attn_implementation"] = config.attn_implementation
    try:
        return kind.from_pretrained(
            start.weights.base,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            **settings,
        )
    except torch.OutOfMemoryError:
        raise EngineError(f"{start.weights.base} does not fit in memory; `--estimate` says what it takes") from None
    except (OSError, ValueError, ImportError) as error:
        raise EngineError(f"the model {start.weights.base} cannot be loaded: {first_sentence(error)}") from None


def lora_config(config: TrainConfig, task: TaskType) -> LoraConfig:
    """The adapter that a configuration asks for."""
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_target_modules) or "all-linear",
        task_type=task,
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
    )


def _max_length(config: TrainConfig, model_config: Any, base: str) -> int:
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if config.max_length is None:
        return MAX_LENGTH if context is None else min(MAX_LENGTH, context)
    if context is not None and config.max_length > context:
        raise ConfigError(
            f"max_length {config.max_length} is more than the context of {base}, which is {context} tokens"
        )
    return config.max_length


def stop_tokens(base: str, tokenizer: Any) -> set[int]:
    """Tokens at which generation stops."""
    stops = {tokenizer.eos_token_id}
    try:
        found = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:  # a model need not have a generation_config.json
        found = None
    stops.update(found if isinstance(found, list) else [found])
    return stops - {None}


def weights_sha256(weights: Weights, model_config: Any) -> str:
    """Hash of all weights that are read from a disk, and of the commit of a hub model."""
    digest = sha256()
    folders = [folder for folder in (Path(weights.base), weights.adapter) if folder is not None and folder.is_dir()]
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as content:
                digest.update(file.name.encode())
                digest.update(file_digest(content, "sha256").digest())
    if len(folders) < 1 + (weights.adapter is not None):
        digest.update(f"{weights.base}@{getattr(model_config, '_commit_hash', None)}".encode())
    return digest.hexdigest()
