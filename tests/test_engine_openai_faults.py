"""What goes wrong on a server, and how requests are spread and tried again."""

import asyncio
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from served import HELLO, Pauses, run
from servers import Answer, ChatServer, fault, reply

from cai.engines.openai import OpenAIEngine
from cai.engines.servers import Timing
from cai.errors import EngineError, RecordError
from cai.records import Generation, Sampling


@pytest.mark.parametrize("status", [400, 402, 404, 409, 413, 422])
def test_other_4xx_are_not_tried_again(status: int) -> None:
    pauses = Pauses()
    with ChatServer([fault(status)]) as server:
        with pytest.raises((RecordError, EngineError)):
            run(server, pauses=pauses)
        assert len(server.requests) == 1
    assert pauses.asked == []


@pytest.mark.parametrize(
    ("status", "message", "more"),
    [
        (400, "This model's maximum context length is 512 tokens. However, you requested 600 tokens.", {}),
        (400, "request (9412 tokens) is too much", {"type": "exceed_context_size_error"}),
        (400, "Please reduce the length.", {"code": "context_length_exceeded"}),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 2048", {}),
    ],
)
def test_a_prompt_beyond_the_context_is_counted_as_such(status: int, message: str, more: dict[str, Any]) -> None:
    with ChatServer([fault(status, message, **more)]) as server, pytest.raises(RecordError) as caught:
        run(server)
    assert caught.value.reason == "context_overflow"
    assert message in str(caught.value)


def test_another_bad_request_is_counted_as_refused() -> None:
    with ChatServer([fault(400, "temperature must be below 2")]) as server, pytest.raises(RecordError) as caught:
        run(server)
    assert caught.value.reason == "request_refused"
    assert "answered 400: temperature must be below 2" in str(caught.value)


@pytest.mark.parametrize("answer", [reply("", "content_filter"), reply(None, "stop", refusal="I can't help.")])
def test_a_withheld_reply_is_counted_as_refused(answer: Answer) -> None:
    with ChatServer([answer]) as server, pytest.raises(RecordError) as caught:
        run(server)
    assert caught.value.reason == "request_refused"
    assert len(server.requests) == 1


def test_used_up_credit_stops_the_run_at_once() -> None:
    with ChatServer([fault(429, "no credit", code="insufficient_quota")]) as server:
        with pytest.raises(EngineError, match="no credit; the account's credit is used up"):
            run(server)
        assert len(server.requests) == 1


def test_retry_after_in_seconds_is_waited_for_with_jitter_on_top() -> None:
    pauses = Pauses(share=0.5)
    with ChatServer([fault(429, retry_after="7"), fault(503, retry_after="2.5")]) as server:
        assert run(server, pauses=pauses).text == "Fine."
    assert pauses.asked == [7 + 0.5 * 1, 2.5 + 0.5 * 2]


def test_retry_after_as_a_date_is_waited_for() -> None:
    date = format_datetime(datetime.fromtimestamp(1_000_030, UTC), usegmt=True)
    pauses = Pauses(share=0.0)
    with ChatServer([fault(429, retry_after=date)]) as server:
        run(server, pauses=pauses)
    assert pauses.asked == [30.0]


@pytest.mark.parametrize("header", ["99999", "Sun, 06 Nov 2094 08:49:37 GMT"])
def test_retry_after_is_capped_by_the_timeout(header: str) -> None:
    pauses = Pauses()
    with ChatServer([fault(429, retry_after=header)]) as server:
        run(server, pauses=pauses, timeout=40.0)
    assert pauses.asked == [40.0]


@pytest.mark.parametrize("header", ["soon", "-5", "Thu, 01 Jan 1970 08:00:00 GMT"])
def test_a_retry_after_that_says_nothing_leaves_the_backoff(header: str) -> None:
    pauses = Pauses(share=0.5)
    with ChatServer([fault(429, retry_after=header)]) as server:
        run(server, pauses=pauses)
    assert pauses.asked == [0.5]


def test_backoff_doubles_its_range_and_jitter_covers_all_of_it() -> None:
    pauses = Pauses(share=1.0)
    with ChatServer(default=fault(500)) as server:
        with pytest.raises(RecordError, match=r"answered 500: it went wrong \(9 tries\)") as caught:
            run(server, pauses=pauses, max_retries=8)
        assert len(server.requests) == 9
    assert caught.value.reason == "server_error"
    assert pauses.asked == [1, 2, 4, 8, 16, 32, 60, 60]
    assert {low for low, _ in pauses.ranges} == {0}


