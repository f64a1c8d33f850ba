"""Responses that a real vLLM writes for PPO are draws from the policy, whatever the model's files say of sampling."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from adapted_actor import adapted_actor, redraw
from tiny_model import save_tiny_model
from vllm_server import VllmServer

from cai.errors import EngineError

RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
STOP, OTHER_END = 1, 32
"""The end of the policy's responses, and a token that the model's files name as an end too."""
LENGTH, TEMPERATURE = 12, 1.5
PROMPT = [3, 70, 80, 90, 1, 4]
LEAKS = {"top_k": 2, "top_p": 0.5, "min_p": 0.2, "temperature": 0.3, "repetition_penalty": 1.5, "max_new_tokens": 5}
FAR = 4.0
"""Standard deviations by which a sum of many draws is off by chance once in 16,000 times; seeds are fixed."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files ask for another sampling than PPO's."""
    folder = save_tiny_model(tmp_path_factory.mktemp("start") / "tiny", context=2048, hidden=128)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [STOP, OTHER_END], **LEAKS}))
    return folder


@pytest.fixture(scope="module")
def server(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    options = ("--enable-lora", "--max-lora-rank", "8", "--no-enable-chunked-prefill")
    with serving(start, tmp_path_factory.mktemp("server") / "log", *options, **RUNTIME) as found:
        yield found


@contextmanager
def serving(model: Path, log: Path, *options: str, **variables: str) -> Iterator[VllmServer]:
    found = VllmServer(str(model), log, *options, **variables)
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.kill()


@pytest.fixture(scope="module")
def actor(start: Path) -> Any:
    return adapted_actor(start)


@contextmanager
def writing(server: VllmServer, run: Path, actor: Any = None, **options: Any) -> Iterator[Any]:
    """A writer on the server, synchronised with an actor."""
    from cai.train.ppo.vllm_config import VllmRolloutConfig
    from cai.train.ppo.vllm_writer import VllmWriter

    usual = {"length": LENGTH, "temperature": TEMPERATURE, "stops": frozenset({STOP}), "longest_prompt": 400}
    config = VllmRolloutConfig(base_url=server.url, max_retries=1)
    writer = VllmWriter(config, run, **{**usual, "probe": PROMPT, **options})
    try:
        if actor is not None:
            writer.sync(actor, 0)
        yield writer
    finally:
        writer.close()


def refusal(server: VllmServer, run: Path, actor: Any = None, **options: Any) -> str:
    """What is said of a server that a writer cannot use."""
    with pytest.raises(EngineError) as caught, writing(server, run, actor, **options):
        pass
    return str(caught.value)


def distributions(actor: Any, prompt: Sequence[int], response: Sequence[int], temperature: float = TEMPERATURE) -> Any:
    """Log-probabilities of all tokens where each of the response stands, (T, V), by one pass without padding."""
    import torch

    with torch.no_grad(), actor.playing("policy") as model:
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def surprise(actor: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], **options: Any) -> float:
    """How far the responses' log-probability is from what draws from the policy have, in standard deviations.

    The log-probability of a draw has the mean -H and a variance that follow from its distribution; the deviations of
    successive tokens are martingale differences, so that their variances add up.
    """
    total = variance = 0.0
    for prompt, response in zip(prompts, responses, strict=True):
        logprobs = distributions(actor, prompt, response, **options)
        means = (logprobs.exp() * logprobs).sum(-1)
        variance += float((logprobs.exp() * (logprobs - means[:, None]).square()).sum())
        total += float((logprobs[range(len(response)), list(response)] - means).sum())
    return total / variance**0.5


