"""A vLLM server that writes the policy's responses; see `vllm_config` for how it is started.

At each sync the policy's adapter is saved in a folder that the server can read, loaded by it under a new name, and the
one before is unloaded and removed. A name holds a hash of what is loaded: vLLM keeps the keys and values of prompts it
has read by the adapter's name and path, and would take those of other weights for them (after a restart, say) if a
name came again.

Prompts and responses travel as token ids, so that nothing is lost by encoding a text again.
"""

import hashlib
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import openai
import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from cai.engines.connection import Connection
from cai.engines.servers import Server, Timing, TryError
from cai.engines.wire import CONNECT_SECONDS
from cai.errors import EngineError, RecordError, RunDirError
from cai.stage import WorkItem, run_stage
from cai.train.ppo.actor import POLICY_ADAPTER, ActorCritic
from cai.train.ppo.event_loop import EventLoop
from cai.train.ppo.rollout import padded, read_responses
from cai.train.ppo.vllm_config import ADAPTERS, VllmRolloutConfig
from cai.train.ppo.vllm_wire import complete, load_adapter, read_logprobs, read_nothing, read_tokens, unload_adapter

IN_FLIGHT = 256
"""Requests at a time: as many sequences as vLLM works on at once by default."""
COMPARED = 32
"""Tokens by which server and trainer are compared."""
FARTHEST = 0.2
"""Nats by which log-probabilities of server and trainer may differ, on average. A server that computes in bfloat16 is
0.03 away from a trainer in float32 (SmolLM2-135M)."""
# All that a server might else take from the model's generation_config.json or from its own defaults.
_NEUTRAL: Mapping[str, Any] = {
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "min_tokens": 0,
}

T = TypeVar("T")


