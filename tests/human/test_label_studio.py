"""Ratings to Label Studio and back: the same votes; and exports of people who worked there."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from chain_samples import rows
from pydantic import ValidationError
from rating_samples import comparison
from test_votes import rating

from cai.data.preference_tables import LABEL_STUDIO_CONFIG
from cai.errors import DataError
from cai.human.importing import ImportConfig, ImportInputs, import_preferences, load_import
from cai.human.label_studio import RATING_CONFIG, rating_task
from cai.human.records import Answer
from cai.human.votes import human_label, rating_votes
from cai.prompting import transcript
from cai.records import Message


def read(path: Path, content: object, **config: Any) -> ImportInputs:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return load_import(ImportConfig.model_validate({"format": "label-studio", "path": str(path)} | config))


def annotation(selected: object = "left", **more: Any) -> dict[str, Any]:
    """An annotation as Label Studio exports it."""
    result = {"id": "x1", "from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": selected}}
    return {"id": 1, "completed_by": 7, "result": [result], "was_cancelled": False, "lead_time": 4.2} | more


def task(*annotations: object, **data: Any) -> dict[str, Any]:
    known = {"prompt": "How do I pick a lock?", "response_a": "With a pin.", "response_b": "Ask a locksmith."}
    return {"id": 5, "data": known | data, "annotations": list(annotations)}


def p_a(inputs: ImportInputs) -> list[float]:
    return [label.p_a for label in inputs.labels.values()]


# Ours, there and back


def test_ratings_come_back_as_the_same_votes(tmp_path: Path) -> None:
    draw = random.Random(0)
    asked = [comparison(f"c{n}", a=f"One {n}, “quoted”\n<b>", b=f"Two {n}") for n in range(60)]
    ratings = {
        one.id: [
            rating(one.id, name, draw.choice(get_args(Answer))).model_copy(update={"comment": draw.choice(["", "hm"])})
            for name in draw.sample(["ann", "bea", "cy, the third"], draw.randint(0, 3))
        ]
        for one in asked
    }
    tasks = ",\n".join(rating_task(one, ratings[one.id]) for one in asked)
    inputs = read(tmp_path / "tasks.json", f"[\n{tasks}\n]\n", slight=0.7)
    flat = [one for these in ratings.values() for one in these]
    expected = [human_label(votes) for _, votes in rating_votes(flat, slight=0.7).items()]
    found = list(inputs.labels.values())
    assert [label.model_dump(exclude={"p_a"}) for label in found] == [
        label.model_dump(exclude={"p_a"}) for label in expected
    ]
    assert [label.p_a for label in found] == pytest.approx([label.p_a for label in expected], abs=1e-12)
    assert {label.votes for label in found} == {1, 2, 3}
    assert inputs.no_votes == {
        "both_bad": sum(one.answer == "both_bad" for one in flat),
        "cancelled": sum(one.answer == "skipped" for one in flat),
        "unrated": sum(not these for these in ratings.values()),
    }
    assert min(inputs.no_votes.values()) > 3


def test_a_task_holds_what_label_studio_takes() -> None:
    one = comparison("c", prompt=("Hello", "Hi", "More?"))
    rated = [rating("c", "mo", "rather_b").model_copy(update={"comment": "Hm."}), rating("c", "bea", "skipped")]
    made = json.loads(rating_task(one, rated))
    assert made["data"] == {
        "id": "c",
        "prompt": "Human: Hello\n\nAssistant: Hi\n\nHuman: More?\n\nAssistant:",
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "More?"},
        ],
        "response_a": "Text A.",
        "response_b": "Text B.",
    }
    mo, bea = made["annotations"]
    # Label Studio refuses a `completed_by` that it does not know.
    assert mo.keys() == bea.keys() == {"result", "was_cancelled", "lead_time"}
    assert mo["result"] == [
        {"from_name": "rater", "to_name": "prompt", "type": "textarea", "value": {"text": ["mo"]}},
        {"from_name": "pairwise", "to_name": "pairwise", "type": "pairwise", "value": {"selected": "right"}},
        {"from_name": "strength", "to_name": "prompt", "type": "choices", "value": {"choices": ["slightly better"]}},
        {"from_name": "comment", "to_name": "prompt", "type": "textarea", "value": {"text": ["Hm."]}},
    ]
    assert (mo["was_cancelled"], bea["was_cancelled"], mo["lead_time"]) == (False, True, 2.0)
    for name in {result["from_name"] for result in mo["result"]}:
        assert f'name="{name}"' in RATING_CONFIG
    assert "small" not in json.dumps(made)  # who wrote a response is no business of an annotator


def test_the_interfaces_ask_for_the_keys_of_a_task() -> None:
    for config in (RATING_CONFIG, LABEL_STUDIO_CONFIG):
        for key in ("$prompt", "$response_a", "$response_b"):
            assert f'value="{key}"' in config


# People who worked there


def test_the_selected_side_is_the_vote_of_whoever_completed_the_annotation(tmp_path: Path) -> None:
    inputs = read(
        tmp_path / "export.json",
        [
            task(annotation("left"), annotation("right", completed_by=8), annotation("left", completed_by=9)),
            task(annotation("right", completed_by={"id": 3, "email": "mo@example.org"}), prompt="Another?"),
        ],
    )
    first, second = inputs.labels.values()
    assert (first.p_a, first.raters, first.disputed) == (pytest.approx(2 / 3), ("7", "8", "9"), True)
    assert (second.p_a, second.raters) == (0.0, ("mo@example.org",))


def test_what_is_no_vote_is_counted_by_its_reason(tmp_path: Path) -> None:
    marked = annotation("left", completed_by=2)
    marked["result"].append({"from_name": "strength", "type": "choices", "value": {"choices": ["both bad"]}})
    inputs = read(
        tmp_path / "export.json",
        [
            task(annotation("left"), annotation("right", was_cancelled=True)) | {"predictions": [annotation("right")]},
            task(marked, annotation("none", completed_by=3), annotation(completed_by=4, result=[]), prompt="Q2?"),
            task(prompt="Q3?") | {"predictions": [{"result": []}, {"result": []}], "drafts": [annotation()]},
            task(prompt="Q4?") | {"annotations": None},
        ],
    )
    assert p_a(inputs) == [1.0]
    assert inputs.no_votes == {
        "cancelled": 1,
        "prediction": 3,
        "both_bad": 1,
        "no_choice": 2,
        "draft": 1,
        "unrated": 2,
    }
    assert (inputs.unvoted, inputs.rows, inputs.rejects) == (3, 11, ())


def test_rejects_name_the_task_and_the_reason(tmp_path: Path) -> None:
    lost = annotation()
    lost["result"][0]["value"] = None
    twice = annotation(completed_by=1)
    twice["result"] *= 2
    content = [
        task(annotation("left")),
        "no task",
        {"prompt": "Flat", "pairwise": "left"},
        task(annotation(), response_b=None),
        task(annotation("middle"), annotation("right", completed_by=8), prompt="Q5?"),
        task(lost, twice, "no annotation", prompt="Q6?"),
        task(annotation("left"), annotation("right"), prompt="Q7?"),
        {"id": 1, "data": {"prompt": "Q8?", "response_a": "One."}, "annotations": [annotation()]},
        task(annotation(), prompt="Q9?") | {"annotations": {"a": 1}},
    ]
    inputs = read(tmp_path / "export.json", content)
    assert [(reject.row, reject.reason) for reject in inputs.rejects] == [
        (2, "not_an_object"),
        (3, "not_a_task"),
        (4, "missing_response"),
        (5, "unknown_preference"),
        (6, "bad_annotation"),
        (6, "bad_annotation"),
        (6, "bad_annotation"),
        (7, "duplicate_vote"),
        (8, "missing_column"),
        (9, "bad_annotation"),
    ]
    assert "`selected` is 'middle'; known: left, right" in inputs.rejects[3].message
    assert "only `prompt`, `response_a`; did you mean `response_a`" in inputs.rejects[8].message
    assert "`cai import pairs`" in inputs.rejects[1].message
    assert p_a(inputs) == [1.0, 0.0, 1.0]


def test_annotations_without_a_name_are_of_different_people(tmp_path: Path) -> None:
    unnamed = [annotation(side, completed_by=None) for side in ("left", "left", "right")]
    inputs = read(tmp_path / "export.json", [task(*unnamed)])
    [label] = inputs.labels.values()
    assert (label.p_a, label.votes, label.raters) == (pytest.approx(2 / 3), 3, ())


def test_the_text_field_of_the_task_names_the_rater_before_the_importing_person(tmp_path: Path) -> None:
    named = annotation()
    named["result"].append({"from_name": "rater", "type": "textarea", "value": {"text": ["mo"]}})
    blank = annotation(completed_by=8)
    blank["result"].append({"from_name": "rater", "type": "textarea", "value": {"text": [" "]}})
    inputs = read(tmp_path / "export.json", [task(named, blank)])
    assert next(iter(inputs.labels.values())).raters == ("8", "mo")


def test_other_keys_of_the_data_can_be_named_and_wrong_ones_are_one_clear_error(tmp_path: Path) -> None:
    other = [{"data": {"q": "Why?", "one": "Because.", "two": "No."}, "annotations": [annotation("right")]}]
    named = {"prompt": "q", "response_a": "one", "response_b": "two"}
    assert p_a(read(tmp_path / "export.json", other, columns=named)) == [0.0]
    with pytest.raises(DataError, match=r"no row can be used \(1 missing_column\).*has no column `three`, only `q`,"):
        read(tmp_path / "export.json", other, columns=named | {"response_b": "three"})
    with pytest.raises(ValidationError, match=r"`columns\.chosen` has no effect on the format"):
        read(tmp_path / "export.json", other, columns={"chosen": "one"})


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    "messages",
    [
        conversation(("user", "Hello")),
        conversation(("user", "Hello"), ("assistant", "Hi"), ("user", "More?")),
        conversation(("system", "Be kind."), ("user", "Hello")),
    ],
    ids=["one turn", "three turns", "system"],
)
def test_the_conversation_of_our_tasks_is_read_turn_by_turn(
    messages: Sequence[Mapping[str, str]], tmp_path: Path
) -> None:
    read_ = [Message.model_validate(message) for message in messages]
    data = {"prompt": transcript(read_).strip(), "messages": messages}
    path = tmp_path / "export.json"
    assert prompt_of(read(path, [task(annotation(), **data)])) == read_
    if messages[0]["role"] == "user":  # a task of an earlier version, without `messages`
        assert prompt_of(read(path, [task(annotation(), prompt=data["prompt"])])) == read_


def prompt_of(inputs: ImportInputs) -> list[Message]:
    run = Path(inputs.config.path).with_suffix(".run")
    import_preferences(inputs, run, overwrite=True)
    [row] = rows(run, "preferences")
    return [Message.model_validate(message) for message in row["prompt"]]
