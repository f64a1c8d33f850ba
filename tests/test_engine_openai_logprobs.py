"""The probabilities of choices from servers: what they are asked, and what is made of their answers."""

import json
import math
from typing import Any

import pytest
from served import HELLO, Pauses, run
from servers import MODEL, Answer, ChatServer, fault, listed, models, reply

from cai.engines.base import ChoiceLogprobs
from cai.engines.openai import OpenAIEngine
from cai.errors import EngineError, RecordError
from cai.records import Sampling, Usage

PREFILL = "The answer is ("
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
SURE = listed({"A": 0.7, "B": 0.2})


def choose(*servers: ChatServer, choices: tuple[str, ...] = ("A", "B"), prefill: str = PREFILL, **options: Any) -> Any:
    async def use(engine: OpenAIEngine) -> ChoiceLogprobs:
        return await engine.choice_logprobs(HELLO, prefill, choices)

    return run(*servers, use=use, **options)


def probabilities(found: ChoiceLogprobs) -> list[float]:
    return [math.exp(logprob) for logprob in found.logprobs]


@pytest.mark.parametrize(
    ("owner", "extra"),
    [
        ("vllm", {"top_k": -1, "min_p": 0, "repetition_penalty": 1}),
        ("llamacpp", {"top_k": -1, "min_p": 0, "repeat_penalty": 1}),
    ],
)
def test_a_local_server_goes_on_with_the_prefill(owner: str, extra: dict[str, float]) -> None:
    continuation = {"continue_final_message": True, "add_generation_prompt": False} if owner == "vllm" else {}
    with ChatServer([SURE], models_answer=models(MODEL, owned_by=owner)) as server:
        choose(server)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": MODEL,
        "messages": [*TURNS, {"role": "assistant", "content": PREFILL}],
        "max_tokens": 4,
        "temperature": 0.0,
        "top_p": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
        **extra,
        **continuation,
    }


