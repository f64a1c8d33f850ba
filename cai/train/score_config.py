"""Configuration of `cai score`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cai.config import Positive, Share, StrictModel
from cai.train.combination import PENALTY, Combination

STAGE = "score"


class ScoreConfig(StrictModel):
    """Configuration of `cai score`."""

    model: str
    """The reward model: the directory of a `cai train reward` run, of a model with one output or of a LoRA adapter of
    one, or a hub id."""
    responses: str
    """What is scored: the directory of a run of `cai sample`, `cai contrast`, `cai critique-revise` or `cai label`, a
    file (see `data.responses`), the name of a shipped set of comparisons, or `hub:owner/name[@config][:split]`."""
    ensemble_by: Combination = "mean"
    """How the rewards of an ensemble become one: their `mean`, the `worst` of them, or the mean less a penalty on their
    variance (`uncertainty`)."""
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = PENALTY
    """Factor of the variance."""
    limit: Positive | None = None
    """Use only the first rows. A later run in the same directory may raise it and goes on."""
    max_length: Positive | None = None
    """Longest conversation in tokens; a longer one loses its oldest turns, as in training. Default: the model's
    context."""
    max_failure_share: Share = 0.1
    """The command fails when a greater share of the responses could not be scored."""
    batch_size: Positive | None = None
    """Conversations in one forward pass. Default: 16 on a CPU, 64 on a GPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` takes bfloat16 where the hardware computes in it and float32 elsewhere."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you trust."""

    IDLE_KEYS: ClassVar[frozenset[str]] = frozenset({"max_failure_share", "batch_size", "device"})
    FREE_KEYS: ClassVar[frozenset[str]] = frozenset({"model", "responses", "ensemble_by", "penalty", "limit"})