def chi_square(actor: Any, responses: Sequence[Sequence[int]]) -> float:
    """Pearson's statistic of the first tokens after PROMPT, as standard deviations from its mean.

    Tokens that are expected less than 5 times are one cell.
    """
    expected = len(responses) * distributions(actor, PROMPT, [0])[0].exp()
    counts = Counter(response[0] for response in responses)
    frequent = [token for token in range(len(expected)) if expected[token] >= 5]
    cells = [(counts[token], float(expected[token])) for token in frequent]
    cells.append((len(responses) - sum(seen for seen, _ in cells), len(responses) - sum(mean for _, mean in cells)))
    assert len(cells) > 5
    statistic, freedom = sum((seen - mean) ** 2 / mean for seen, mean in cells), len(cells) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def test_responses_are_draws_from_the_policy(server: VllmServer, actor: Any, tmp_path: Path) -> None:
    prompts = [PROMPT] * 400
    redraw(actor, 0.1, 0)
    with writing(server, tmp_path, actor) as writer:
        responses = writer.write(prompts, range(400))
    assert abs(surprise(actor, prompts, responses)) < FAR
    assert abs(chi_square(actor, responses)) < FAR
    # Those of another temperature and of the untouched base would be told from them.
    assert abs(surprise(actor, prompts, responses, temperature=1.4)) > FAR
    redraw(actor, 0.0, 0)
    assert surprise(actor, prompts, responses) < -10
    assert chi_square(actor, responses) > 10


def test_a_response_ends_at_its_first_stop_token_alone(server: VllmServer, actor: Any, tmp_path: Path) -> None:
    stops = frozenset({STOP, *range(100, 140)})
    redraw(actor, 0.1, 0)
    with writing(server, tmp_path, actor, stops=stops) as writer:
        responses = writer.write([PROMPT] * 200, range(200))
    ended = [response for response in responses if response[-1] in stops]
    assert all(stops.isdisjoint(response[:-1]) for response in responses)
    assert all(len(response) == LENGTH for response in responses if response[-1] not in stops)
    assert 20 < len(ended) < 180
    assert any(OTHER_END in response[:-1] for response in responses)
    assert abs(surprise(actor, [PROMPT] * 200, responses)) < FAR


