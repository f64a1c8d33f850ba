"""All that a PPO run goes on from: what is trained, the optimiser's moments, and a few numbers.

No state of a random number generator is kept. Every draw of a step (prompts, responses, mini-batches) has a seed that
follows from the run's seed and the step.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from cai.engines.transformers import first_sentence
from cai.errors import StageError
from cai.records import Record

_WEIGHTS, _OPTIMIZER, _STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
_HERE = StateDictOptions(ignore_frozen_params=True, strict=False)
"""In every process; a whole state is given to the first alone."""


class PpoState(Record):
    """Where a run stands, apart from its weights."""

    step: int = 0
    """Batches that were learned from."""
    kl_coef: float
    learning_rate_factor: float = 1.0
    """What the monitor has multiplied the learning rate by."""
    stopped: bool = False
    """Whether the monitor has ended the training."""


def write_checkpoint(checkpoint: Path, actor: Any, optimizer: Any, state: PpoState, *, main: bool) -> None:
    """Write everything below a folder; all processes take part, the `main` one writes. The caller marks it as whole."""
    found: dict[str, Any] = get_model_state_dict(actor, options=_WHOLE)
    moments: dict[str, Any] = get_optimizer_state_dict(actor, optimizer, options=_WHOLE)
    if not main:  # the others were given nothing
        return
    # Tied weights have several names in a state dict, and a file takes them under one.
    trained = [name for name, parameter in actor.named_parameters() if parameter.requires_grad]
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_file({name: found[name].contiguous() for name in trained}, checkpoint / _WEIGHTS)
    save_file(
        {f"{key}/{name}": tensor for name, values in moments["state"].items() for key, tensor in values.items()},
        checkpoint / _OPTIMIZER,
    )
    (checkpoint / _STATE).write_text(state.model_dump_json() + "\n")


def read_checkpoint(checkpoint: Path, actor: Any, optimizer: Any) -> PpoState:
    """Put weights and moments back, and return the state.

    Raises:
        StageError: a file is damaged.
    """
    try:
        weights: dict[str, Any] = load_file(checkpoint / _WEIGHTS)
        moments = load_file(checkpoint / _OPTIMIZER)
        state = PpoState.model_validate_json((checkpoint / _STATE).read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise StageError(
            f"{checkpoint} is damaged ({first_sentence(error)}); remove it, and the same command goes on from the one "
            "before"
        ) from None
    set_model_state_dict(actor, weights, options=_WHOLE)
    found: dict[str, Any] = {}
    for name, tensor in moments.items():
        key, parameter = name.split("/", 1)
        found.setdefault(parameter, {})[key] = tensor
    groups = get_optimizer_state_dict(actor, optimizer, options=_HERE)["param_groups"]
    set_optimizer_state_dict(actor, optimizer, {"state": found, "param_groups": groups}, options=_WHOLE)
    return state
