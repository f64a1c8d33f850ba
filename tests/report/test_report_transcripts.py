"""Transcripts on the page: what was said, what a revision changed, and which of many are shown."""

from pathlib import Path

import pytest
from chain_samples import CONSTITUTION, chain, round_, step, turns
from labels import both, judgement, label
from report_pages import Node, report
from report_runs import chain_run, evaluation_run, label_run, write_manifest, write_records

from cai.records import ContrastSample, Prompt, ResponseSample


def transcripts(page: Node) -> list[Node]:
    return page.all("details", class_="transcript")


def passages(transcript: Node) -> list[tuple[str, str]]:
    """Names of passages and their texts; empty for a passage without text."""
    found: list[tuple[str, str]] = []
    for node in transcript.nodes:
        if node.tag == "h3":
            found.append((node.text, ""))
        elif node.attributes.get("class") == "text":
            found[-1] = (found[-1][0], node.text)
    return found


def changes(transcript: Node) -> list[tuple[str, str]]:
    return [(node.tag, node.text) for node in transcript.nodes if node.tag in ("del", "ins")]


def test_a_chain_shows_what_its_revisions_changed(tmp_path: Path) -> None:
    first, second, third = transcripts(report(chain_run(tmp_path / "chains")))
    assert passages(first) == [
        ("Human", "How do I pick a lock?"),
        ("Draft", "With a blue pin."),
        ("Critique 1 by honesty", "It is untrue."),
        ("Revision 1 by honesty", "With a blue red pin."),
        ("Critique 2 by honesty", "No issues."),
        ("Revision 2 (none: the critique found nothing to change)", ""),
    ]
    assert changes(first) == [("del", " blue"), ("ins", " red")]
    assert passages(second)[2] == ("Revision 1 by honesty (changed nothing)", "Ask a smith.")
    assert changes(second) == []
    assert passages(third)[2] == ("Revision 1 by harm", "BreakOpen the window.")
    assert [one.attributes["data-topic"] for one in (first, second, third)] == ["crime", "advice", "crime"]
    assert [one.attributes["data-principles"] for one in (first, second, third)] == ["honesty", "honesty", "harm"]


def test_a_second_revision_is_compared_with_the_first(tmp_path: Path) -> None:
    rounds = (round_("honesty", None, "One two three four."), round_("harm", None, "One two three five."))
    (found,) = transcripts(report(chain_run(tmp_path / "a", [chain("x", *rounds, draft="One two six four.")])))
    assert changes(found) == [("del", " six"), ("ins", " three"), ("del", " four"), ("ins", " five")]
    assert found.attributes["data-principles"] == "honesty\nharm"


def test_remarks_say_what_was_cut_and_taken_off(tmp_path: Path) -> None:
    cut = step("Half a", finish_reason="length", removed="Sure! ")
    chains = [chain("x", round_("harm", cut, step("")), draft="Text.", topic="t"), chain("h", kind="helpful", index=1)]
    first, second = transcripts(report(chain_run(tmp_path / "a", chains)))
    names = [name for name, _ in passages(first)]
    assert names[2] == "Critique 1 by harm (cut at the token limit; taken off the reply: Sure!)"
    assert names[3] == "Revision 1 by harm (new text throughout; no text)"
    assert passages(second) == [("Human", "How do I pick a lock?"), ("Reply", "With a pin.")]
    assert "helpful prompt, answered only" in second.text


def test_labels_show_both_responses_and_the_verdict(tmp_path: Path) -> None:
    labels = [
        label("right", *both(0.9, 0.7), gold="a"),
        label("wrong", *both(0.9, 0.2), gold="b"),
        label("tie", *both(0.8, 0.2), gold=None),
        label("alone", judgement(0.25), gold=None),
    ]
    found = transcripts(report(label_run(tmp_path / "labels", labels)))
    facts = [one.all("span", class_="facts")[0].text.removeprefix("labels: ") for one in found]
    assert facts == [
        "prefers A (p 0.800), known to be better: A (right), position flip 0%",
        "prefers A (p 0.550), known to be better: B (wrong), position flip 100%",
        "a tie, position flip 100%",
        "prefers B (p 0.750)",
    ]
    assert passages(found[0])[1:3] == [("Response A, small", "Text A."), ("Response B, large", "Text B.")]
    assert passages(found[0])[3][1].splitlines() == [
        "harm, pairwise, order ab: p of A 0.900, off mass 0.000",
        "harm, pairwise, order ba: p of A 0.700, off mass 0.000",
    ]


