"""Responses of the policy by a vLLM server: what it is asked, and what comes of its answers and failures.

The server is a stub; `tests/on_vllm/test_ppo_rollouts.py` asks a real one.
"""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_actor import adapted_actor, redraw
from pydantic import ValidationError
from served import Pauses
from servers import Answer, fault
from vllm_stub import STOP, VllmStub, completion, written

from cai.errors import CaiError, ConfigError, EngineError, RunDirError
from cai.train.ppo import vllm_writer
from cai.train.ppo.vllm_config import ADAPTERS, VllmRolloutConfig, vllm_problems
from cai.train.ppo.vllm_writer import VllmWriter

OTHER_STOP = 4
PROBE = (3, 20, 30, 4)
LENGTH = 6
PROMPTS = [[3, number, 4] for number in range(10, 15)]
SEEDS = [7, 2**32 - 1, 0, 3, 4]


@pytest.fixture(scope="module")
def start(tiny: Path) -> Any:
    return adapted_actor(tiny, std=0.3)


@pytest.fixture
def actor(start: Any) -> Any:
    """The policy with an adapter that does something."""
    redraw(start, 0.3, 0)
    return start


@pytest.fixture
def stub(actor: Any) -> Iterator[VllmStub]:
    with VllmStub(actor) as found:
        yield found


@pytest.fixture
def opened() -> Iterator[list[VllmWriter]]:
    """Writers that are closed in the end."""
    found: list[VllmWriter] = []
    yield found
    for writer in found:
        writer.close()


@pytest.fixture
def open_writer(stub: VllmStub, tmp_path: Path, opened: list[VllmWriter]) -> Callable[..., VllmWriter]:
    """Opens writers on the stub; takes fields of their configuration and arguments of their own."""

    def opens(*, run: Path = tmp_path / "run", **options: Any) -> VllmWriter:
        given = {name: options.pop(name) for name in list(options) if name in VllmRolloutConfig.model_fields}
        config = VllmRolloutConfig(**{"base_url": stub.url, "max_retries": 2, **given})
        usual = {
            "length": LENGTH,
            "temperature": 0.7,
            "stops": frozenset({STOP, OTHER_STOP}),
            "longest_prompt": 10,
            "probe": PROBE,
            "timing": Pauses().timing,
        }
        opened.append(VllmWriter(config, run, **{**usual, **options}))
        return opened[-1]

    return opens


@pytest.fixture
def writer(open_writer: Callable[..., VllmWriter], actor: Any) -> VllmWriter:
    """One that has been synchronised."""
    found = open_writer()
    found.sync(actor, 0)
    return found


def refused(work: Callable[[], object], kind: type[CaiError] = EngineError) -> str:
    with pytest.raises(kind) as caught:
        work()
    return str(caught.value)


# What is asked


def test_a_request_says_all_that_shapes_a_response(writer: VllmWriter, stub: VllmStub) -> None:
    writer.write([[3, 17, 4]], [2**32 - 1])
    (request,) = stub.requests
    assert request.body == {
        "model": next(iter(stub.loaded)),
        "prompt": [3, 17, 4],
        "max_tokens": LENGTH,
        "temperature": 0.7,
        "top_p": 1,
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "min_tokens": 0,
        "seed": 2**32 - 1,
        "ignore_eos": True,
        "stop_token_ids": [STOP, OTHER_STOP],
        "return_token_ids": True,
    }


def test_responses_come_in_the_order_of_their_prompts_each_by_its_own_seed(writer: VllmWriter, stub: VllmStub) -> None:
    assert writer.write(PROMPTS, SEEDS) == [[n, n + 1, STOP] for n in range(10, 15)]
    asked = {tuple(request.body["prompt"]): request.body["seed"] for request in stub.requests}
    assert asked == {tuple(prompt): seed for prompt, seed in zip(PROMPTS, SEEDS, strict=True)}


def test_all_prompts_are_in_flight_at_once(writer: VllmWriter, stub: VllmStub) -> None:
    together = threading.Barrier(len(PROMPTS))  # which breaks unless so many requests are there
    stub.on_completion = lambda: together.wait(timeout=10)
    assert len(writer.write(PROMPTS, SEEDS)) == len(PROMPTS)


