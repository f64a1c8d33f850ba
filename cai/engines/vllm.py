"""The vLLM engine: its scheduler and model run in child processes of this one, prompts go to it as token ids.

vLLM and its processes print a lot. All of it goes to a temporary file while the engine starts, and the processes keep
that file for good; when something fails, the cause is read from it. With the environment variable VLLM_LOGGING_LEVEL
set, everything is left on the screen. While the engine starts, output of the rest of this process is swallowed too.
"""

import asyncio
import itertools
import json
import logging
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs, EngineInfo, ReplyLogprob
from cai.engines.chat import ChatFormat
from cai.engines.choices import over_spellings
from cai.engines.options import refuse_options
from cai.engines.weights import ADAPTER_CONFIG, DEFAULT_MODEL, Weights, find_weights
from cai.errors import EngineError, RecordError
from cai.records import FinishReason, Generation, Message, Sampling, Usage

_UNUSED = {
    "batch_size": "use `concurrency`",
    "base_url": "use the engine `openai` for a server",
    "script": "it belongs to the engine `scripted`",
}
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's `max_lora_rank` may take."""
_NO_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}
"""Environment on a CPU. Otherwise a part of the sampler is compiled at the first request for log-probabilities, which
takes a quarter of a minute and ends vLLM where there is no C++ compiler."""
_CAUSE = re.compile(r"^(?:.*\[\S+:\d+\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE)
"""Last line of a traceback, alone or as a line of vLLM's log."""


class VllmEngine:
    """A model that vLLM runs. Made by `open_vllm`."""

    def __init__(self, llm: Any, chat: ChatFormat, info: EngineInfo, log: "_Log") -> None:
        self._llm = llm
        self._chat = chat
        self._info = info
        self._log = log
        self._lora: Any = None
        self._numbers = itertools.count()

    @property
    def info(self) -> EngineInfo:
        """Provenance and capacity."""
        return self._info

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        """Sample one reply; see `Engine.generate`."""
        output = await self._output(self._chat.encode(messages, sampling.max_tokens), self._parameters(sampling))
        reply = output.outputs[0]
        finish: FinishReason = "stop" if reply.finish_reason == "stop" else "length"
        return Generation(text=reply.text, finish_reason=finish, usage=_usage(output))

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        """Read the choices' own tokens, however unlikely they are; see `Engine.choice_logprobs`.

        vLLM writes one token beside it, which is thrown away. It computes logits in the model's own type: in bfloat16
        they come in coarse steps, so that two choices may tie where the engine `transformers`, which computes them in
        float32, sees a difference. `dtype: float32` tells them apart.
        """
        tokens = self._chat.choice_tokens(choices)
        ids = [token for spellings in tokens for token in spellings]
        output = await self._output(self._chat.encode(messages, 1, prefill), _scoring(logprob_token_ids=ids))
        (found,) = output.outputs[0].logprobs
        logprobs, off_mass = over_spellings([[found[token].logprob for token in spellings] for spellings in tokens])
        return ChoiceLogprobs(logprobs=logprobs, off_mass=off_mass, usage=_usage(output))

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:
        """Read the reply's own tokens; see `Engine.reply_logprob`.

        vLLM writes one token beside it, which is thrown away, and reads the whole prompt anew: its prefix cache keeps
        no logits. As with choices, the model's type decides how fine they are.
        """
        ids, begin = self._chat.encode_reply(messages, reply)
        output = await self._output(ids, _scoring(prompt_logprobs=0))
        rows = zip(ids[begin:], output.prompt_logprobs[begin:], strict=True)
        return ReplyLogprob(
            logprob=math.fsum(row[token].logprob for token, row in rows),
            tokens=len(ids) - begin,
            usage=_usage(output),
        )

    async def aclose(self) -> None:
        """End vLLM's processes. Calls in flight are abandoned."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
            self._log.close()

    async def use_adapter(self, adapter: Path) -> None:
        """Load a LoRA adapter, with which all replies are then sampled.

        Raises:
            EngineError: it does not fit the model, or vLLM does not know its kind.
        """
        from vllm.lora.request import LoRARequest

        self._lora = LoRARequest("adapter", 1, str(adapter.resolve()))
        try:
            await self._llm.add_lora(self._lora)
        except Exception as error:  # vLLM passes on whatever its process met as a bare Exception
            raise EngineError(f"vLLM cannot use the adapter {adapter}: {_line(error)}") from None

    async def _output(self, ids: list[int], parameters: Any) -> Any:
        """vLLM's finished output for a prompt."""
        import vllm.exceptions
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._llm is None:
            raise EngineError("the engine is closed")
        # Older versions of vLLM raise ValueError.
        refused = (ValueError, getattr(vllm.exceptions, "VLLMClientError", ValueError))
        prompt, name = TokensPrompt(prompt_token_ids=ids), f"cai-{next(self._numbers)}"
        output = None
        try:
            async for output in self._llm.generate(prompt, parameters, name, lora_request=self._lora):  # noqa: B007
                pass  # the last output is the whole reply
        except EngineDeadError:
            raise EngineError(f"vLLM has stopped{self._log.cause()}; run the same command again to go on") from None
        except EngineGenerateError as error:
            raise RecordError("server_error", f"vLLM failed on this request: {error.__cause__ or error}") from None
        except refused as error:
            raise RecordError("request_refused", f"vLLM refuses this request: {error}") from None
        if output is None or output.outputs[0].finish_reason not in ("stop", "length"):
            raise EngineError("vLLM was stopped before it finished a request")
        return output

    def _parameters(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(self._chat.stop_strings(sampling)),
            # On a CPU a seeded request whose prompt is read in several pieces kills vLLM: it winds the seed's
            # generator back, which PyTorch's CPU generator cannot.
            seed=sampling.seed if self._info.seeded else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _scoring(**asked: Any) -> Any:
    """Parameters of a request that is about log-probabilities: one token is written, as vLLM wants it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **asked
        )
    except TypeError:
        raise EngineError(
            "this version of vLLM cannot give the log-probabilities of chosen tokens; pip install --upgrade vllm"
        ) from None


def _usage(output: Any) -> Usage:
    return Usage(
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        completion_tokens=len(output.outputs[0].token_ids),
    )


async def open_vllm(config: EngineConfig) -> VllmEngine:
    """Start vLLM on the model of `config`.

    Raises:
        ConfigError: an option has no effect with this engine.
        EngineError: vLLM is not installed, or cannot run this model or adapter here.
    """
    refuse_options(config, _UNUSED)
    weights = await asyncio.to_thread(find_weights, config.model, config.adapter)
    log = _Log()
    try:
        engine = await asyncio.to_thread(_start, config, weights, log)
    except BaseException:
        log.close()
        raise
    try:
        if weights.adapter is not None:
            await engine.use_adapter(weights.adapter)
    except BaseException:
        await engine.aclose()
        raise
    return engine


def _start(config: EngineConfig, weights: Weights, log: "_Log") -> VllmEngine:
    """Load the model in vLLM's processes; takes from seconds to minutes."""
    model = weights.base
    lora = _lora_options(weights.adapter) if weights.adapter is not None else {}
    verbose = "VLLM_LOGGING_LEVEL" in os.environ
    with nullcontext() if verbose else log.capture(), _environment(_variables(config)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torch
            import vllm
            from transformers import AutoTokenizer
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise EngineError(
                f"vLLM cannot be imported ({_line(error)}); install it: pip install 'constitutional-ai[vllm]'"
            ) from None
        from cai.engines.transformers import choose_dtype

        kind = current_platform.device_type
        if not kind or config.device.partition(":")[0] not in ("auto", kind):
            raise EngineError(f"device {config.device} cannot be used: vLLM runs on {kind or 'no device'} here")
        dtype = choose_dtype(config.dtype, torch.device(kind))
        try:
            tokenizer = AutoTokenizer.from_pretrained(weights.tokenizer, trust_remote_code=config.trust_remote_code)
            settings = AsyncEngineArgs(
                model=model,
                dtype=dtype,
                max_model_len=config.max_model_len,
                trust_remote_code=config.trust_remote_code,
                enable_prefix_caching=True,
                # Compilation on a CPU takes minutes and a C++ compiler.
                enforce_eager=kind == "cpu",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **lora,
            ).create_engine_config()
            chat = ChatFormat(tokenizer, config.format, settings.model_config.max_model_len)
            info = EngineInfo(
                engine="vllm",
                model=config.model or DEFAULT_MODEL,
                details={
                    "vllm": vllm.__version__,
                    "torch": torch.__version__,
                    "device": kind if config.device == "auto" else config.device,
                    "dtype": str(dtype).removeprefix("torch."),
                    "format": chat.format,
                    "adapter": str(config.adapter or ""),
                },
                concurrency=config.concurrency or settings.scheduler_config.max_num_seqs,
                seeded=kind == "cuda",
                choice_logprobs=True,
                reply_logprob=True,
            )
            # No local variable for vLLM's object: failed imports below keep this frame alive, and it would then be
            # destroyed when the interpreter ends, with a complaint.
            with _environment(_NO_COMPILER if kind == "cpu" else {}):
                engine = VllmEngine(AsyncLLM.from_vllm_config(settings, disable_log_stats=True), chat, info, log)
        except (OSError, RuntimeError, ValueError) as error:
            raise EngineError(f"vLLM cannot run {model}{log.cause() or ': ' + _line(error)}") from None
    if not verbose:
        # Starting has set the level; what vLLM says in this process later on comes as an EngineError too.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
    return engine


def _variables(config: EngineConfig) -> Mapping[str, str]:
    """Environment variables that vLLM's processes start with, where the user has not set them."""
    known = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        # GiB. Otherwise vLLM asks for nearly all of the memory of a machine without a GPU.
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    known = {name: value for name, value in known.items() if name not in os.environ}
    if config.device.startswith("cuda:"):
        known["CUDA_VISIBLE_DEVICES"] = visible_devices(config.device, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return known


def visible_devices(device: str, visible: str) -> str:
    """CUDA_VISIBLE_DEVICES for `cuda:N`, which counts within what the user made visible."""
    number = device.removeprefix("cuda:")
    devices = [name for name in visible.split(",") if name]
    if not number.isdigit() or (devices and int(number) >= len(devices)):
        raise EngineError(f"there is no device {device}" + (f" in CUDA_VISIBLE_DEVICES={visible}" if devices else ""))
    return devices[int(number)] if devices else number


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _lora_options(adapter: Path) -> dict[str, Any]:
    """Engine arguments for an adapter in PEFT's format."""
    file = adapter / ADAPTER_CONFIG
    try:
        described = json.loads(file.read_bytes())
        rank = max(int(described["r"]), *map(int, (described.get("rank_pattern") or {}).values()), 0)
    except (KeyError, TypeError, ValueError):
        raise EngineError(f"{file} does not give the rank `r` of a LoRA adapter") from None
    limit = next((limit for limit in _LORA_RANKS if limit >= rank), None)
    if limit is None:
        raise EngineError(f"the adapter {adapter} has rank {rank}; vLLM takes at most {_LORA_RANKS[-1]}")
    return {"enable_lora": True, "max_lora_rank": limit}


class _Log:
    """What vLLM and its processes print: kept off the screen, read when something fails."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as vLLM's processes write to it

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Send this process's output, and for good that of processes started meanwhile, to the file."""
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved:
                os.dup2(self._file.fileno(), stream)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in saved:
                os.dup2(copy, stream)
                os.close(copy)

    def cause(self) -> str:
        """`: ` and the first error that was printed, which the others follow from; empty where there is none."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), size, 0).decode(errors="replace")
        found = _CAUSE.search(text)
        return f": {_line(found[1])}" if found else ""

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:299] + "…"
