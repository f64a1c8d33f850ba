"""Reward models on disk or on the hub: found, checked and loaded, one or the members of an ensemble."""

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import load_peft_weights
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cai.engines.chat import ChatFormat
from cai.engines.transformers import choose_device, choose_dtype, first_sentence
from cai.engines.weights import TRAINED, Weights, find_weights
from cai.errors import ConfigError, EngineError
from cai.rundir import read_manifest
from cai.train.encoding import check_padding
from cai.train.models import REWARD_OFFSET, is_reward_model, make_exact, task_of, weights_sha256, with_adapter
from cai.train.reward_model import MEMBER, RewardEnsemble, RewardModel

_ADAPTED = "base_model.model."
"""What PEFT puts before the names of a model's weights."""


@dataclass(frozen=True)
class RewardCheckpoint:
    """Where one reward model lies; it is one, as far as its files say."""

    weights: Weights
    offset: float
    sha256: str
    """Of the weights, or of a hub model's commit."""


@dataclass(frozen=True)
class RewardCheckpoints:
    """Reward models that were found and checked; nothing heavy is loaded yet."""

    name: str
    """As the user named them."""
    members: tuple[RewardCheckpoint, ...]
    chat: ChatFormat
    trust_remote_code: bool

    @property
    def sha256(self) -> str:
        """Hash of all that rewards depend on: weights, offsets, chat template."""
        parts = [f"{member.sha256} {member.offset!r}" for member in self.members]
        return sha256("\n".join([*parts, self.chat.tokenizer.chat_template]).encode()).hexdigest()

    def load(self, *, device: str = "auto", dtype: str = "auto", batch_size: int | None = None) -> RewardEnsemble:
        """Load all members, each with weights of its own. The last layer computes in float32, so that close rewards
        are told apart in bfloat16 too. `batch_size` is 16 on a CPU and 64 on a GPU where none is given.

        Raises:
            EngineError: weights cannot be loaded, do not fit into memory, or do not have a head.
            ConfigError: the token to pad with has no embedding.
        """
        place = choose_device(device)
        precision = choose_dtype(dtype, place)
        members = tuple(
            RewardModel(self._loaded(member.weights, place, precision), member.offset) for member in self.members
        )
        return RewardEnsemble(
            members,
            self.chat,
            batch_size or (16 if place.type == "cpu" else 64),
            {
                "transformers": transformers.__version__,
                "torch": torch.__version__,
                "device": str(place),
                "dtype": str(precision).removeprefix("torch."),
            },
        )

    def _loaded(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> Any:
        name = weights.base if weights.adapter is None else str(weights.adapter)
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                weights.base,
                num_labels=1,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
            )
            missing = set(report["missing_keys"])
            if weights.adapter is not None:
                missing -= {key.removeprefix(_ADAPTED) for key in load_peft_weights(str(weights.adapter), device="cpu")}
            if missing:
                raise EngineError(
                    f"{name} has no trained weights for {', '.join(sorted(missing)[:3])}, so its rewards would be "
                    "random; name a model that was trained as a reward model"
                )
            if weights.adapter is not None:
                model = with_adapter(model, weights.adapter).merge_and_unload()
            pad = int(self.chat.tokenizer.pad_token_id)
            if pad >= model.get_input_embeddings().num_embeddings:
                raise ConfigError(
                    f"{name}: the token to pad with, {self.chat.tokenizer.pad_token}, has no embedding; set "
                    "`pad_token` in tokenizer_config.json to a token of the model's vocabulary that conversations do "
                    "not contain"
                )
            model.config.get_text_config().pad_token_id = pad  # the model reads its output before the first of these
            make_exact(model)
            return model.to(device).eval()
        except torch.OutOfMemoryError:
            raise EngineError(
                f"{name} does not fit in the memory of {device}; choose a smaller model, ensemble or dtype"
            ) from None
        except (OSError, ValueError, ImportError) as error:
            raise EngineError(f"the reward model {name} cannot be loaded: {first_sentence(error)}") from None


