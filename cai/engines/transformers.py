"""The engine on Hugging Face transformers, in this process: requests that wait together are answered together.

Micro-batches: while one batch is generated in a worker thread, new requests gather; the next batch takes the oldest
of them and those that fit it best (a common beginning, then a similar length, so that little is padding). The common
prefix of a batch, such as the worked examples before every critique, is read once and its key–value cache kept
for the batches that follow. Requests for log-probabilities wait beside them and take turns with them (`scoring`).

Sampling is ours, by inverse transform with one uniform number a token from the request's own seed, so that a reply
depends on its request and not on what else was in the batch (up to floating-point differences).
"""

import asyncio
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

# Before torch is loaded: threads that spin while they wait make generation several times slower as soon as anything
# else runs on the machine (measured in docs/lab-notes.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs, EngineInfo, ReplyLogprob
from cai.engines.chat import ChatFormat, common_length
from cai.engines.decoding import CPU_ATTENTION, RowSampler, RowStop, has_plain_cache, roomy_cache
from cai.engines.options import refuse_options
from cai.engines.scoring import Read, Scorer, Scores, ScoringRequest
from cai.engines.weights import DEFAULT_MODEL, find_weights
from cai.errors import EngineError
from cai.records import FinishReason, Generation, Message, Sampling, Usage

MIN_PREFIX = 64
"""Tokens from which a common prefix is worth a cache of its own."""
KEPT_PREFIXES = 4


