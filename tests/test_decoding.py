"""Sampling, stopping, cache and attention of the transformers engine, against independent routes."""

import random
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_model import byte_tokenizer, save_tiny_model  # noqa: E402

from cai.engines.decoding import (  # noqa: E402
    CPU_ATTENTION,
    RowSampler,
    RowStop,
    has_plain_cache,
    roomy_cache,
    sample_rows,
)
from cai.records import Sampling  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def column(*values: float) -> Any:
    return torch.tensor([[value] for value in values])


def test_sample_rows_inverts_the_cumulative_distribution() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 5))
    uniform = column(0.0, 0.199, 0.201, 0.699, 0.701)
    chosen = sample_rows(logits, column(*[1.0] * 5), column(*[1.0] * 5), uniform)
    assert chosen.tolist() == [0, 0, 1, 1, 2]


def test_temperature_sharpens_each_row_by_its_own_value() -> None:
    # softmax(log p / T) ∝ p^(1/T): at T = 0.5 the squares 0.04, 0.25, 0.09 share 0.38; the first has 0.105.
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 2))
    chosen = sample_rows(logits, column(1.0, 0.5), column(1.0, 1.0), column(0.15, 0.15))
    assert chosen.tolist() == [0, 1]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3))
    # top-p 0.6 keeps 0.4 and 0.3; renormalised in vocabulary order: token 2 up to 3/7, token 3 above.
    chosen = sample_rows(logits, column(1, 1, 1), column(0.6, 0.6, 0.6), column(0.0, 3 / 7 - 0.01, 3 / 7 + 0.01))
    assert chosen.tolist() == [2, 2, 3]


def test_a_token_without_probability_is_never_chosen() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert sample_rows(logits, column(1.0), column(1.0), column(uniform)).tolist() == [1]


def test_samples_follow_the_softmax() -> None:
    probs = torch.tensor([0.05, 0.15, 0.3, 0.5])
    rows = 20_000
    generator = random.Random(3)
    uniform = column(*[generator.random() for _ in range(rows)])
    ones = torch.ones(rows, 1)
    counts = sample_rows(torch.log(probs).expand(rows, -1), ones, ones, uniform).bincount(minlength=4)
    chi_square = ((counts - rows * probs) ** 2 / (rows * probs)).sum()
    assert chi_square < 16.3  # 99.9th percentile for 3 degrees of freedom


def test_row_sampler_is_greedy_at_temperature_0_and_leaves_one_finite_score() -> None:
    samplings = [Sampling(temperature=0), Sampling(temperature=1, seed=1)]
    sampler = RowSampler(samplings, [random.Random(0), random.Random(1)], "cpu")
    scores = sampler(torch.zeros(2, 1), torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]]))
    assert torch.isfinite(scores).sum(-1).tolist() == [1, 1]
    assert scores[0].argmax() == 1


def stop_of(limits: list[int], stops: list[tuple[str, ...]]) -> RowStop:
    return RowStop(limits, stops, width=0, eos=frozenset({1}), tokenizer=byte_tokenizer(), closing=threading.Event())


def test_rows_stop_at_their_own_limit_end_token_or_stop_string() -> None:
    ids = byte_tokenizer()("ab\n\nHuman:").input_ids
    plain = byte_tokenizer()("abcdefghij").input_ids
    stop = stop_of([100, 3, 100, 100], [("\n\nHuman:",), (), (), ()])
    rows = torch.tensor([ids, plain, plain, plain])
    rows[2, 4] = 1
    done = [stop(rows[:, : n + 1], None).tolist() for n in range(len(ids))]
    assert [[row[n] for row in done].index(True) for n in range(3)] == [len(ids) - 1, 2, 4]
    assert not any(row[3] for row in done)


def test_all_rows_stop_when_the_engine_closes() -> None:
    stop = stop_of([100, 100], [(), ()])
    stop._closing.set()
    assert stop(torch.zeros(2, 1, dtype=torch.long), None).tolist() == [True, True]


def test_roomy_cache_and_cpu_attention_equal_the_library(model: Any) -> None:
    ids = torch.tensor([[7, 8, 9, 10, 11, 12], [0, 0, 20, 21, 22, 23]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    plain, ours = transformers.DynamicCache(config=model.config), roomy_cache(model.config, 9)
    with torch.inference_mode():
        for end in (6, 7, 8, 9):
            step = ids if end == 6 else torch.full((2, 1), 30 + end)
            grown = torch.cat([mask, torch.ones(2, end - 6, dtype=torch.long)], dim=1)
            model.set_attn_implementation("sdpa")
            want = model(input_ids=step, attention_mask=grown, past_key_values=plain).logits[:, -1]
            model.set_attn_implementation(CPU_ATTENTION)
            got = model(input_ids=step, attention_mask=grown, past_key_values=ours).logits[:, -1]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert ours.get_seq_length() == 9


def test_a_repeated_prefix_gives_what_the_whole_prompt_gives(model: Any) -> None:
    prefix, ends = [7, 8, 9, 10], torch.tensor([[11, 12], [13, 14], [15, 16]])
    with torch.inference_mode():
        one = roomy_cache(model.config, 4)
        model(input_ids=torch.tensor([prefix]), past_key_values=one)
        cache = roomy_cache(model.config, 6, one, rows=3)
        got = model(input_ids=ends, past_key_values=cache).logits
        whole = torch.cat([torch.tensor([prefix]).expand(3, -1), ends], dim=1)
        want = model(input_ids=whole).logits[:, 4:]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert one.get_seq_length() == 4, "the prefix itself stays as it was"


def test_a_sliding_window_has_no_plain_cache(model: Any) -> None:
    sliding = transformers.MistralConfig(num_hidden_layers=2, sliding_window=8)
    assert has_plain_cache(model.config)
    assert not has_plain_cache(sliding)


def test_byte_tokenizer_round_trip(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("Grüße, 世界\n").input_ids) == "Grüße, 世界\n"