def load_reward_models(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> RewardEnsemble:
    """Find and load a reward model or an ensemble; see `find_reward_models` and `RewardCheckpoints.load`."""
    found = find_reward_models(name, max_length=max_length, trust_remote_code=trust_remote_code)
    return found.load(device=device, dtype=dtype, batch_size=batch_size)


def find_reward_models(
    name: str | Path, *, max_length: int | None = None, trust_remote_code: bool = False
) -> RewardCheckpoints:
    """Find a reward model, or an ensemble, and check what its files say of it.

    `name` is the directory of a `cai train reward` run, that of a model with one output or of a LoRA adapter of one, or
    a hub id. Tokenizer and chat template are those of the model (of an ensemble: its first member's). `max_length` is
    in tokens; None: the model's context.

    Raises:
        ConfigError: it is no reward model, or it has no chat template, no token to pad with or no known context.
        EngineError: there is no such model.
    """
    transformers.utils.logging.set_verbosity_error()
    found = [_checkpoint(str(name), weights, trust_remote_code) for weights in _members(Path(name).expanduser(), name)]
    first, model_config = found[0]
    try:
        tokenizer = AutoTokenizer.from_pretrained(first.weights.tokenizer, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise EngineError(f"the tokenizer of {name} cannot be loaded: {first_sentence(error)}") from None
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{name} has no chat template, so it is not known how conversations are written for it; put the one that "
            f"it was trained with into {first.weights.tokenizer} as chat_template.jinja"
        )
    check_padding(tokenizer)
    context: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    lengths = [length for length in (max_length, context) if length is not None]
    if not lengths:
        raise ConfigError(f"the config of {name} does not say its context length; give --max-length")
    if min(lengths) != lengths[0]:
        raise ConfigError(f"max_length {max_length} is more than the context of {name}, which is {context} tokens")
    chat = ChatFormat(tokenizer, "chat", lengths[0])
    return RewardCheckpoints(str(name), tuple(member for member, _ in found), chat, trust_remote_code)


def _members(path: Path, name: str | Path) -> list[Weights]:
    """Where the members lie: those of a run of an ensemble, or the one model of that name."""
    is_run = (path / "manifest.json").is_file()
    number = read_manifest(path).config.get("ensemble", 1) if is_run else 1
    if number == 1:
        return [find_weights(str(name), None)]
    folders = [path / f"{MEMBER}{member}" / TRAINED for member in range(number)]
    for folder in folders:
        if not folder.is_dir():
            raise EngineError(
                f"{path} holds no trained model {folder.relative_to(path)}; run its `cai train` command again"
            )
    return [find_weights(str(folder), None) for folder in folders]


def _checkpoint(name: str, weights: Weights, trust_remote_code: bool) -> tuple[RewardCheckpoint, Any]:
    """A member, and transformers' configuration of it."""
    adapter = weights.adapter
    described = weights.base if adapter is None or not (adapter / "config.json").is_file() else str(adapter)
    if Path(weights.base).is_dir():  # a download keeps its progress bar
        transformers.utils.logging.disable_progress_bar()
    try:
        model_config = AutoConfig.from_pretrained(described, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise EngineError(f"the reward model {name} cannot be loaded: {first_sentence(error)}") from None
    if adapter is not None:
        task = task_of(adapter)
        fault = None if task == "SEQ_CLS" else f"its adapter is for the task {task}, not SEQ_CLS"
        if fault is None and described == str(adapter) and model_config.num_labels != 1:
            fault = f"it has {model_config.num_labels} outputs, not one"
    elif is_reward_model(model_config):
        fault = None
    else:
        kind = ", ".join(model_config.architectures or ["no architecture"])
        fault = (
            f"its config.json names {kind} with {model_config.num_labels} labels, where a reward model has an "
            "architecture …ForSequenceClassification with one label"
        )
    if fault is not None:
        raise ConfigError(f"{name} is no reward model: {fault}; `cai train reward` makes one out of a language model")
    offset = getattr(model_config, REWARD_OFFSET, 0.0)
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise ConfigError(f"{described}/config.json: {REWARD_OFFSET} is {offset!r:.40}; it must be a finite number")
    return RewardCheckpoint(weights, float(offset), weights_sha256(weights, model_config)), model_config