class VllmWriter:
    """Writes responses by a server. Its first sync comes before anything is written."""

    def __init__(
        self,
        config: VllmRolloutConfig,
        run: Path,
        *,
        length: int,
        temperature: float,
        stops: frozenset[int],
        longest_prompt: int,
        probe: Sequence[int],
        main: bool = True,
        timing: Timing | None = None,
    ) -> None:
        """Connect to the server.

        Args:
            config: where it is.
            run: directory of the run.
            length: of the longest response, in tokens.
            temperature: of all responses.
            stops: tokens that end a response, and belong to it.
            longest_prompt: its tokens.
            probe: an encoded prompt, by whose continuation server and trainer are compared.
            main: whether this process has the server load adapters. Of several processes one does.
            timing: of retries.

        Raises:
            ConfigError: the address is wrong.
            EngineError: the server cannot be reached, refuses the key, or its context is too short.
        """
        self._length, self._temperature, self._stops = length, temperature, stops
        self._probe, self._main = probe, main
        # What another run puts into the same folder is not touched.
        own = f"{run.name}-{hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]}"
        self._folder = (run / ADAPTERS if config.adapter_dir is None else config.adapter_dir / own).absolute()
        self._adapter: Path | None = None
        self._name: str | None = None
        self._loop = EventLoop()
        try:
            self._connection = Connection(config.engine, [config.base_url], timing)
        except BaseException:
            self._loop.close()
            raise
        try:
            self._check_context(longest_prompt + length)
        except BaseException:
            self.close()
            raise

    def sync(self, actor: ActorCritic, step: int) -> None:
        """From now on, write as the policy is after so many steps. All processes take part.

        Raises:
            RunDirError: the adapter cannot be written.
            EngineError: the server does not load it, or serves another model than is trained.
        """
        loaded = [self._loop.run(self._publish(actor, step)) if self._main else None]
        broadcast_object_list(loaded)
        self._name = loaded[0]
        self._compare(actor, step)

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """Have the server answer encoded prompts, all at a time, and return the token ids of each response.

        Nothing but the temperature shapes the distribution, as in `write_responses`. A response follows from its seed
        as far as the server's kernels do not depend on the batch.

        Raises:
            EngineError: a response could not be had.
            KeyboardInterrupt: interrupted; requests in flight are cancelled.
        """
        assert self._name is not None, "a sync comes first"
        asked = [WorkItem(n, str(n), one) for n, one in enumerate(zip(prompts, seeds, strict=True))]
        found: dict[int, list[int]] = {}

        async def respond(item: WorkItem[tuple[Sequence[int], int]]) -> None:
            prompt, seed = item.of
            body = self._body(prompt, seed) | {"stop_token_ids": sorted(self._stops)}
            found[item.index] = await self._served(partial(complete, body=body), self._read_response)

        def nothing(_: object) -> None:
            """All that comes of an item is in `found`."""

        concurrency = min(IN_FLIGHT, len(asked))
        self._loop.run(run_stage(iter(asked), respond, concurrency=concurrency, on_result=nothing, on_failure=nothing))
        return [found[place] for place in range(len(asked))]

    def close(self) -> None:
        """Have the server forget the adapter, if it still answers, and remove the adapter's folder."""
        try:
            self._loop.run(self._leave())
        finally:
            self._loop.close()
            if self._main:
                shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _server(self) -> Server:
        return self._connection.servers[0]

    def _check_context(self, needed: int) -> None:
        """Check that the longest prompt and its response fit the server's context."""
        listed = self._loop.run(self._connection.models(self._server))
        if not listed:
            raise EngineError(f"{self._server.url} lists no models; does base_url end in /v1?")
        for entry in listed:
            if entry.max_model_len is not None and entry.max_model_len < needed:
                raise EngineError(
                    f"the longest prompt and its response are {needed} tokens, and {self._server.url} reads "
                    f"{entry.max_model_len}; start it with --max-model-len {needed} or more, or lower max_length"
                )

    async def _publish(self, actor: ActorCritic, step: int) -> str:
        """Have the server load the policy's adapter in place of the one before; returns its name."""
        if self._adapter is None:
            await self._remove_leftovers()
        adapter = self._save(actor, step)
        if adapter != self._adapter:
            rank = actor.policy.peft_config[POLICY_ADAPTER].r
            await self._served(partial(load_adapter, adapter=adapter, rank=rank), read_nothing)
            before, self._adapter = self._adapter, adapter
            if before is not None:
                await self._unload(before.name)
                shutil.rmtree(before, ignore_errors=True)
        return adapter.name

    def _save(self, actor: ActorCritic, step: int) -> Path:
        """Write the policy's adapter, whole or not at all; returns its folder."""
        unnamed = self._folder / ".partial"
        try:
            shutil.rmtree(unnamed, ignore_errors=True)
            actor.policy.save_pretrained(unnamed, selected_adapters=[POLICY_ADAPTER])
            digest = hashlib.sha256(str(self._folder).encode())
            for file in sorted([*unnamed.glob("*.json"), *unnamed.glob("*.safetensors")]):
                digest.update(file.read_bytes())
            adapter = self._folder / f"policy-{step}-{digest.hexdigest()[:12]}"
            if adapter != self._adapter:
                unnamed.rename(adapter)
        except (OSError, SafetensorError) as error:
            raise RunDirError(f"the policy's adapter cannot be written to {self._folder}: {error}") from None
        return adapter

    async def _remove_leftovers(self) -> None:
        """Have the server forget what a run that was killed left, and remove its folder."""
        for entry in await self._connection.models(self._server):
            if entry.parent is not None and entry.root is not None and Path(entry.root).parent == self._folder:
                await self._unload(entry.id)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _leave(self) -> None:
        if self._adapter is not None:
            with suppress(openai.OpenAIError):
                await unload_adapter(self._server, self._adapter.name, timeout=CONNECT_SECONDS)
        await self._connection.aclose()

    def _compare(self, actor: ActorCritic, seed: int) -> None:
        """Check that server and trainer find the same tokens as likely: those of a continuation by the server.

        It shows at the beginning whether both have the same base, and later on whether the server applies the adapter
        as it is meant, which at first does nothing.
        """
        asked = {"max_tokens": min(COMPARED, self._length), "temperature": 1, "logprobs": 0}
        body = self._body(self._probe, seed) | asked
        tokens, logprobs = self._loop.run(self._served(partial(complete, body=body), read_logprobs))
        texts = padded([self._probe], [tokens], pad=0, device=next(actor.parameters()).device)
        own = read_responses(actor, "policy", texts, temperature=1.0, batch_size=1)[0][0].cpu()
        distance = float((own - torch.tensor(logprobs)).abs().mean())
        if not distance <= FARTHEST:  # NaN is too far as well
            base = actor.policy.peft_config[POLICY_ADAPTER].base_model_name_or_path
            raise EngineError(
                f"{self._server.url} gives tokens of the policy other probabilities than they have here (by "
                f"{distance:.2g} nats on average): it must serve the model that is trained, {base}, in no fewer bits "
                "than bfloat16"
            )

    def _body(self, prompt: Sequence[int], seed: int) -> dict[str, Any]:
        """A request of one continuation that ends at no token; all that shapes the distribution is said."""
        return {
            "model": self._name,
            "prompt": list(prompt),
            "max_tokens": self._length,
            "temperature": self._temperature,
            **_NEUTRAL,
            "seed": seed,
            "ignore_eos": True,  # the stop tokens alone end a response, whatever else the server takes for an end
            "return_token_ids": True,
        }

    def _read_response(self, server: Server, content: bytes) -> list[int]:
        """Token ids of a response that ended at its first stop token, or is as long as responses may be."""
        tokens, reason = read_tokens(server, content)
        if reason not in ("stop", "length"):
            raise TryError(server, "malformed_response", f"ended a response for the unknown reason {reason}")
        if not self._stops.isdisjoint(tokens[:-1]):
            raise TryError(server, "malformed_response", "went on after the end of a response")
        ended = tokens[-1] in self._stops
        if not ended and reason == "stop":
            raise EngineError(
                f"{server.url} ended a response at token {tokens[-1]}, which is no end to the policy; start it with "
                "--generation-config vllm"
            )
        if not ended and len(tokens) != self._length:
            raise EngineError(
                f"{server.url} cut a response after {len(tokens)} tokens instead of {self._length}; start it with "
                "a greater --max-model-len and --generation-config vllm"
            )
        return tokens

    async def _unload(self, name: str) -> None:
        await self._served(partial(unload_adapter, name=name), read_nothing)

    async def _served(self, send: Callable[[Server], Awaitable[bytes]], read: Callable[[Server, bytes], T]) -> T:
        """Have the server answer. No single request may fail: a batch without one of its responses is none."""
        try:
            return await self._connection.served(send, read)
        except RecordError as error:
            raise EngineError(str(error)) from None
