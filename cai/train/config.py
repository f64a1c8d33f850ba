"""Configurations of training: the arguments keep the names that they have in TRL and transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cai.config import Positive, Share, StrictModel
from cai.data.demonstration_source import DemonstrationSource
from cai.data.preference_source import PreferenceSource

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


Kind = Literal["sft", "reward", "dpo"]
Loss = Literal[
    "soft",
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
]
"""Ours on soft labels, and TRL's by name."""
MAX_LENGTH = 1024


class TrainConfig(StrictModel):
    """What all trainings have."""

    model: str | None = None
    """The model to start from: a directory, a hub id, or the directory of an earlier `cai train` run. Default:
    SmolLM2-135M-Instruct."""
    adapter: Path | None = None
    """LoRA adapter of that model to start from."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you trust."""
    chat_template: str | None = None
    """`chatml`, `transcript` or a Jinja file, for a model without a chat template or in place of its own; it is saved
    with the trained model."""
    seed: int = 0
    """Fixes the order of the rows, the new weights and every draw."""

    use_peft: bool = False
    """Train a LoRA adapter (Hu et al. 2021) and leave the other weights as they are. A start that is an adapter is
    trained on."""
    lora_r: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Fraction = 0.0
    lora_target_modules: tuple[str, ...] = ()
    """Names of the layers that are adapted. Default: all linear layers but the output layer."""
    merge_adapter: bool = False
    """Write the trained model whole, with the adapter merged into it."""

    learning_rate: Rate
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Rate = 0.0
    """Steps of warm-up; below 1: that share of all steps."""
    per_device_train_batch_size: Positive = 8
    weight_decay: Rate = 0.0
    max_grad_norm: Rate = 1.0
    """Norm to which gradients are cut; 0 leaves them as they are."""
    max_length: Positive | None = None
    """Longest conversation in tokens. Default: 1024, or the model's context where that is shorter. Of a longer
    conversation the oldest turns of the prompt are left out; where the last turn and the response alone are longer, the
    row is. Both are counted; a response is never cut."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    bf16: bool | None = None
    """Mixed precision. Default: where the hardware computes in bfloat16."""
    attn_implementation: str | None = None
    """Attention of transformers, such as `flash_attention_2`. Default: transformers' own choice."""
    use_cpu: bool = False
    """Train on the CPU even where there is a GPU."""

    save_steps: Positive = 200
    """Steps between two checkpoints, from which a killed run goes on; the last step has one too."""
    save_total_limit: Positive = 2
    """Checkpoints that are kept, the best one beside them."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers that metrics are sent to: `tensorboard`, `wandb`, … `none` for none. They are in metrics.jsonl too."""

    IDLE_KEYS: ClassVar[frozenset[str]] = frozenset({"save_steps", "save_total_limit", "report_to"})


class TrlConfig(TrainConfig):
    """What the trainings over TRL's trainers have."""

    test_share: Share = 0.05
    """Share of the prompts that are held out, of data that has no test split of its own."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Stop after so many steps, whatever `num_train_epochs` says."""
    per_device_eval_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    group_by_length: bool = True
    """Put rows of like length into one batch, which saves padding."""
    logging_steps: Positive = 10
    eval_steps: Positive | None = None
    """Steps between two evaluations on the held-out rows. Default: at the end of each epoch."""
    load_best_model_at_end: bool = False
    """Keep the weights of the best evaluation instead of the last ones. Each evaluation then has a checkpoint."""
    metric_for_best_model: str = "loss"
    """Metric of the held-out rows that says which is the best; `loss` is the better the lower it is."""
    trainer: Mapping[str, Any] = {}
    """Further arguments of the trainer, by the names that they have in TRL."""

    IDLE_KEYS: ClassVar[frozenset[str]] = TrainConfig.IDLE_KEYS | {"logging_steps"}


class CollapseConfig(StrictModel):
    """The look at the trained model's replies, beside those of its start."""

    prompts: Count = 32
    """Held-out prompts that both answer; 0 leaves the check out."""
    max_tokens: Positive = 128


class SftConfig(TrlConfig):
    """Supervised fine-tuning on conversations (Bai et al. 2022, section 3)."""

    data: tuple[DemonstrationSource, ...] = ()
    """Conversations to learn from."""
    eval_data: tuple[DemonstrationSource, ...] = ()
    """Held-out conversations, in place of those that `test_share` takes."""
    learning_rate: Rate = 2e-5
    assistant_only_loss: bool | None = None
    """Learn from all turns of the assistant (true), or from the last one only (false). Default: from all, where the
    chat template lets them be told apart."""
    packing: bool = False
    """Put several conversations into one row of `max_length` tokens, without attention across them."""
    collapse: CollapseConfig = CollapseConfig()


class RewardConfig(TrlConfig):
    """A reward model from pairs with soft labels (Lee et al. 2023, section 2.2.1)."""

    data: tuple[PreferenceSource, ...] = ()
    """Pairs to learn from."""
    eval_data: tuple[PreferenceSource, ...] = ()
    """Held-out pairs, in place of those that `test_share` takes."""
    learning_rate: Rate = 1e-5
    center_rewards_coefficient: Rate = 0.0
    """Factor of a penalty on the squared sum of a pair's rewards (Eisenstein et al. 2023, equation 2)."""
    ensemble: Positive = 1
    """Reward models to train, with seeds that follow one another."""
    reference: DemonstrationSource | None = None
    """Answers whose mean reward becomes 0. Default: better responses of the training pairs."""


class DpoConfig(TrlConfig):
    """Direct preference optimisation on pairs with soft labels (Rafailov et al. 2023)."""

    data: tuple[PreferenceSource, ...] = ()
    """Pairs to learn from."""
    eval_data: tuple[PreferenceSource, ...] = ()
    """Held-out pairs, in place of those that `test_share` takes."""
    learning_rate: Rate = 1e-6
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the model that training starts from."""
    loss_type: Loss = "soft"
    """`soft`: cross-entropy against the label's probability. TRL's losses take the likelier response as the better one
    and leave exact ties out; `weight` of a source has no effect on them."""
    collapse: CollapseConfig = CollapseConfig()