def test_but_no_more_than_a_server_works_on(
    writer: VllmWriter, stub: VllmStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_writer, "IN_FLIGHT", 2)
    seen = []
    stub.on_completion = lambda: seen.append(writer._server.in_flight)
    assert len(writer.write(PROMPTS, SEEDS)) == len(PROMPTS)
    assert max(seen) == 2


@pytest.mark.parametrize(
    ("tokens", "finish"),
    [
        ([9, 8, OTHER_STOP], "stop"),
        ([STOP], "stop"),
        ([9] * LENGTH, "length"),
        ([9] * (LENGTH - 1) + [STOP], "stop"),
        ([9] * (LENGTH - 1) + [STOP], "length"),
    ],
)
def test_a_response_ends_with_its_stop_token_or_is_of_full_length(
    writer: VllmWriter, stub: VllmStub, tokens: list[int], finish: str
) -> None:
    stub.plan.append(completion(tokens, finish))
    assert writer.write(PROMPTS[:1], SEEDS[:1]) == [tokens]


# The adapter


def test_the_server_is_given_the_policys_adapter_alone(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any
) -> None:
    open_writer().sync(actor, 0)
    expected = {
        name.replace(".default", ""): weight
        for name, weight in actor.policy.named_parameters()
        if "lora_" in name and ".default" in name
    }
    assert stub.weights[0].keys() == expected.keys()
    assert all(torch.equal(stub.weights[0][name], weight) for name, weight in expected.items())


def test_after_a_sync_responses_come_from_the_new_adapter_and_the_old_one_is_gone(
    writer: VllmWriter, stub: VllmStub, actor: Any, tmp_path: Path
) -> None:
    (first,) = stub.loaded
    redraw(actor, 0.3, 1)
    writer.sync(actor, 1)
    (second,) = stub.loaded
    assert stub.lora == [("load", first), ("load", second), ("unload", first)]
    assert (first.split("-")[1], second.split("-")[1]) == ("0", "1")
    assert [path.name for path in (tmp_path / "run" / ADAPTERS).iterdir()] == [second]
    assert Path(stub.loaded[second]) == tmp_path / "run" / ADAPTERS / second
    writer.write(PROMPTS[:1], SEEDS[:1])
    assert stub.requests[-1].body["model"] == second


def test_other_weights_never_come_under_a_name_that_was_used(writer: VllmWriter, stub: VllmStub, actor: Any) -> None:
    redraw(actor, 0.3, 1)
    writer.sync(actor, 0)  # of the same step: the monitor went back to an earlier policy
    loads = [name for kind, name in stub.lora if kind == "load"]
    assert len(set(loads)) == 2


def test_the_same_weights_are_loaded_once(writer: VllmWriter, stub: VllmStub, actor: Any) -> None:
    writer.sync(actor, 0)
    assert [kind for kind, _ in stub.lora] == ["load"]


def test_the_first_adapter_is_loaded_though_it_does_nothing(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any
) -> None:
    redraw(actor, 0.0, 0)
    open_writer().sync(actor, 0)
    assert [name.split("-")[1] for name in stub.loaded] == ["0"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any, tmp_path: Path
) -> None:
    own = (tmp_path / "run" / ADAPTERS).absolute()
    (own / "policy-7-abc").mkdir(parents=True)
    stub.loaded = {"policy-7-abc": str(own / "policy-7-abc"), "policy-8-abc": "/elsewhere/policy-8-abc"}
    open_writer().sync(actor, 7)
    assert ("unload", "policy-7-abc") in stub.lora
    assert "policy-8-abc" in stub.loaded
    assert not (own / "policy-7-abc").exists()


def test_a_name_that_the_server_still_has_is_loaded_anew(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any
) -> None:
    open_writer().sync(actor, 3)
    ((name, path),) = stub.loaded.items()
    open_writer().sync(actor, 3)  # as if the first had been killed
    assert stub.lora == [("load", name), ("unload", name), ("load", name)]
    assert stub.loaded == {name: path}
    assert Path(path).is_dir()


def test_at_the_end_the_server_forgets_the_adapter_and_its_folder_is_removed(
    writer: VllmWriter, opened: list[VllmWriter], stub: VllmStub, tmp_path: Path
) -> None:
    assert stub.loaded
    opened.remove(writer)
    writer.close()
    assert stub.loaded == {}
    assert not list((tmp_path / "run").iterdir())


