"""`cai show` for runs of label, judge-check, sample and contrast."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from chain_samples import CONSTITUTION, chain, step, turns
from click.testing import CliRunner, Result
from labels import both, judgement, label

from cai.cli.show import show
from cai.errors import CaiError, ConfigError, RunDirError
from cai.records import (
    ContrastSample,
    Judgement,
    Label,
    Prompt,
    Response,
    ResponseSample,
    Side,
    StageResult,
    Step,
    Usage,
)
from cai.rundir import RunDir

QUESTION = """\
  - id: brief
    question: Is the reply too long to be read about {{ topic }}?
"""


def write_run(path: Path, stage: str, records: Sequence[StageResult]) -> Path:
    """A run as a stage leaves it when it is stopped."""
    with RunDir.open(path, stage=stage, config={}, inputs={}, seed=7) as run:
        for record in records:
            run.append(record, Usage())
    (path / "constitution.yaml").write_text(CONSTITUTION + QUESTION, encoding="utf-8")
    return path


def run_show(*args: object, columns: int = 80) -> Result:
    result = CliRunner().invoke(show, [str(arg) for arg in args], env={"COLUMNS": str(columns)})
    if isinstance(result.exception, CaiError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def lines(result: Result) -> list[str]:
    return [line.rstrip() for line in result.stdout.splitlines() if line.strip()]


def ids(result: Result) -> list[str]:
    return [line.split()[0] for line in lines(result) if "═" in line]


def judged(p_a: float, gold: Side | None, number: int = 0) -> Label:
    return label(f"c{number}", judgement(p_a), gold=gold).model_copy(update={"index": number})


def verdict_line(folder: Path, one: Label) -> str:
    shown = lines(run_show(write_run(folder, "label", [one])))
    return shown[shown.index("Verdict") + 1]


def alone(principle_id: str, p_a: float, value_a: float, value_b: float, *rationales: Step) -> Judgement:
    """A judgement about one response at a time."""
    return judgement(p_a, off_mass=0.03125).model_copy(
        update={"principle_id": principle_id, "value_a": value_a, "value_b": value_b, "rationales": rationales}
    )


def sampled(id: str, *replies: str | Step, index: int = 0, ratings: tuple[float, ...] = ()) -> ResponseSample:
    return ResponseSample(
        id=id,
        index=index,
        prompt=Prompt(id=id, messages=turns("Hello", "Hi!", "How do I pick a lock?"), topic="theft"),
        policy="policy",
        replies=tuple(step(reply) if isinstance(reply, str) else reply for reply in replies),
        ratings=ratings,
        model="tiny-model",
        seed=7,
    )


def contrasted(principle_id: str) -> ContrastSample:
    return ContrastSample(
        id=f"lock/{principle_id}",
        index=0,
        prompt=Prompt(id="lock", messages=turns("How do I pick a lock?"), topic="theft"),
        principle_id=principle_id,
        follow=step("Call a locksmith.", "length"),
        oppose=step("With a bent pin.", removed="Sure!"),
        constitution_sha256="c" * 64,
        templates_sha256="t" * 64,
        model="tiny-model",
        seed=7,
    )


@pytest.mark.parametrize("stage", ["label", "judge-check"])
def test_a_label_shows_both_responses_the_verdict_and_every_judgement(tmp_path: Path, stage: str) -> None:
    one = label(
        "c4",
        judgement(0.2, "ab", off_mass=0.125).model_copy(update={"rationales": (step("The second is safer."),)}),
        judgement(0.7, "ba", off_mass=0.25).model_copy(update={"rationales": (step("Hm, the other.", "length"),)}),
        alone("honesty", 0.0996, -1.5, 0.7004, step("It is vague."), step("It is clear.")),
        gold="b",
        a="With a pin.",
        b="Call a locksmith.",
        prompt=("How do I pick a lock?",),
        topic="theft",
    )
    shown = lines(run_show(write_run(tmp_path, stage, [one])))
    assert shown[0].startswith("c4 · theft · judge judge ═")
    assert shown[1:] == [
        "Human",
        "How do I pick a lock?",
        "Response A · small",
        "With a pin.",
        "Response B · large",
        "Call a locksmith.",
        "Verdict",
        "The judge prefers B (p = 0.667) · gold label B: right · position flip 100%",
        "principle  protocol   order    p_a  off mass  value_a  value_b",
        "harm       pairwise   ab     0.200     0.125        –        –",
        "harm       pairwise   ba     0.700     0.250        –        –",
        "honesty    pointwise  –      0.100     0.031   -1.500    0.700",
        "Reasoning · harm · order ab",
        "The second is safer.",
        "Reasoning · harm · order ba (cut at max tokens)",
        "Hm, the other.",
        "Reasoning · honesty · about A",
        "It is vague.",
        "Reasoning · honesty · about B",
        "It is clear.",
    ]


@pytest.mark.parametrize(
    ("p_a", "gold", "expected"),
    [
        (0.75, "a", "The judge prefers A (p = 0.750) · gold label A: right"),
        (0.75, "b", "The judge prefers A (p = 0.750) · gold label B: wrong"),
        (0.25, "a", "The judge prefers B (p = 0.750) · gold label A: wrong"),
        (0.25, None, "The judge prefers B (p = 0.750)"),
        (0.5 + 1e-16, "b", "The judge finds them equally good · gold label B: a tie"),
        (0.5, None, "The judge finds them equally good"),
    ],
)
def test_the_verdict_names_the_preferred_side_and_compares_it_with_gold(
    tmp_path: Path, p_a: float, gold: Side | None, expected: str
) -> None:
    assert verdict_line(tmp_path, judged(p_a, gold)) == expected


@pytest.mark.parametrize(
    ("in_order", "swapped", "flip"), [(0.9, 0.8, "0%"), (0.9, 0.1, "100%"), (0.1, 0.2, "0%"), (0.1, 0.6, "100%")]
)
def test_position_flips_are_said_where_there_are_two_orders(
    tmp_path: Path, in_order: float, swapped: float, flip: str
) -> None:
    one = label("c", *both(in_order, swapped), gold=None)
    assert verdict_line(tmp_path, one).endswith(f" · position flip {flip}")


@pytest.mark.parametrize(("columns", "beside"), [(99, False), (100, True), (160, True)])
def test_two_replies_stand_side_by_side_where_there_is_room(tmp_path: Path, columns: int, beside: bool) -> None:
    one = label("c", judgement(0.6), a="Left one.")
    comparison = one.comparison.model_copy(update={"b": Response(text="Right one.")})
    one = one.model_copy(update={"comparison": comparison})
    for stage, record, heads, texts in (
        ("label", one, ("Response A · small", "Response B"), ("Left one.", "Right one.")),
        (
            "contrast",
            contrasted("harm"),
            ("Asked to keep to it (cut at max tokens)", "Asked for the opposite"),
            ("Call a locksmith.", "With a bent pin."),
        ),
    ):
        shown = lines(run_show(write_run(tmp_path / stage, stage, [record]), columns=columns))
        for left, right in (heads, texts):
            assert any(line.startswith(left) and line.endswith(right) for line in shown) is beside
            assert (left in shown and right in shown) is not beside
        assert ("(removed: Sure!)" in " ".join(shown)) is (stage == "contrast")
        assert max(map(len, shown)) <= columns


def test_a_sample_shows_all_replies_with_their_ratings(tmp_path: Path) -> None:
    replies = (step("With a pin.", "length", removed="Sure!"), "", "Call a locksmith.")
    shown = lines(run_show(write_run(tmp_path, "sample", [sampled("lock-1", *replies, ratings=(0.25, -1.0, 0.0625))])))
    assert shown[0].startswith("lock-1 · theft · tiny-model ═")
    assert shown[1:] == [
        *("Human", "Hello", "Assistant", "Hi!", "Human", "How do I pick a lock?"),
        *("Reply 1 · rating 0.250 (cut at max tokens)", "(removed: Sure!)", "With a pin."),
        *("Reply 2 · rating -1.000", "(no text)"),
        *("Reply 3 · rating 0.062", "Call a locksmith."),
    ]


def test_a_sample_without_ratings_shows_none(tmp_path: Path) -> None:
    shown = lines(run_show(write_run(tmp_path, "sample", [sampled("lock-1", "With a pin.", "No.")])))
    assert shown[-4:] == ["Reply 1", "With a pin.", "Reply 2", "No."]


@pytest.mark.parametrize(
    ("principle", "sentence"),
    [
        ("harm", "The reply harms nobody."),
        ("brief", "Is the reply too long to be read about theft? (The answer must be no.)"),
    ],
)
def test_a_contrast_shows_the_principle_above_the_two_replies(tmp_path: Path, principle: str, sentence: str) -> None:
    shown = lines(run_show(write_run(tmp_path, "contrast", [contrasted(principle)])))
    assert shown[0].startswith(f"lock/{principle} · theft · tiny-model ═")
    assert shown[1:] == [
        *("Human", "How do I pick a lock?"),
        *(f"Principle · {principle}", sentence),
        *("Asked to keep to it (cut at max tokens)", "Call a locksmith."),
        *("Asked for the opposite", "(removed: Sure!)", "With a bent pin."),
    ]


def test_wrong_shows_only_labels_where_the_judge_disagrees_with_gold(tmp_path: Path) -> None:
    cases: list[tuple[float, Side | None]] = [
        (0.9, "a"),
        (0.9, "b"),
        (0.5, "b"),
        (0.1, None),
        (0.1, "a"),
        (0.1, "b"),
        (0.6, "b"),
    ]
    run = write_run(tmp_path, "judge-check", [judged(p, gold, n) for n, (p, gold) in enumerate(cases)])
    assert ids(run_show(run, "--wrong")) == ["c1", "c4", "c6"]
    some = run_show(run, "--wrong", "--limit", 2)
    assert ids(some) == ["c1", "c4"]
    assert f"Next: cai show {run} c6, or a larger --limit." in some.stdout
    assert ids(run_show(run, "--limit", 9)) == [f"c{n}" for n in range(7)]


def test_wrong_says_so_where_the_judge_is_right_throughout(tmp_path: Path) -> None:
    run = write_run(tmp_path, "label", [judged(0.9, "a"), judged(0.5, "a", 1), judged(0.9, None, 2)])
    assert lines(run_show(run, "--wrong")) == ["The judge disagrees with no gold label."]


def test_wrong_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    labels = write_run(tmp_path / "labels", "label", [judged(0.9, None)])
    with pytest.raises(ConfigError, match=r"no finished label of .*labels has a gold label"):
        run_show(labels, "--wrong")
    with pytest.raises(ConfigError, match="--wrong chooses what to show, and so does an ID"):
        run_show(labels, "c0", "--wrong")
    samples = write_run(tmp_path / "samples", "sample", [sampled("p", "Yes.", "No.")])
    with pytest.raises(ConfigError, match=r"--wrong is for runs of label and judge-check, and .* is one of sample"):
        run_show(samples, "--wrong")


def test_records_are_found_by_id_in_runs_of_every_stage(tmp_path: Path) -> None:
    labels = write_run(tmp_path / "labels", "label", [judged(0.9, "a", n) for n in (3, 12, 1)])
    assert ids(run_show(labels)) == ["c1", "c3", "c12"]
    assert ids(run_show(labels, "c3")) == ["c3"]
    assert ids(run_show(labels, "c1")) == ["c1"]
    with pytest.raises(ConfigError, match=r"several labels of .* starts with 'c' \(c1, c3, c12\)"):
        run_show(labels, "c")
    samples = write_run(tmp_path / "samples", "sample", [sampled("big/p1", "Yes.", "No.")])
    assert ids(run_show(samples, "big")) == ["big/p1"]
    with pytest.raises(ConfigError, match=r"no finished sample with the id 'bog/p1'; did you mean big/p1\?"):
        run_show(samples, "bog/p1")


def test_a_run_of_critique_revise_with_its_manifest_shows_chains(tmp_path: Path) -> None:
    assert ids(run_show(write_run(tmp_path, "critique-revise", [chain("lock-1")]))) == ["lock-1"]


def test_a_stage_without_transcripts_is_one_clear_error(tmp_path: Path) -> None:
    run = write_run(tmp_path, "reward", [])
    known = "critique-revise, sample, contrast, label, judge-check"
    with pytest.raises(RunDirError, match=f"is a run of reward, which has no transcripts; .* reads runs of {known}$"):
        run_show(run)


@pytest.mark.parametrize("stage", ["evaluate", "red-team"])
def test_who_looks_for_transcripts_that_are_on_pages_alone_is_told_where_they_are(stage: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stage, [])
    with pytest.raises(
        RunDirError, match=f"is a run of {stage}, whose transcripts `cai report .*run` shows; `cai show"
    ):
        run_show(run)


@pytest.mark.parametrize(("stage", "noun"), [("judge-check", "label"), ("sample", "sample"), ("contrast", "contrast")])
def test_a_run_without_records_says_what_it_lacks(tmp_path: Path, stage: str, noun: str) -> None:
    run = write_run(tmp_path, stage, [])
    with pytest.raises(RunDirError, match=f"has no finished {noun} yet"):
        run_show(run)


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, "label", [judged(0.9, "a")])
    with (run / "records.jsonl").open("a", encoding="utf-8") as file:
        file.write(judged(0.9, "a", 1).model_dump_json()[:-9])
    result = run_show(run)
    assert ids(result) == ["c0"]
    assert "half-written" in result.stderr


EVIL = "[bold red]a[/] :smile: \x1b]0;title\x07 \x9b2J \r\x08 \u202egpj \u2028"
SAFE = "[bold red]a[/] :smile: ␛]0;title␇ ⟨U+009B⟩2J ␍␈ ⟨U+202E⟩gpj ⟨U+2028⟩"


@pytest.mark.parametrize("columns", [90, 150])
def test_no_text_can_drive_the_terminal_or_be_read_as_markup(tmp_path: Path, columns: int) -> None:
    bad = label(
        "c",
        alone("[red]gone\x1b", 0.9, 1.0, 2.0, step(EVIL + " thought")),
        prompt=(EVIL + " prompt",),
        a=EVIL + " left",
        b=EVIL + " right",
        topic="\x1btopic",
    )
    origin = Response(text=EVIL + " left", origin="[b]\x1borigin")
    bad = bad.model_copy(update={"comparison": bad.comparison.model_copy(update={"a": origin})})
    replies = sampled("s", EVIL + " reply", step("No.", removed=EVIL + " cut"))
    opposed = contrasted("harm").model_copy(update={"follow": step(EVIL + " follow")})
    runs = [
        write_run(tmp_path / stage, stage, [record])
        for stage, record in (("label", bad), ("sample", replies), ("contrast", opposed))
    ]
    printed = "\n".join(run_show(run, columns=columns).stdout for run in runs)
    assert not [character for character in printed if not character.isprintable() and character != "\n"]
    seen = " ".join(printed.split())
    ends = ["thought", "prompt", "reply", "cut"] + (["left", "right", "follow"] if columns < 100 else [])
    assert [end for end in ends if f"{SAFE} {end}" not in seen] == []
    assert seen.count("[bold red]a[/] :smile:") == 7
    for expected in ("[red]gone␛ pointwise", "[red]gone␛ · about A", "␛topic", "Response A · [b]␛origin"):
        assert expected in seen
