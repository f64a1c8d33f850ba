import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from served import HELLO, run
from servers import MODEL, Answer, ChatServer, fault, models, reply

from cai.config import EngineConfig
from cai.engines.openai import OpenAIEngine, open_openai
from cai.errors import ConfigError, EngineError, RecordError
from cai.records import Generation, Sampling, Usage

KEY = "sk-test-0123456789"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_chat_is_sent_and_its_reply_read() -> None:
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.25, stop=("END",), seed=4294967295)
    with ChatServer([reply("Hi there.", "length")]) as server:
        found = run(server, sampling=sampling)
    usage = Usage(prompt_tokens=20, cached_tokens=16, completion_tokens=3)
    assert found == Generation(text="Hi there.", finish_reason="length", usage=usage)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "stop": ["END"],
        "seed": 4294967295,
    }


def test_a_transcript_goes_to_plain_completions_and_stops_at_the_next_turn() -> None:
    with ChatServer([reply("Hi.")]) as server:
        found = run(server, format="transcript", sampling=Sampling(stop=("END",)))
    (request,) = server.requests
    assert found.text == "Hi."
    assert request.path == "/v1/completions"
    assert request.body["prompt"] == "\n\nBe brief.\n\nHuman: Hello?\n\nAssistant:"
    assert request.body["stop"] == ["END", "\n\nHuman:", "\n\nAssistant:"]


def test_usage_that_a_server_leaves_out_counts_nothing() -> None:
    bare = {"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}
    with ChatServer([Answer(body=json.dumps(bare))]) as server:
        assert run(server) == Generation(text="Hi.", finish_reason="stop", usage=Usage())


@pytest.mark.parametrize(
    ("owner", "extra"),
    [
        ("vllm", {"top_k": -1, "min_p": 0, "repetition_penalty": 1}),
        ("llamacpp", {"top_k": -1, "min_p": 0, "repeat_penalty": 1}),
        ("someone", {}),
    ],
)
def test_a_local_servers_own_sampling_defaults_are_switched_off(owner: str, extra: dict[str, float]) -> None:
    with ChatServer(models_answer=models(MODEL, owned_by=owner)) as server:
        info = run(server, use=lambda engine: _info_after_request(engine))
    known = {"model", "messages", "max_tokens", "temperature", "top_p"}
    assert {name: value for name, value in server.requests[0].body.items() if name not in known} == extra
    assert info.details["server"] == owner


async def _info_after_request(engine: OpenAIEngine) -> Any:
    await engine.generate(HELLO, Sampling())
    return engine.info


def test_the_only_model_of_a_server_is_taken() -> None:
    with ChatServer(models_answer=models("just-this")) as server:
        info = run(server, use=_info_after_request)
    assert info.model == "just-this"
    assert server.requests[0].body["model"] == "just-this"
    assert (info.concurrency, info.seeded) == (64, False)


def test_several_models_and_no_name_is_an_error_that_lists_them() -> None:
    with ChatServer(models_answer=models("a", "b")) as server, pytest.raises(EngineError, match=r"several.*: a, b"):
        run(server)


def test_a_server_that_lists_no_models_needs_a_name() -> None:
    with ChatServer(models_answer=fault(404)) as server:
        assert run(server, model="named").text == "Fine."
        with pytest.raises(EngineError, match=r"does not list its models; name one by `model`"):
            run(server)


def test_a_wrong_model_name_stops_the_run_and_lists_what_there_is() -> None:
    with ChatServer([fault(404, "The model `typo` does not exist.")], models_answer=models("a", "b")) as server:
        with pytest.raises(EngineError, match=r"404: The model `typo` does not exist.; it offers the models: a, b"):
            run(server, model="typo")
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_by_the_variable_and_never_shown(status: int) -> None:
    with ChatServer([fault(status, f"bad key {KEY}")]) as server:
        with pytest.raises(EngineError, match=f"refuses the key.*OPENAI_API_KEY.*{status}") as caught:
            run(server, api_key_env="OPENAI_API_KEY")
        assert len(server.requests) == 1
    assert KEY not in str(caught.value)


def test_a_missing_key_is_told_at_opening_when_the_server_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with (
        ChatServer(models_answer=fault(401)) as server,
        pytest.raises(EngineError, match=r"asks for a key \(401\); set the environment variable MY_KEY"),
    ):
        run(server, api_key_env="MY_KEY")


def test_the_hosted_service_is_not_asked_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EngineError, match="needs a key; set the environment variable OPENAI_API_KEY"):
        asyncio.run(open_openai(EngineConfig(engine="openai", model="m")))


def test_a_server_that_wants_no_key_gets_a_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with ChatServer() as server:
        run(server)
    assert server.requests[0].headers["authorization"] == "Bearer none"


def test_a_key_with_a_line_break_inside_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with (
        ChatServer() as server,
        pytest.raises(EngineError, match="OPENAI_API_KEY has spaces or other odd signs") as caught,
    ):
        run(server)
    assert "sk-" not in str(caught.value)


def test_the_key_goes_to_the_server_and_nowhere_else() -> None:
    echo = f"got Bearer {KEY}"
    answers = [reply(), fault(400, echo), Answer(body=echo), reply(None, refusal=echo)]
    said = []

    async def use(engine: OpenAIEngine) -> None:
        await engine.generate(HELLO, Sampling())
        for _ in answers[1:]:
            with pytest.raises(RecordError) as caught:
                await engine.generate(HELLO, Sampling())
            said.append(str(caught.value))
        said.append(engine.info.model_dump_json())
        said.append(repr(engine._connection.servers))

    with ChatServer(answers) as server:
        run(server, use=use, max_retries=0)
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert [text for text in said if KEY in text] == []
    assert sum("got Bearer ***" in text for text in said) == 3


def test_the_environments_base_url_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        run()
    assert server.requests[0].path == "/v1/chat/completions"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http://localhost:80a0/v1",
        "http://localhost:99999/v1",
        "http://[::1/v1",
    ],
)
def test_a_base_url_that_is_no_address_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ConfigError, match="is not an address such as"):
        run()


def test_a_password_in_the_environments_base_url_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@host/v1")
    with pytest.raises(ConfigError, match="holds a user name or password") as caught:
        run()
    assert "secret" not in str(caught.value)


def test_options_that_a_server_cannot_honour_are_all_named() -> None:
    config = EngineConfig(engine="openai", adapter=Path("lora"), dtype="float32", max_model_len=100)
    with pytest.raises(ConfigError) as caught:
        asyncio.run(open_openai(config))
    assert [problem.key for problem in caught.value.problems] == ["adapter", "dtype", "max_model_len"]
    assert "load the adapter under a name of its own" in str(caught.value)


def test_a_server_that_is_down_is_told_at_opening() -> None:
    with ChatServer() as up, ChatServer() as down:
        down.die()
        with pytest.raises(EngineError, match=f"no server answers at {down.url}; is it running?"):
            run(up, down)