def test_a_server_that_is_gone_does_not_keep_a_run_from_ending(
    writer: VllmWriter, opened: list[VllmWriter], stub: VllmStub, tmp_path: Path
) -> None:
    stub.die()
    opened.remove(writer)
    writer.close()
    assert not (tmp_path / "run" / ADAPTERS).exists()


def test_a_folder_for_the_server_may_be_shared_by_runs(
    open_writer: Callable[..., VllmWriter], opened: list[VllmWriter], stub: VllmStub, actor: Any, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    first, second = (open_writer(run=tmp_path / parent / "run", adapter_dir=shared) for parent in ("one", "other"))
    first.sync(actor, 0)
    second.sync(actor, 0)
    assert len(stub.loaded) == 2
    assert all(Path(path).is_dir() and Path(path).parent.parent == shared for path in stub.loaded.values())
    opened.remove(first)
    first.close()
    (left,) = stub.loaded.values()
    assert Path(left).is_dir()


def test_of_several_processes_one_has_adapters_loaded(
    open_writer: Callable[..., VllmWriter],
    opened: list[VllmWriter],
    stub: VllmStub,
    actor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(vllm_writer, "broadcast_object_list", lambda found: sent.append(list(found)))
    first = open_writer()
    first.sync(actor, 0)
    monkeypatch.setattr(vllm_writer, "broadcast_object_list", lambda found: found.__setitem__(0, sent[0][0]))
    other = open_writer(main=False)
    other.sync(actor, 0)
    other.write(PROMPTS[:1], SEEDS[:1])
    (name,) = stub.loaded
    assert sent == [[name]]
    assert stub.requests[0].body["model"] == name
    opened.remove(other)
    other.close()
    assert [kind for kind, _ in stub.lora] == ["load"]
    assert (tmp_path / "run" / ADAPTERS / name).is_dir()


def test_a_folder_that_cannot_be_written_is_named(
    open_writer: Callable[..., VllmWriter], actor: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    writer = open_writer(run=tmp_path / "file")
    said = refused(lambda: writer.sync(actor, 0), RunDirError)
    assert said.startswith(f"the policy's adapter cannot be written to {tmp_path / 'file' / ADAPTERS}: ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            fault(500, "Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. Use ..."),
            "serves no adapters; start it with --enable-lora",
        ),
        (
            fault(500, "Call to add_lora method failed: 'LoRA rank 4 is greater than max_lora_rank 2.'"),
            "serves no adapters of rank 4; start it with --max-lora-rank 4 or more",
        ),
        (
            Answer(404, json.dumps({"detail": "Not Found"})),
            "does not load adapters while it runs; start it with the environment variable "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        ),
        (
            fault(500, "Call to add_lora method failed: 'vLLM does not yet support DoRA.'"),
            "cannot load the policy's adapter: Call to add_lora method failed: 'vLLM does not yet support DoRA.'",
        ),
    ],
)
def test_a_server_that_cannot_load_adapters_is_told_what_to_be_started_with(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any, answer: Answer, said: str
) -> None:
    stub.loads = [answer] * 3
    writer = open_writer()
    assert refused(lambda: writer.sync(actor, 0)) == f"{stub.url} {said}"
    assert len(stub.lora) == 1


def test_a_folder_that_the_server_does_not_see_is_named(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any, tmp_path: Path
) -> None:
    stub.loads = [fault(404, "Loading lora policy-0 failed: No adapter found for /run/policy-0")]
    writer = open_writer()
    said = refused(lambda: writer.sync(actor, 0))
    assert said.startswith(f"{stub.url} does not find {tmp_path / 'run' / ADAPTERS}/policy-0-")
    assert said.endswith("; name a folder by adapter_dir that the server sees under the same path")


def test_a_load_whose_answer_was_lost_counts(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any
) -> None:
    stub.loads = [
        Answer(body="Success" * 99, content_type="text/plain", cut_after=3),
        fault(400, "The lora adapter 'policy-0' has already been loaded. If you want to load it in place, ..."),
    ]
    writer = open_writer()
    writer.sync(actor, 0)
    assert len(stub.lora) == 2
    assert writer.write(PROMPTS[:1], SEEDS[:1]) == [written(PROMPTS[0])]


def test_a_server_that_was_started_again_has_nothing_to_forget(writer: VllmWriter, stub: VllmStub, actor: Any) -> None:
    stub.loaded.clear()
    redraw(actor, 0.3, 1)
    writer.sync(actor, 1)
    assert [kind for kind, _ in stub.lora] == ["load", "load", "unload"]


def test_unloading_is_tried_again_where_that_may_help(writer: VllmWriter, stub: VllmStub, actor: Any) -> None:
    stub.unloads = [fault(502)]
    redraw(actor, 0.3, 1)
    writer.sync(actor, 1)
    assert len(stub.loaded) == 1


def test_loading_is_tried_again_where_that_may_help(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any
) -> None:
    stub.loads = [fault(503), fault(429)]
    open_writer().sync(actor, 0)
    assert len(stub.loaded) == 1


# The same model on both sides


def test_server_and_trainer_are_compared_at_each_sync_by_a_continuation_of_full_length(
    writer: VllmWriter, stub: VllmStub, actor: Any
) -> None:
    (asked,) = stub.compared
    assert (asked["prompt"], asked["max_tokens"], asked["temperature"]) == (list(PROBE), LENGTH, 1)
    assert "stop_token_ids" not in asked
    assert asked["model"] == next(iter(stub.loaded))
    stub.off = 0.5
    redraw(actor, 0.3, 1)
    assert "other probabilities" in refused(lambda: writer.sync(actor, 1))
    assert [body["seed"] for body in stub.compared] == [0, 1]


@pytest.mark.parametrize(
    ("off", "fits"), [(0.19, True), (-0.19, True), (0.21, False), (-0.21, False), (float("nan"), False)]
)
def test_a_server_of_another_model_is_told_by_its_probabilities(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any, tiny: Path, off: float, fits: bool
) -> None:
    stub.off = off
    writer = open_writer()
    if fits:
        writer.sync(actor, 0)
        return
    said = refused(lambda: writer.sync(actor, 0))
    assert f"{stub.url} gives tokens of the policy other probabilities than they have here" in said
    assert f"it must serve the model that is trained, {tiny}" in said


@pytest.mark.parametrize("logprobs", [None, {"token_logprobs": [-1.0]}])
def test_without_all_log_probabilities_nothing_is_compared(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, actor: Any, logprobs: Any
) -> None:
    stub.continuations = [completion([9, 8], logprobs=logprobs)]
    open_writer().sync(actor, 0)
    assert len(stub.compared) == 2
    stub.continuations = [completion([9, 8], logprobs=logprobs)] * 3
    said = refused(lambda: open_writer().sync(actor, 0))
    assert said == f"{stub.url} sent a response without a log-probability for each token (3 tries)"


# A server in trouble


def test_a_busy_server_is_asked_again(writer: VllmWriter, stub: VllmStub) -> None:
    stub.plan.extend([fault(429), fault(500), completion([9] * LENGTH)])
    assert writer.write(PROMPTS[:1], SEEDS[:1]) == [[9] * LENGTH]
    assert [request.body["seed"] for request in stub.requests] == [7] * 3


def test_a_response_that_does_not_come_ends_the_batch(writer: VllmWriter, stub: VllmStub) -> None:
    stub.plan.extend([fault(500, "EngineCore encountered an issue")] * 15)
    said = refused(lambda: writer.write(PROMPTS, SEEDS))
    assert said == f"{stub.url} answered 500: EngineCore encountered an issue (3 tries)"


def test_a_refused_prompt_is_not_sent_again(writer: VllmWriter, stub: VllmStub) -> None:
    stub.plan.append(fault(400, "Token id 999 is out of vocabulary"))
    said = refused(lambda: writer.write(PROMPTS[:1], SEEDS[:1]))
    assert said == f"{stub.url} answered 400: Token id 999 is out of vocabulary"
    assert len(stub.requests) == 1


def test_a_dead_server_is_named(writer: VllmWriter, stub: VllmStub) -> None:
    stub.die()
    said = refused(lambda: writer.write(PROMPTS[:1], SEEDS[:1]))
    assert said == f"no server answers any more at {stub.url}; start it again, then run the same command again"


def test_a_server_that_lost_the_adapter_is_named(writer: VllmWriter, stub: VllmStub) -> None:
    stub.plan.append(fault(404, "The model `policy-0` does not exist."))
    stub.loaded.clear()
    said = refused(lambda: writer.write(PROMPTS[:1], SEEDS[:1]))
    assert said == f"{stub.url} answered 404: The model `policy-0` does not exist.; it offers the models: base"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (completion(None), "sends no token ids; it must be vLLM 0.10.2 or newer"),
        (
            completion([9, 8], "stop"),
            "ended a response at token 8, which is no end to the policy; start it with --generation-config vllm",
        ),
        (
            completion([9, 8], "length"),
            "cut a response after 2 tokens instead of 6; start it with a greater --max-model-len and "
            "--generation-config vllm",
        ),
    ],
)
def test_a_response_that_the_policy_could_not_have_written_ends_the_batch(
    writer: VllmWriter, stub: VllmStub, answer: Answer, said: str
) -> None:
    stub.plan.append(answer)
    assert refused(lambda: writer.write(PROMPTS[:1], SEEDS[:1])) == f"{stub.url} {said}"
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (completion([9, STOP, 9, STOP], "stop"), "went on after the end of a response"),
        (completion([9] * LENGTH, "abort"), "ended a response for the unknown reason abort"),
        (completion([], "stop"), "sent a response without tokens"),
        (Answer(body='{"choices": []}'), 'sent something that is not a completion: {"choices": []}'),
        (Answer(body="<html>"), "sent something that is not a completion: <html>"),
    ],
)
def test_a_response_that_cannot_be_read_is_asked_for_again(
    writer: VllmWriter, stub: VllmStub, answer: Answer, said: str
) -> None:
    stub.plan.append(answer)
    assert writer.write(PROMPTS[:1], SEEDS[:1]) == [written(PROMPTS[0])]
    stub.plan.extend([answer] * 3)
    assert refused(lambda: writer.write(PROMPTS[:1], SEEDS[:1])) == f"{stub.url} {said} (3 tries)"