def test_any_other_server_is_asked_without_prefill_for_enough_tokens_to_write_it_out() -> None:
    with ChatServer([SURE]) as server:
        choose(server)
    (request,) = server.requests
    assert request.body == {
        "model": MODEL,
        "messages": TURNS,
        "max_tokens": 12,
        "temperature": 0.0,
        "top_p": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_reasons_before_the_answer_need_a_server_that_goes_on_with_them() -> None:
    reasons = "The first is rude.\n\nSo the answer is ("
    with ChatServer(default=SURE) as server:
        with pytest.raises(EngineError, match=r"not known to go on with reasons.*judge without them"):
            choose(server, prefill=reasons)
        assert server.requests == []
        assert probabilities(choose(server, prefill=reasons, format="transcript")) == pytest.approx([0.7, 0.2])
    with ChatServer([SURE], models_answer=models(MODEL, owned_by="vllm")) as server:
        choose(server, prefill=reasons)
    assert server.requests[0].body["messages"][-1]["content"] == reasons


@pytest.mark.parametrize("owner", ["vllm", "someone"])
def test_an_empty_prefill_adds_no_turn(owner: str) -> None:
    with ChatServer([SURE], models_answer=models(MODEL, owned_by=owner)) as server:
        choose(server, prefill="")
    (request,) = server.requests
    assert request.body["messages"] == TURNS
    assert "continue_final_message" not in request.body


def test_each_server_is_asked_in_its_own_way() -> None:
    with (
        ChatServer([fault(500)], models_answer=models(MODEL, owned_by="vllm")) as first,
        ChatServer([SURE]) as second,
    ):
        choose(first, second)
    assert len(first.requests[0].body["messages"]) == 3
    assert len(second.requests[0].body["messages"]) == 2


@pytest.mark.parametrize(("prefill", "end"), [(PREFILL, "Assistant: The answer is ("), ("", "Assistant:")])
def test_a_transcript_has_the_prefill_in_its_text(prefill: str, end: str) -> None:
    with ChatServer([listed({"A": 0.7, " A": 0.1, "B": 0.2}, plain=True)]) as server:
        found = choose(server, format="transcript", prefill=prefill)
    assert probabilities(found) == pytest.approx([0.8, 0.2])
    (request,) = server.requests
    assert request.path == "/v1/completions"
    assert request.body == {
        "model": MODEL,
        "prompt": f"\n\nBe brief.\n\nHuman: Hello?\n\n{end}",
        "max_tokens": 4,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": ["\n\nHuman:", "\n\nAssistant:"],
        "logprobs": 20,
    }


def test_plain_completions_may_come_in_the_form_of_chats() -> None:
    with ChatServer([SURE]) as server:
        assert probabilities(choose(server, format="transcript")) == pytest.approx([0.7, 0.2])


def test_spellings_are_summed_up_and_usage_is_counted() -> None:
    answer = listed({" A": 0.4, "A": 0.1, "(A": 0.1, " B": 0.3, "a": 0.05})
    with ChatServer([answer]) as server:
        found = choose(server)
    assert probabilities(found) == pytest.approx([0.6, 0.3])
    assert found.off_mass == pytest.approx(0.1)
    assert found.usage == Usage(prompt_tokens=20, completion_tokens=1)


def test_a_choice_that_is_not_listed_gets_the_most_it_can_have() -> None:
    # Least listed: 0.05. What the list leaves: 1 - 0.9 - 0.05 - 0.03 = 0.02.
    with ChatServer([listed({"A": 0.9, "The": 0.05, "I": 0.03}), listed({"A": 0.7, "The": 0.2, "I": 0.04})]) as server:
        assert probabilities(choose(server)) == pytest.approx([0.9, 0.02])
        # Least listed: 0.04. What the list leaves: 0.06.
        assert probabilities(choose(server)) == pytest.approx([0.7, 0.04])


def test_lead_in_and_a_prefill_written_out_are_passed_over() -> None:
    words = [{word: 0.5, "A": 0.3} for word in ("The", " answer", " is", " **", "(")]
    with ChatServer([listed(*words, {"B": 0.8, "A": 0.1}, {")": 1.0})]) as server:
        found = choose(server)
    assert probabilities(found) == pytest.approx([0.1, 0.8])
    assert found.off_mass == pytest.approx(0.1)


def test_words_of_a_prefill_that_was_sent_are_not_passed_over() -> None:
    answer = listed({"The": 0.5, "A": 0.3, "B": 0.1}, {"B": 1.0})
    with ChatServer([answer], models_answer=models(MODEL, owned_by="vllm")) as server:
        assert probabilities(choose(server)) == pytest.approx([0.3, 0.1])


def test_an_answer_without_any_choice_has_all_its_mass_elsewhere() -> None:
    with ChatServer([listed({"I": 0.9, "We": 0.05})]) as server:
        found = choose(server)
    assert (found.logprobs, found.off_mass) == ((-math.inf, -math.inf), 1.0)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": None}])
def test_an_empty_reply_is_no_sign_of_missing_log_probabilities(logprobs: Any) -> None:
    choice = {"message": {"content": ""}, "logprobs": logprobs, "finish_reason": "stop"}
    with ChatServer([Answer(body=json.dumps({"choices": [choice]}))]) as server:
        found = choose(server)
    assert (found.logprobs, found.off_mass) == ((-math.inf, -math.inf), 1.0)


def with_logprobs(logprobs: Any, text: str = "A") -> Answer:
    """A completion with these log-probabilities as they are."""
    choice = {"message": {"content": text}, "text": text, "logprobs": logprobs, "finish_reason": "stop"}
    return Answer(body=json.dumps({"choices": [choice]}))


def token(text: str, logprob: Any, **more: Any) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, **more}


def test_a_tokens_bytes_are_its_text() -> None:
    top = [
        token("ĠA", math.log(0.6), bytes=[32, 65]),
        token("B", math.log(0.3), bytes=None),
        token("é", -9, bytes=[195]),
    ]
    with ChatServer([with_logprobs({"content": [{**top[0], "top_logprobs": top}]})]) as server:
        assert probabilities(choose(server)) == pytest.approx([0.6, 0.3])