def test_jitter_differs_between_requests_and_leaves_the_global_generator_alone() -> None:
    import random

    random.seed(7)
    before = random.getstate()
    pauses = {Timing().pause(3, None, 100.0) for _ in range(200)}
    assert random.getstate() == before
    assert len(pauses) == 200
    assert min(pauses) < 2
    assert max(pauses) > 6


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body='{"choices": [{"message"'),
        Answer(body="<html>Bad gateway</html>", content_type="text/html"),
        Answer(body=""),
        Answer(body='{"choices": []}'),
        Answer(body="null"),
        Answer(body='{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'),
        Answer(body='{"choices": [{"message": {"content": "cut"}, "finish_reason": null}]}'),
        reply("odd", "abort"),
    ],
    ids=["truncated", "html", "empty", "no choices", "null", "no content", "unfinished", "aborted"],
)
def test_an_unreadable_reply_is_tried_again_then_counted(answer: Answer) -> None:
    with ChatServer([answer]) as server:
        assert run(server).text == "Fine."
    with ChatServer(default=answer) as server:
        with pytest.raises(RecordError) as caught:
            run(server, max_retries=2)
        assert len(server.requests) == 3
    assert caught.value.reason == "malformed_response"


def test_valid_json_of_another_content_type_is_read() -> None:
    with ChatServer([Answer(body=reply("Hi.").body, content_type="text/plain")]) as server:
        assert run(server, max_retries=0).text == "Hi."


def test_a_connection_cut_inside_the_body_is_tried_again_then_counted() -> None:
    cut = Answer(body=reply().body, cut_after=30)
    with ChatServer([cut]) as server:
        assert run(server).text == "Fine."
    with ChatServer(default=cut) as server:
        with pytest.raises(RecordError, match="broke the connection before its reply was complete") as caught:
            run(server, max_retries=1)
        assert len(server.requests) == 2
    assert caught.value.reason == "server_error"


def test_a_server_that_hangs_ends_in_a_timeout_not_a_hang() -> None:
    release = threading.Event()
    with ChatServer(default=Answer(body=reply().body, hold=release)) as server:
        with pytest.raises(RecordError, match=r"did not answer within 0.1 s \(2 tries\)") as caught:
            run(server, timeout=0.1, max_retries=1)
        assert len(server.requests) == 2
        release.set()
    assert caught.value.reason == "timeout"


def test_a_server_that_never_ends_its_reply_runs_into_the_timeout_too() -> None:
    with ChatServer([Answer(trickle=True)]) as server, pytest.raises(RecordError) as caught:
        run(server, timeout=0.2, max_retries=0)
    assert caught.value.reason == "timeout"


def test_a_server_that_dies_for_good_stops_the_run() -> None:
    async def use(engine: OpenAIEngine) -> None:
        await engine.generate(HELLO, Sampling())
        server.die()
        await engine.generate(HELLO, Sampling())

    pauses = Pauses()
    with ChatServer() as server, pytest.raises(EngineError, match=f"no server answers any more at {server.url}"):
        run(server, use=use, pauses=pauses, max_retries=3)
    assert pauses.asked == [0.5, 1, 2]


def test_requests_move_to_another_server_when_one_dies_mid_request() -> None:
    async def use(engine: OpenAIEngine) -> list[Generation]:
        calls = [asyncio.create_task(engine.generate(HELLO, Sampling())) for _ in range(4)]
        for server in (first, second) * 2:
            await server.request_arrived()
        first.die()
        release.set()
        found = await asyncio.gather(*calls)
        later = [await engine.generate(HELLO, Sampling()) for _ in range(3)]
        return [*found, *later]

    release = threading.Event()
    pauses = Pauses()
    held = Answer(body=reply("first").body, hold=release)
    with (
        ChatServer(default=Answer(body=held.body, hold=threading.Event())) as first,
        ChatServer([Answer(body=reply("second").body, hold=release)] * 2, default=reply("second")) as second,
    ):
        found = run(first, second, use=use, pauses=pauses, max_retries=1)
    assert [generation.text for generation in found] == ["second"] * 7
    assert pauses.asked == []