# The beginning


def test_a_context_too_short_is_told_before_anything_is_loaded(
    open_writer: Callable[..., VllmWriter], stub: VllmStub
) -> None:
    stub.context = 15
    said = refused(lambda: open_writer())
    assert said == (
        f"the longest prompt and its response are 16 tokens, and {stub.url} reads 15; start it with "
        "--max-model-len 16 or more, or lower max_length"
    )
    stub.context = 16
    open_writer()
    stub.context = None
    open_writer()


def test_an_address_that_is_no_servers_is_named(open_writer: Callable[..., VllmWriter], stub: VllmStub) -> None:
    bare = stub.url.removesuffix("/v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stub, "answer_to", lambda _: Answer(404, '{"detail": "Not Found"}'))
        assert refused(lambda: open_writer(base_url=bare)) == f"{bare} lists no models; does base_url end in /v1?"
    assert "is not an address" in refused(lambda: open_writer(base_url="localhost"), ConfigError)
    stub.die()
    assert refused(lambda: open_writer()) == f"no server answers at {stub.url}; is it running?"


def test_the_key_is_sent_and_one_that_is_refused_is_named(
    open_writer: Callable[..., VllmWriter], stub: VllmStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-someone-else")
    monkeypatch.setenv("OUR_KEY", "sk-ours")
    open_writer(api_key_env="OUR_KEY")
    open_writer()
    assert [request.headers["authorization"] for request in stub.listings] == ["Bearer sk-ours", "Bearer none"]
    monkeypatch.setattr(stub, "answer_to", lambda _: fault(401, "no"))
    said = refused(lambda: open_writer(api_key_env="OUR_KEY"))
    assert said == f"{stub.url} refuses the key in the environment variable OUR_KEY (401)"


def test_an_address_with_a_password_is_refused_without_quoting_it() -> None:
    with pytest.raises(ValidationError, match="environment variable") as caught:
        VllmRolloutConfig(base_url="http://me:secret@host/v1")
    assert "secret" not in caught.value.errors()[0]["msg"]


def test_a_training_that_a_server_cannot_write_for_is_refused() -> None:
    assert vllm_problems(use_peft=True, temperature=0.7) == []
    assert vllm_problems(use_peft=True, temperature=0.01) == vllm_problems(use_peft=True, temperature=2.0) == []
    (whole,) = vllm_problems(use_peft=False, temperature=1.0)
    assert "use_peft" in whole
    for temperature in (0.009, 2.01):
        (said,) = vllm_problems(use_peft=True, temperature=temperature)
        assert said == f"vLLM samples at temperatures from 0.01 to 2 alone, and temperature is {temperature:g}"
    assert len(vllm_problems(use_peft=False, temperature=3.0)) == 2