def test_minus_infinity_as_servers_write_it_is_probability_zero() -> None:
    top = [token("A", 0.0), token("B", -9999.0), token("C", -3.4028234663852886e38), token("D", -math.inf)]
    with ChatServer([with_logprobs({"content": [{**top[0], "top_logprobs": top}]})]) as server:
        assert choose(server).logprobs == (0.0, -math.inf)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {"content": None},
        {"content": []},
        {"content": [token("A", -0.1)]},
        {"content": [token("A", -0.1, top_logprobs=[])]},
        {"tokens": ["A"], "token_logprobs": [-0.1], "top_logprobs": None},
        {"tokens": ["A"], "token_logprobs": [-0.1], "top_logprobs": [None]},
    ],
)
def test_a_server_that_answers_without_lists_is_refused_with_what_to_do(logprobs: Any) -> None:
    with ChatServer([with_logprobs(logprobs)]) as server:
        message = f"{server.url} offers no log-probabilities .*; use --sample-verdicts N or another server"
        with pytest.raises(EngineError, match=message):
            choose(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_parameter_is_refused_with_its_words(status: int) -> None:
    with ChatServer([fault(status, "`top_logprobs` is not supported by this model")]) as server:
        with pytest.raises(
            EngineError, match=r"offers no log-probabilities.*is not supported by this model.*--sample-verdicts"
        ):
            choose(server)
        assert len(server.requests) == 1


def test_other_refusals_of_the_same_request_are_failed_records() -> None:
    with ChatServer([fault(400, "the prompt is too long"), fault(400, "no such role")]) as server:
        for reason in ("context_overflow", "request_refused"):
            with pytest.raises(RecordError) as caught:
                choose(server)
            assert caught.value.reason == reason


def test_a_reply_request_refused_in_words_about_logprobs_is_one_failed_record() -> None:
    with ChatServer([fault(400, "prompts about logprobs are not allowed")]) as server, pytest.raises(RecordError):
        run(server)


def test_requests_are_tried_again_like_any_other() -> None:
    pauses = Pauses(share=0.5)
    with ChatServer([fault(500), fault(429, retry_after="7"), Answer(body="{"), SURE]) as server:
        assert probabilities(choose(server, pauses=pauses)) == pytest.approx([0.7, 0.2])
        assert len(server.requests) == 4
    assert pauses.asked == [0.5, 7 + 0.5 * 2, 0.5 * 4]
    with ChatServer(default=fault(429)) as server, pytest.raises(RecordError) as caught:
        choose(server, max_retries=2)
    assert caught.value.reason == "server_error"


@pytest.mark.parametrize(
    "logprobs",
    [
        "yes",
        [1],
        {"content": [{"token": "A"}]},
        {"content": [token("A", "low", top_logprobs=[])]},
        {"content": [token("A", -0.1, top_logprobs=[token("A", None)])]},
        {"content": [token("A", -0.1, top_logprobs=[token("A", math.nan)])]},
        {"content": [token("A", -0.1, top_logprobs=[token("A", 0.5)])]},
        {"content": [token("A", -0.1, top_logprobs=[token("A", -0.1, bytes=[300])])]},
        {"content": [token("A", -0.1, top_logprobs=[token("A", -0.1)]), token("B", -0.1, top_logprobs=[])]},
        {"tokens": ["A", "B"], "top_logprobs": [{"A": -0.1}]},
        {"tokens": ["A"], "top_logprobs": [{"A": "-0.1?"}]},
    ],
    ids=str,
)
def test_log_probabilities_that_cannot_be_read_are_tried_again_then_counted(logprobs: Any) -> None:
    with ChatServer([with_logprobs(logprobs), SURE]) as server:
        assert probabilities(choose(server)) == pytest.approx([0.7, 0.2])
    with ChatServer(default=with_logprobs(logprobs)) as server, pytest.raises(RecordError) as caught:
        choose(server, max_retries=1)
    assert caught.value.reason == "malformed_response"


def test_a_reply_is_read_whatever_its_log_probabilities_look_like() -> None:
    with ChatServer([with_logprobs("odd", "Hello.")]) as server:
        assert run(server, max_retries=0).text == "Hello."


@pytest.mark.parametrize("answer", [reply("", "content_filter"), reply(None, "stop", refusal="I can't help.")])
def test_a_withheld_choice_is_counted_as_refused(answer: Answer) -> None:
    with ChatServer([answer]) as server, pytest.raises(RecordError) as caught:
        choose(server)
    assert caught.value.reason == "request_refused"


def test_the_probability_of_a_reply_is_not_offered_and_told_where_it_is() -> None:
    async def use(engine: OpenAIEngine) -> None:
        assert (engine.info.choice_logprobs, engine.info.reply_logprob) == (True, False)
        with pytest.raises(EngineError, match="use the engine `transformers` or `vllm`"):
            await engine.reply_logprob(HELLO, "Fine.")
        await engine.generate(HELLO, Sampling())

    with ChatServer() as server:
        run(server, use=use)
    assert len(server.requests) == 1