@dataclass(eq=False)
class _Request:
    ids: list[int]
    sampling: Sampling
    stop: tuple[str, ...]
    reply: "asyncio.Future[Generation]"
    rng: random.Random = field(init=False)
    family: tuple[int, ...] = field(init=False)
    """The first tokens; requests that share them can share a cached prefix."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.sampling.seed)
        self.family = tuple(self.ids[:MIN_PREFIX])


_AnyRequest = TypeVar("_AnyRequest", _Request, ScoringRequest)


class TransformersEngine:
    """A causal language model in this process; see the module's docstring."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        chat: ChatFormat,
        info: EngineInfo,
        batch_size: int,
        share_prefixes: bool = True,
    ) -> None:
        """Take a loaded model; callers use `open_transformers`."""
        self._model = model
        self._tokenizer = tokenizer
        self._chat = chat
        self._info = info
        self._batch_size = batch_size
        self._eos = _eos_ids(model, tokenizer)
        self._pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._eos, default=0)
        self._scorer = Scorer(model, share_prefixes=share_prefixes)
        self._waiting: deque[_Request] = deque()
        self._scoring: deque[ScoringRequest] = deque()
        self._wake = asyncio.Event()
        self._stop = threading.Event()
        self._prefixes: deque[tuple[list[int], DynamicCache]] = deque(maxlen=KEPT_PREFIXES)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cai-generate")
        self._loop_task = asyncio.ensure_future(self._serve())
        model.generation_config = GenerationConfig(pad_token_id=self._pad, eos_token_id=sorted(self._eos))

    @property
    def info(self) -> EngineInfo:
        """Provenance and capacity."""
        return self._info

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        """Sample one reply; see `Engine.generate`."""
        self._check_open()
        ids = self._chat.encode(messages, sampling.max_tokens)
        reply: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(ids, sampling, self._chat.stop_strings(sampling), reply))
        self._wake.set()
        return await reply

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        """Read how likely each choice is; see `Engine.choice_logprobs`."""
        self._check_open()
        ids = self._chat.encode(messages, 0, prefill)
        spellings = self._chat.choice_tokens(choices)
        scores = await self._score(ids, [(len(ids) - 1, tuple(chain(*spellings)))])
        return scores.of_choices(spellings)

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:
        """Read how likely a reply is; see `Engine.reply_logprob`."""
        self._check_open()
        ids, begin = self._chat.encode_reply(messages, reply)
        scores = await self._score(ids, [(place - 1, (ids[place],)) for place in range(begin, len(ids))])
        return scores.of_reply()

    def _check_open(self) -> None:
        if self._loop_task.done():
            raise EngineError("the engine is closed")

    async def _score(self, ids: list[int], reads: Sequence[Read]) -> Scores:
        reply: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._scoring.append(ScoringRequest(ids, reads, reply))
        self._wake.set()
        return await reply

    async def aclose(self) -> None:
        """Stop at the next token and free the model."""
        self._stop.set()
        self._loop_task.cancel()
        await asyncio.gather(self._loop_task, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown, wait=True)
        self._prefixes.clear()
        self._scorer.close()
        self._model = None

    async def _serve(self) -> None:
        """Answer what is waiting, a batch of generations and a pack of scorings in turn, until cancelled."""
        batch: list[_Request] = []
        pack: list[ScoringRequest] = []
        try:
            while True:
                await self._wake.wait()
                # Two turns of the event loop: chains whose step has just ended put their next request in the queue.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                batch = self._take()
                if batch:
                    await self._answer(batch, self._run, self._shrink)
                pack = self._take_pack()
                if pack:
                    await self._answer(pack, self._scorer.run, self._shrink_pack)
                if not batch and not pack:
                    self._wake.clear()
        finally:
            _fail([*batch, *self._waiting, *pack, *self._scoring], EngineError("the engine was closed"))

    async def _answer(
        self,
        batch: list[_AnyRequest],
        run: Callable[[list[_AnyRequest]], Sequence[Any]],
        shrink: Callable[[list[_AnyRequest]], None],
    ) -> None:
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self._pool, run, batch)
        except torch.OutOfMemoryError:
            shrink(batch)
        except RuntimeError as error:
            _fail(batch, EngineError(f"the model failed while running: {str(error).splitlines()[0]}"))
        except Exception as error:  # handed on: whoever waits for a reply must not wait for ever
            _fail(batch, error)
        else:
            for request, answer in zip(batch, replies, strict=True):
                if not request.reply.done():
                    request.reply.set_result(answer)

    def _take(self) -> list[_Request]:
        """The oldest request, and those that go with it best.

        Requests with a common beginning stay among themselves, even in a smaller batch: one row without it would have
        the beginning read anew for every row.
        """
        live = [request for request in self._waiting if not request.reply.done()]
        if not live:
            self._waiting.clear()
            return []
        first = live[0]
        families = Counter(request.family for request in live)
        shares = families[first.family] > 1
        fitting = [
            request
            for request in live[1:]
            if (request.family == first.family if shares else families[request.family] == 1)
        ]
        fitting.sort(key=lambda request: abs(len(request.ids) - len(first.ids)))
        batch = [first, *fitting[: self._batch_size - 1]]
        taken = set(map(id, batch))
        self._waiting = deque(request for request in live if id(request) not in taken)
        return batch

    def _shrink(self, batch: list[_Request]) -> None:
        """After running out of memory: try again in halves."""
        self._prefixes.clear()
        if len(batch) == 1:
            tokens = len(batch[0].ids) + batch[0].sampling.max_tokens
            _fail(batch, EngineError(f"out of memory with a single request of {tokens:,} tokens; lower max_tokens"))
            return
        self._batch_size = len(batch) // 2
        self._waiting.extendleft(reversed(batch))

    def _take_pack(self) -> list[ScoringRequest]:
        live = [request for request in self._scoring if not request.reply.done()]
        pack = self._scorer.take(live) if live else []
        taken = set(map(id, pack))
        self._scoring = deque(request for request in live if id(request) not in taken)
        return pack

    def _shrink_pack(self, pack: list[ScoringRequest]) -> None:
        try:
            self._scorer.shrink(pack)
        except EngineError as error:
            _fail(pack, error)
        else:
            self._scoring.extendleft(reversed(pack))

    @torch.inference_mode()
    def _run(self, batch: list[_Request]) -> list[Generation]:
        """Generate for one batch, in the worker thread."""
        samplings = [request.sampling for request in batch]
        limit = max(sampling.max_tokens for sampling in samplings)
        width = max(len(request.ids) for request in batch)
        prefix, cache = self._prefix(batch, width + limit)
        rows, mask = [], []
        for request in batch:
            pad = width - len(request.ids)
            rows.append([*request.ids[:prefix], *[self._pad] * pad, *request.ids[prefix:]])
            mask.append([1] * prefix + [0] * pad + [1] * (len(request.ids) - prefix))
        device = self._model.device
        stop = RowStop(
            [sampling.max_tokens for sampling in samplings],
            [request.stop for request in batch],
            width=width,
            eos=self._eos,
            tokenizer=self._tokenizer,
            closing=self._stop,
        )
        sampler = RowSampler(samplings, [request.rng for request in batch], device)
        output = self._model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            past_key_values=cache,
            max_new_tokens=limit,
            do_sample=False,
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([stop]),
        )
        if self._stop.is_set():
            raise EngineError("the engine was closed")
        return [
            self._reply(request, row, prefix) for request, row in zip(batch, output[:, width:].tolist(), strict=True)
        ]

    def _reply(self, request: _Request, tokens: list[int], cached: int) -> Generation:
        end = next((place for place, token in enumerate(tokens) if token in self._eos), None)
        while end is None and tokens and tokens[-1] == self._pad:  # it stopped before others of its batch
            tokens.pop()
        limit = request.sampling.max_tokens
        finish: FinishReason = "stop" if end is not None and end < limit else "length"
        kept = tokens[: min(limit, len(tokens) if end is None else end)]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        count = len(kept) + (finish == "stop")
        cut = min((place for mark in request.stop if (place := text.find(mark)) >= 0), default=None)
        if cut is not None:
            text, finish = text[:cut], "stop"
        usage = Usage(prompt_tokens=len(request.ids), cached_tokens=cached, completion_tokens=count)
        return Generation(text=text, finish_reason=finish, usage=usage)

    def _prefix(self, batch: list[_Request], capacity: int) -> tuple[int, DynamicCache]:
        """Length of the prefix that all rows share, and a cache for `capacity` tokens a row that starts with it."""
        first = batch[0].ids
        shared = min(common_length(first, request.ids) for request in batch)
        shared = min(shared, min(len(request.ids) for request in batch) - 1)  # at least one token is left to read
        known = [entry for entry in self._prefixes if len(entry[0]) <= shared and first[: len(entry[0])] == entry[0]]
        best = max(known, key=lambda entry: len(entry[0]), default=None)
        length = len(best[0]) if best else 0
        if len(batch) > 1 and shared - length >= MIN_PREFIX and has_plain_cache(self._model.config):
            cache = roomy_cache(self._model.config, shared)
            ids = torch.tensor([first[:shared]], device=self._model.device)
            self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            best = (first[:shared], cache)
            self._prefixes.append(best)
        if best is None:
            return 0, roomy_cache(self._model.config, capacity)
        return len(best[0]), roomy_cache(self._model.config, capacity, best[1], len(batch))


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    declared = model.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _fail(batch: Sequence[_Request | ScoringRequest], error: Exception) -> None:
    for request in batch:
        if not request.reply.done():
            request.reply.set_exception(error)


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means here.

    Raises:
        EngineError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` means bfloat16 on an accelerator or a CPU with bfloat16 arithmetic, float32 elsewhere."""
    if name != "auto":
        chosen = getattr(torch, name)
        assert isinstance(chosen, torch.dtype)
        return chosen
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16


async def open_transformers(config: EngineConfig, *, share_prefixes: bool = True) -> TransformersEngine:
    """Load the model of `config`. Without `share_prefixes` each scored request is computed by itself (benchmarks).

    Raises:
        EngineError: there is no such model or device, or it does not fit.
        ConfigError: an option of another engine was given.
    """
    refuse_options(config, {"base_url": "it is for the engine `openai`", "script": "it is for the engine `scripted`"})
    model, tokenizer = await asyncio.to_thread(_load, config)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None and config.max_model_len is None:
        raise EngineError("the model's config does not say its context length; give --max-model-len")
    max_len = min(filter(None, (config.max_model_len, context)))
    batch_size = config.batch_size or (16 if model.device.type == "cpu" else 64)
    info = EngineInfo(
        engine="transformers",
        model=config.model or DEFAULT_MODEL,
        details={
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "adapter": str(config.adapter or ""),
        },
        concurrency=2 * batch_size,
        seeded=True,
        choice_logprobs=True,
        reply_logprob=True,
    )
    chat = ChatFormat(tokenizer, config.format, max_len)
    return TransformersEngine(model, tokenizer, chat, info, batch_size, share_prefixes)


def _load(config: EngineConfig) -> tuple[Any, Any]:
    """Model in evaluation mode and tokenizer."""
    weights = find_weights(config.model, config.adapter)
    name = weights.base
    device = choose_device(config.device)
    trust = config.trust_remote_code
    transformers.utils.logging.set_verbosity_error()
    if Path(name).is_dir():  # a download keeps its progress bar
        transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights.tokenizer, trust_remote_code=trust)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=choose_dtype(config.dtype, device), use_safetensors=True, trust_remote_code=trust
        )
        if weights.adapter is not None:
            model = _with_adapter(model, weights.adapter)
        if device.type == "cpu" and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(CPU_ATTENTION)
        return model.to(device).eval(), tokenizer
    except torch.OutOfMemoryError:
        raise EngineError(f"{name} does not fit in the memory of {device}; choose a smaller model or dtype") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise EngineError(f"the model {name} cannot be loaded: {first_sentence(error)}") from None


def _with_adapter(model: Any, adapter: Path) -> Any:
    """The model with a LoRA adapter merged into its weights."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise EngineError(f"the adapter {adapter} does not fit this model: {first_sentence(error)}") from None


def first_sentence(error: Exception) -> str:
    """The message of a library's error on one line, cut where it is long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "…"
