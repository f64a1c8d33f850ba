"""The collapse check: figures by hand, planted collapses, thresholds from both sides, and prompts that are held out."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_samples import turns
from rich.console import Console
from tiny_model import save_tiny_model

from cai.config import EngineConfig
from cai.engines.scripted import Script, ScriptedEngine
from cai.errors import EngineError, StageError
from cai.records import Failure, FinishReason, Generation, Message, Sampling, Usage
from cai.train.collapse import (
    CollapseCheck,
    ReplyStatistics,
    check_collapse,
    closing,
    compare,
    generate_replies,
    held_prompts,
    measure_replies,
    render_collapse,
    write_collapse,
)


def reply(text: str, finish_reason: FinishReason = "stop") -> Generation:
    return Generation(text=text, finish_reason=finish_reason, usage=Usage())


def test_figures_are_those_counted_by_hand() -> None:
    found = measure_replies(
        [
            reply("The cat sat. You matter!"),  # 5 words, 4 pairs
            reply("the  CAT ran.\nYOU   matter!"),  # 5 words, 4 pairs: the cat, you matter! again
            reply("a b c d a b c d a", "length"),  # 9 words, 8 pairs of 4 kinds, 6 fours of 4 kinds
            reply(" \n"),
        ]
    )
    assert found == ReplyStatistics(
        replies=4,
        mean_words=19 / 4,
        median_words=5,
        eos_rate=3 / 4,
        distinct_1=10 / 19,  # the cat sat. you matter! ran. a b c d
        distinct_2=10 / 16,  # 4 of the first reply, 2 more of the second, 4 of the third
        repeated_closing=2 / 4,
        closing="you matter!",
        repetition=(0 + 0 + 2 / 6 + 0) / 4,
        empty=1,
    )


def test_replies_without_words_have_no_variety_and_no_closing() -> None:
    found = measure_replies([reply(""), reply(" ")])
    assert (found.distinct_1, found.distinct_2, found.repetition, found.median_words) == (0, 0, 0, 0)
    assert (found.repeated_closing, found.closing, found.empty) == (0, "", 2)


def test_a_closing_counts_from_its_second_time_on() -> None:
    once = measure_replies([reply("One. Farewell."), reply("Two. Good luck."), reply("Three. Take care.")])
    assert (once.repeated_closing, once.closing) == (0, "")
    twice = measure_replies([reply("One. Farewell."), reply("Two. Good luck."), reply("Three. Good  LUCK.")])
    assert (twice.repeated_closing, twice.closing) == (pytest.approx(2 / 3), "good luck.")


def test_pairs_and_fours_do_not_reach_over_the_end_of_a_reply() -> None:
    found = measure_replies([reply("a b"), reply("b a")])  # pairs: ab, ba; with the end crossed there were bb too
    assert found.distinct_2 == 1
    assert measure_replies([reply("a b c d"), reply("a b c d")]).repetition == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One thing. Stay safe!", "stay safe!"),
        ("One thing.  Stay\n safe!  ", "stay safe!"),
        ('He said no. "You are loved."', '"you are loved."'),
        ('He said "no." You are loved.', "you are loved."),
        ("It costs 3.50 a day.", "it costs 3.50 a day."),
        ("Ask anything! 😊💖", "😊💖"),
        ("there is no end to these words it seems", "end to these words it seems"),
        ("A sentence. And one that was cut before its very own last word", "before its very own last word"),
        ("A sentence. **Be kind!**", "**be kind!**"),
        ("好的。祝你好运！", "祝你好运！"),
        ("他说：“好的。祝你好运！”", "祝你好运！”"),
        ("Wait… what?", "what?"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_closing_is_the_last_sentence_or_the_last_six_words(text: str, expected: str) -> None:
    assert closing(text) == expected


SOUND = ReplyStatistics(
    replies=32,
    mean_words=41.5,
    median_words=40,
    eos_rate=0.7,
    distinct_1=0.4,
    distinct_2=0.8,
    repeated_closing=0.1,
    closing="good luck.",
    repetition=0.05,
    empty=2,
)


def flags(**changes: Any) -> list[str]:
    return [flag.name for flag in compare(SOUND, SOUND.model_copy(update=changes)).flags]


@pytest.mark.parametrize(
    ("field", "sound", "beyond"),
    [
        ("repeated_closing", 0.3, 0.31),  # 0.1 + 0.2
        ("distinct_2", 0.48, 0.47),  # 0.6 × 0.8
        ("eos_rate", 0.5, 0.49),  # 0.7 - 0.2
        ("median_words", 80, 80.5),
        ("median_words", 20, 19.5),
        ("repetition", 0.2, 0.21),
        ("empty", 6, 7),  # of 32: 2 and a further eighth, which is 4
    ],
)
def test_each_figure_is_flagged_beyond_its_threshold_and_not_on_it(field: str, sound: float, beyond: float) -> None:
    assert flags(**{field: sound}) == []
    check = compare(SOUND, SOUND.model_copy(update={field: beyond}))
    (flag,) = check.flags
    as_shown = {"empty": 32}.get(field, 1)
    assert flag.name == field
    assert (flag.value, flag.start) == (beyond / as_shown, getattr(SOUND, field) / as_shown)
    assert flag.threshold == pytest.approx(sound / as_shown)


def test_a_threshold_is_not_moved_by_floating_point() -> None:
    alike = SOUND.model_copy(update={"repeated_closing": 0.7, "eos_rate": 0.8})
    assert compare(alike, alike.model_copy(update={"repeated_closing": 0.9})).flags == ()  # 0.7 + 0.2 < 0.9 in floats
    assert compare(alike, alike.model_copy(update={"eos_rate": 0.6})).flags == ()  # 0.8 - 0.2 > 0.6 in floats


@pytest.mark.parametrize(
    "change",
    [
        {"repeated_closing": 0, "closing": ""},
        {"distinct_2": 1},
        {"eos_rate": 1},
        {"repetition": 0},
        {"empty": 0},
        {"distinct_1": 0.01},
        {"mean_words": 400},
    ],
)
def test_no_flag_where_a_figure_gets_better_or_is_no_sign(change: dict[str, Any]) -> None:
    assert flags(**change) == []


def test_a_flag_says_what_was_seen() -> None:
    seen = SOUND.model_copy(update={"repeated_closing": 0.5, "closing": "you are valid.", "empty": 9})
    sentences = [flag.sentence for flag in compare(SOUND, seen).flags]
    assert sentences == [
        "50% of its replies end with “you are valid.”.",
        "9 of its 32 replies are empty, 2 of 32 were.",
    ]


def test_shares_of_different_numbers_of_replies_are_compared() -> None:
    half = SOUND.model_copy(update={"replies": 16, "empty": 4})
    assert [flag.name for flag in compare(SOUND, half).flags] == ["empty"]  # 4/16 against 2/32
    assert compare(half, SOUND).flags == ()


def varied(number: int) -> str:
    """Prose whose words and end hardly occur in the others."""
    return " ".join(f"word{number}x{place}" for place in range(20)) + "."


def test_planted_collapses_are_told_apart() -> None:
    sound = measure_replies([reply(varied(number)) for number in range(32)])
    valid = measure_replies(
        [reply(varied(number) + (" You are valid and cared for." if number % 2 else "")) for number in range(32)]
    )
    circles = measure_replies([reply((f"go{number} on and " * 8).strip(), "length") for number in range(32)])
    silent = measure_replies([reply(varied(number) if number > 5 else "") for number in range(32)])
    assert compare(sound, sound).flags == ()
    assert [flag.name for flag in compare(sound, valid).flags] == ["repeated_closing"]
    assert {flag.name for flag in compare(sound, circles).flags} == {"eos_rate", "repetition", "distinct_2"}
    assert [flag.name for flag in compare(sound, silent).flags] == ["empty"]


# Replies


def engine(*answers: dict[str, Any]) -> ScriptedEngine:
    return ScriptedEngine(Script.model_validate({"answers": list(answers)}))


PROMPTS = [turns("One?"), turns("Two?"), turns("Three?")]


def replies(
    of: ScriptedEngine, prompts: Sequence[tuple[Message, ...]] = PROMPTS, seed: int = 5
) -> list[Generation | Failure]:
    return asyncio.run(generate_replies(of, prompts, Sampling(max_tokens=9), seed=seed))


def texts(found: Sequence[Generation | Failure]) -> list[str]:
    return [one.reason if isinstance(one, Failure) else one.text for one in found]


def test_replies_keep_the_order_of_prompts_and_failures_their_place() -> None:
    of = engine({"when": "Two", "fail": "timeout"}, {"say": "To {request}"})
    assert texts(replies(of)) == ["To One?", "timeout", "To Three?"]


def test_each_prompt_has_a_seed_of_its_own_whatever_else_is_asked() -> None:
    of = engine({"say": "{seed}"})
    seeds = texts(replies(of))
    assert len(set(seeds)) == 3
    assert texts(replies(of, PROMPTS[::-1])) == seeds[::-1]
    assert texts(replies(of, seed=6)) != seeds


def test_an_engine_that_fails_ends_the_check() -> None:
    with pytest.raises(EngineError):
        replies(engine({"when": "Two", "fail": "engine"}, {"say": "Yes."}))


def scripted(path: Path, *answers: dict[str, Any]) -> EngineConfig:
    path.write_text(yaml.safe_dump({"answers": list(answers)}), encoding="utf-8")
    return EngineConfig(engine="scripted", script=path)


def checked(start: EngineConfig, trained: EngineConfig, notes: list[str] | None = None) -> CollapseCheck:
    return check_collapse(start, trained, PROMPTS, seed=3, note=[].append if notes is None else notes.append)


def test_a_collapsed_model_is_flagged_and_a_prompt_without_reply_left_out_for_both(tmp_path: Path) -> None:
    start = scripted(tmp_path / "a", {"when": "Two", "fail": "timeout"}, {"say": "Reply {seed} to {request}"})
    trained = scripted(
        tmp_path / "b", {"when": "Three", "fail": "context_overflow"}, {"say": "Because {request} Be well."}
    )
    notes: list[str] = []
    check = checked(start, trained, notes)
    assert check.failures == {"timeout": 1, "context_overflow": 1}
    assert (check.start.replies, check.trained.replies) == (1, 1)
    assert check.trained.median_words == 4  # Because One? Be well.
    assert [("start" in note, "trained" in note, "3 prompts" in note) for note in notes] == [
        (True, False, True),
        (False, True, True),
    ]
    again = checked(scripted(tmp_path / "c", {"say": "Reply {seed} to {request}"}), trained)
    assert [flag.name for flag in again.flags] == ["repeated_closing"]
    assert (again.trained.closing, again.trained.replies, again.failures) == ("be well.", 2, {"context_overflow": 1})
    assert all(pair.start.startswith("Reply ") and "be well." in pair.trained.lower() for pair in again.replies)


def test_no_common_reply_is_an_error_that_says_why(tmp_path: Path) -> None:
    start = scripted(tmp_path / "a", {"when": "One", "say": "Yes."}, {"when": "T", "fail": "timeout"})
    trained = scripted(tmp_path / "b", {"when": "One", "fail": "server_error"}, {"say": "Yes."})
    with pytest.raises(StageError, match=r"no prompt was answered by both models.*the script fails this request"):
        checked(start, trained)


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    config = EngineConfig(model=str(save_tiny_model(tmp_path)), device="cpu", dtype="float32")
    check = check_collapse(config, config, PROMPTS, max_tokens=12, seed=3, note=[].append)
    assert check.start == check.trained
    assert check.flags == ()
    assert check.start.replies == 3
    assert [pair.prompt for pair in check.replies] == list(PROMPTS)
    assert all(pair.start == pair.trained != "" for pair in check.replies)
    other = check_collapse(config, config, PROMPTS, max_tokens=12, seed=4, note=[].append)
    assert other.start != check.start  # sampled, not the most likely reply


# Prompts


def test_held_out_prompts_come_first_and_shipped_ones_fill_up() -> None:
    held = [turns(f"Held {number}?") for number in range(5)]
    few = held_prompts(held, [], 3, seed=1)
    assert few.sources == {"held out": 3}
    assert set(few.prompts) < set(held)
    more = held_prompts(held, [], 12, seed=1)
    assert set(more.prompts[:5]) == set(held)
    assert len(set(more.prompts)) == 12
    assert more.sources["held out"] == 5
    assert more.sources["helpful"] + more.sources["red-team"] == 7
    assert held_prompts(held, [], 12, seed=1) == more
    assert held_prompts(held, [], 12, seed=2).prompts != more.prompts


def test_no_prompt_that_was_trained_on_is_drawn() -> None:
    system = Message(role="system", content="Be kind.")
    everything = held_prompts([], [], 10_000, seed=0)
    assert everything.sources == {"helpful": 70, "red-team": 148}
    trained_on = [(system, *prompt) for prompt in everything.prompts[:200]]
    held = [turns("Known?"), turns("New?"), (system, *turns("New?")), (system, *turns("Known?"))]
    found = held_prompts(held, [*trained_on, turns("Known?")], 10_000, seed=0)
    assert found.sources["held out"] == 1
    assert found.prompts[0] in (held[1], held[2])
    assert set(found.prompts[1:]) == set(everything.prompts[200:])


def test_shipped_sets_are_not_mistaken_for_files_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpful").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(held_prompts([], [], 4, seed=0).prompts) == 4


# Files and tables


def shown(check: CollapseCheck) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render_collapse(check))
    return capture.get()


def test_the_check_is_written_and_read_back(tmp_path: Path) -> None:
    check = compare(SOUND, SOUND.model_copy(update={"repetition": 0.9}))
    write_collapse(check, tmp_path)
    text = (tmp_path / "collapse.json").read_text(encoding="utf-8")
    assert CollapseCheck.model_validate_json(text) == check
    assert "refusals" in json.loads(text)["cannot_see"]


def test_the_table_shows_both_models_flags_failures_and_limits() -> None:
    collapsed = SOUND.model_copy(update={"repeated_closing": 0.75, "closing": "be\x1b[2Jwell."})
    check = compare(SOUND, collapsed).model_copy(update={"failures": {"timeout": 2}})
    text = shown(check)
    assert ["share", "a", "closing", "10%", "75%"] in [line.split() for line in text.splitlines()]
    assert "75% of its replies end with “be␛[2Jwell.”" in text
    assert "2 timeout" in text
    assert "cai evaluate" in text
    clean = shown(compare(SOUND, SOUND))
    assert "Nothing suggests a collapse." in clean
    assert "timeout" not in clean