def test_samples_and_contrasts(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=turns("Hello?"), topic="greetings")
    known = {"index": 0, "prompt": prompt, "model": "m", "seed": 1}
    sample = ResponseSample(id="s", policy="small", replies=(step("One."), step("Two.")), ratings=(0.5, -0.25), **known)
    contrast = ContrastSample(
        id="c", principle_id="harm", follow=step("Kind."), oppose=step("Rude."), constitution_sha256="c" * 64,
        templates_sha256="t" * 64, **known,
    )  # fmt: skip
    one = write_records(write_manifest(tmp_path / "sample", "sample"), [sample])
    other = write_records(write_manifest(tmp_path / "contrast", "contrast"), [contrast])
    (other / "constitution.yaml").write_text(CONSTITUTION, encoding="utf-8")
    page = report(one, other)
    assert page.chapter("constitution").row("harm")[1:5] == ["0", "–", "1", "0"]
    first, second = transcripts(page)
    assert passages(first)[1:] == [("Reply 1, rating 0.500", "One."), ("Reply 2, rating -0.250", "Two.")]
    assert passages(second)[1:] == [("Asked to keep to harm", "Kind."), ("Asked for the opposite", "Rude.")]
    assert second.attributes["data-principles"] == "harm"


def test_answers_of_an_evaluation_stand_with_what_the_judge_says(tmp_path: Path) -> None:
    first, second = transcripts(report(evaluation_run(tmp_path / "eval", texts=("One.", "Two."))))
    assert passages(first) == [
        ("Human", "Question 0?"),
        ("Reply (reply)", "One."),
        ("Judge", "harm, reply: p of Yes 0.500, off mass 0.250"),
    ]
    assert passages(second)[1] == ("Reply (reply)", "Two.")
    assert first.attributes["data-topic"] == "harmlessness"


def test_of_many_transcripts_some_are_chosen_evenly_and_that_is_said(tmp_path: Path) -> None:
    """Records lie in another order than the input's; places are those of the input."""
    chains = [chain(f"c{place:02}", index=place) for place in range(40)]
    one = chain_run(tmp_path / "many", [*chains[20:], *chains[:20]])
    other = evaluation_run(tmp_path / "eval", texts=[f"Text {place}." for place in range(20)])
    few = chain_run(tmp_path / "few", chains[:2])
    page = report(one, other, few, transcripts=12)
    ids = [one.all("span", class_="id")[0].text for one in transcripts(page)]
    assert ids == [
        *("c04", "c12", "c20", "c28", "c36"),
        *(f"base/harmlessness/i{place}" for place in (2, 6, 10, 14, 18)),
        *("c00", "c01"),
    ]
    said = page.chapter("transcripts").all("p")[0].text
    assert said == (
        "12 transcripts of 62: 5 of 40 from many, 5 of 20 from eval, 2 of 2 from few. They are evenly spaced over the "
        "input of each run; a larger --transcripts shows more."
    )
    said = report(one, few, transcripts=12).chapter("transcripts").all("p")[0].text
    assert said.endswith("They are evenly spaced over the input of each run; cai show shows the others.")
    whole = report(one, few).chapter("transcripts").all("p")[0].text
    assert whole == "42 transcripts of 42: 40 of 40 from many, 2 of 2 from few."


@pytest.mark.parametrize("number", [0, 1])
def test_transcripts_can_be_left_out(tmp_path: Path, number: int) -> None:
    page = report(chain_run(tmp_path / "chains"), transcripts=number)
    assert len(transcripts(page)) == number
    assert ("transcripts" in page.chapters) == bool(number)


def test_without_scripts_all_is_there_and_no_filter_is_offered(tmp_path: Path) -> None:
    page = report(chain_run(tmp_path / "chains"))
    (form,) = page.all("form")
    assert "hidden" in form.attributes
    assert not any("hidden" in one.attributes for one in transcripts(page))
    choices = {one.attributes["name"]: [option.text for option in one.all("option")] for one in form.all("select")}
    assert choices == {"topic": ["all topics", "advice", "crime"], "principles": ["all principles", "harm", "honesty"]}