def test_a_server_that_refuses_connections_is_passed_over_and_tried_again_later() -> None:
    async def use(engine: OpenAIEngine) -> list[float]:
        first.die()
        await engine.generate(HELLO, Sampling())
        return [server.aside_until for server in engine._connection.servers]

    with ChatServer() as first, ChatServer() as second:
        aside = run(first, second, use=use, max_retries=0)
    assert aside == [15.0, 0.0]
    assert len(second.requests) == 1


def test_a_later_short_pause_does_not_cut_a_long_one() -> None:
    async def use(engine: OpenAIEngine) -> list[float]:
        for _ in range(2):
            with pytest.raises(RecordError):
                await engine.generate(HELLO, Sampling())
        return [server.aside_until for server in engine._connection.servers]

    with ChatServer([fault(429, retry_after="30"), fault(500)]) as server:
        assert run(server, use=use, max_retries=0) == [30.5]


def test_a_server_set_aside_comes_back_when_its_time_is_over() -> None:
    pauses = Pauses()

    async def use(engine: OpenAIEngine) -> None:
        await engine.generate(HELLO, Sampling())
        await engine.generate(HELLO, Sampling())
        pauses.asked.append(9.0)
        await engine.generate(HELLO, Sampling())

    with ChatServer([fault(429, retry_after="8")]) as first, ChatServer() as second:
        run(first, second, use=use, pauses=pauses)
    assert (len(first.requests), len(second.requests)) == (2, 2)


def test_each_request_goes_to_the_server_with_the_fewest_in_flight() -> None:
    async def use(engine: OpenAIEngine) -> None:
        slow = [asyncio.create_task(engine.generate(HELLO, Sampling())) for _ in range(6)]
        for server in (first, second) * 3:
            await server.request_arrived()
        for _ in range(3):
            release_second.release()
        await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        while sum(call.done() for call in slow) < 3:
            await asyncio.wait([call for call in slow if not call.done()], return_when=asyncio.FIRST_COMPLETED)
        # Three wait at the first server, none at the second: the next three belong to the second.
        await asyncio.gather(*(engine.generate(HELLO, Sampling()) for _ in range(3)))
        release_first.set()
        await asyncio.gather(*slow)

    release_first, release_second = threading.Event(), _Gate()
    with (
        ChatServer([Answer(body=reply().body, hold=release_first)] * 3) as first,
        ChatServer([Answer(body=reply().body, hold=release_second)] * 3) as second,
    ):
        run(first, second, use=use)
    assert (len(first.requests), len(second.requests)) == (3, 6)


class _Gate(threading.Event):
    """Lets one waiter through for each release."""

    def __init__(self) -> None:
        super().__init__()
        self._places = threading.Semaphore(0)

    def release(self) -> None:
        self._places.release()

    def wait(self, timeout: float | None = None) -> bool:
        return self._places.acquire(timeout=timeout)


def test_cancelled_requests_leave_no_task_and_free_their_places() -> None:
    async def use(engine: OpenAIEngine) -> set[asyncio.Task[Any]]:
        calls = [asyncio.create_task(engine.generate(HELLO, Sampling())) for _ in range(5)]
        for _ in calls:
            await server.request_arrived()
        for call in calls:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in found] == [asyncio.CancelledError] * 5
        assert [server.in_flight for server in engine._connection.servers] == [0]
        await engine.aclose()
        return asyncio.all_tasks() - {asyncio.current_task()}

    release = threading.Event()
    with ChatServer(default=Answer(hold=release)) as server:
        assert run(server, use=use) == set()
        release.set()


def test_closing_the_engine_ends_requests_in_flight_and_refuses_new_ones() -> None:
    async def use(engine: OpenAIEngine) -> None:
        call = asyncio.create_task(engine.generate(HELLO, Sampling()))
        await server.request_arrived()
        await engine.aclose()
        with pytest.raises(EngineError, match="the engine was closed"):
            await call
        with pytest.raises(EngineError, match="the engine is closed"):
            await engine.generate(HELLO, Sampling())

    release = threading.Event()
    with ChatServer(default=Answer(hold=release)) as server:
        run(server, use=use)
        release.set()
