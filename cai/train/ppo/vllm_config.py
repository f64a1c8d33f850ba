"""Configuration of a vLLM server that writes the policy's responses."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from cai.config import EngineConfig, StrictModel, holds_password

ADAPTERS = "rollout-adapters"
"""Folder in the run directory through which the server gets adapters, unless the configuration names one."""
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises a lower temperature to the one and refuses a higher one than the other."""


class VllmRolloutConfig(StrictModel):
    """A vLLM server that writes the policy's responses, in place of this process.

    It is started by

        VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK

    with the model that is trained and the rank of the adapter or more. vLLM's CPU build needs
    `--no-enable-chunked-prefill` besides, since it dies of a seeded request whose prompt it reads in pieces.
    """

    base_url: str
    """The server's address, such as http://localhost:8000/v1."""
    adapter_dir: Path | None = None
    """Folder through which the server gets the policy's adapter. Both must see it under the same path. Default: a
    folder below the run directory."""
    api_key_env: str = "VLLM_API_KEY"
    """Environment variable that holds the server's key. The key itself is never stored."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that one request may take."""
    max_retries: Annotated[int, Field(ge=0)] = 5
    """Further tries of a request after 429, 5xx, a timeout or a lost connection."""

    @field_validator("base_url")
    @classmethod
    def _no_password(cls, base_url: str) -> str:
        if holds_password(base_url):
            raise ValueError("holds a user name or password; put the key into the environment variable")
        return base_url

    @property
    def engine(self) -> EngineConfig:
        """The same, as what connections are made by."""
        return EngineConfig(
            engine="openai",
            base_url=(self.base_url,),
            api_key_env=self.api_key_env,
            timeout=self.timeout,
            max_retries=self.max_retries,
        )


def vllm_problems(*, use_peft: bool, temperature: float) -> list[str]:
    """Why a server cannot write the responses of such a training; each a clause for an error message."""
    problems = []
    if not use_peft:
        problems.append(
            "a vLLM server is given the policy as a LoRA adapter, so it cannot write for a training of all weights; "
            "set use_peft, or leave the server out"
        )
    if not LEAST_TEMPERATURE <= temperature <= GREATEST_TEMPERATURE:
        problems.append(
            f"vLLM samples at temperatures from {LEAST_TEMPERATURE:g} to {GREATEST_TEMPERATURE:g} alone, and "
            f"temperature is {temperature:g}"
        )
    return problems