def test_after_a_sync_responses_are_those_of_the_trained_policy(server: VllmServer, actor: Any, tmp_path: Path) -> None:
    import torch

    from cai.train.ppo.rollout import padded

    token, prompts = 200, [PROMPT] * 32
    texts = padded([PROMPT], [[token] * LENGTH], pad=0, device=torch.device("cpu"))
    redraw(actor, 0.0, 0)
    with writing(server, tmp_path, actor) as writer:
        before = writer.write(prompts, range(32))
        optimizer = torch.optim.Adam(actor.trained(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            (-actor("policy", texts, TEMPERATURE).logprobs.mean()).backward()
            optimizer.step()
        writer.sync(actor, 1)
        after = writer.write(prompts, range(32))
    assert sum(response.count(token) for response in before) < 0.1 * LENGTH * 32
    assert sum(response.count(token) for response in after) > 0.9 * LENGTH * 32


def test_no_prompt_is_taken_for_read_by_an_earlier_policy_of_the_same_step(
    server: VllmServer, actor: Any, tmp_path: Path
) -> None:
    # 24 prompts of 300 tokens are more than vLLM reads in one step, each with a seed; and long enough to be cached.
    prompts = [[3, number + 10, *[20 + place % 200 for place in range(298)]] for number in range(24)]
    for seed in (1, 2):
        redraw(actor, 0.1, seed)
        with writing(server, tmp_path, actor) as writer:
            responses = writer.write(prompts * 4, range(96))
        assert abs(surprise(actor, prompts * 4, responses)) < FAR
    redraw(actor, 0.1, 1)
    assert surprise(actor, prompts * 4, responses) < -10


def test_a_response_follows_from_its_seed(server: VllmServer, actor: Any, tmp_path: Path) -> None:
    redraw(actor, 0.1, 0)
    with writing(server, tmp_path, actor) as writer:
        once, again, other = (writer.write([PROMPT], [seed]) for seed in (5, 5, 2**32 - 1))
    assert once == again != other


def test_a_server_of_another_model_is_refused(server: VllmServer, tmp_path: Path) -> None:
    another = save_tiny_model(tmp_path / "another", context=2048, hidden=128, seed=1)
    said = refusal(server, tmp_path / "run", adapted_actor(another))
    assert "other probabilities than they have here" in said
    assert f"it must serve the model that is trained, {another}" in said


def test_an_adapter_of_too_high_a_rank_is_refused(server: VllmServer, start: Path, tmp_path: Path) -> None:
    said = refusal(server, tmp_path, adapted_actor(start, rank=16))
    assert said == f"{server.url} serves no adapters of rank 16; start it with --max-lora-rank 16 or more"


def test_a_folder_that_the_server_does_not_see_is_named(server: VllmServer, tmp_path: Path) -> None:
    import asyncio

    from cai.config import EngineConfig
    from cai.engines.connection import Connection
    from cai.train.ppo.vllm_wire import load_adapter

    async def load() -> None:
        connection = Connection(EngineConfig(), [server.url])
        try:
            await load_adapter(connection.servers[0], tmp_path / "elsewhere", 4)
        finally:
            await connection.aclose()

    with pytest.raises(EngineError, match=f"does not find {tmp_path / 'elsewhere'}; name a folder by adapter_dir"):
        asyncio.run(load())


def test_a_context_too_short_is_refused(server: VllmServer, tmp_path: Path) -> None:
    assert "start it with --max-model-len 2049 or more" in refusal(server, tmp_path, longest_prompt=2049 - LENGTH)


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        ((), RUNTIME, "serves no adapters; start it with --enable-lora"),
        (
            ("--enable-lora",),
            {},
            "does not load adapters while it runs; start it with the environment variable "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        ),
    ],
)
def test_a_server_that_was_started_for_something_else_is_refused(
    start: Path, actor: Any, tmp_path: Path, options: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    with serving(start, tmp_path / "log", *options, **variables) as server:
        assert refusal(server, tmp_path / "run", actor) == f"{server.url} {said}"


def test_a_training_has_its_responses_written_by_a_server_of_another_environment(
    server: VllmServer, start: Path, tmp_path: Path
) -> None:
    python = Path(__file__).parents[2] / ".venv/bin/python"
    if not python.is_file():
        pytest.skip("cai train needs TRL, which this environment does not have: make setup builds .venv")
    (tmp_path / "reward.py").write_text("def short(prompts, responses):\n    return [-len(one) for one in responses]\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"q{n}"}) + "\n" for n in range(30)))
    words = [
        *("train", "ppo", "--model", start, "--prompts", "prompts.jsonl", "--reward-function", "reward.py:short"),
        *(
            "--vllm",
            server.url,
            "--out",
            "run",
            "--total-episodes",
            48,
            "--batch-size",
            16,
            "--response-length",
            LENGTH,
        ),
        *("--temperature", TEMPERATURE, "--learning-rate", 0.01, "--lora-r", 4, "--probe-prompts", 4, "--no-bf16"),
        *("--report-to", "none", "--use-cpu"),
    ]
    done = subprocess.run(
        [str(python), "-m", "cai", *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert metrics[0]["kl"] == 0
    assert metrics[-1]["kl"] != 0
    # Draws from the policy itself: 3 steps of at most 192 tokens, whose surprise varies by a nat or two each.
    gap = sum(line["surprise_gap"] for line in metrics) / 3
    assert abs(gap) < 0.35
    assert (tmp_path / "run/model/adapter_model.safetensors").is_file()


def test_a_server_killed_between_two_batches_ends_the_run(server: VllmServer, actor: Any, tmp_path: Path) -> None:
    # Last in this module: it ends the server.
    with writing(server, tmp_path, actor) as writer:
        writer.write([PROMPT], [0])
        server.kill()
        with pytest.raises(EngineError, match="no server answers any more"):
            writer.write([PROMPT] * 8, range(8))
