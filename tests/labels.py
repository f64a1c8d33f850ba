"""Labels and certificates for tests, with figures that are known by construction."""

from collections.abc import Mapping, Sequence
from typing import Any

from chain_samples import turns

from cai.feedback.certificate import Certificate, GoldSet, JudgeIdentity, certify
from cai.records import Comparison, Judgement, Label, Prompt, Response, Side, Usage, Verdict


def judgement(
    p_a: float, order: Any = None, principle_id: str = "harm", off_mass: float = 0.0, usage: Usage | None = None
) -> Judgement:
    return Judgement(
        protocol="pairwise" if order else "pointwise",
        principle_id=principle_id,
        order=order,
        p_a=p_a,
        off_mass=off_mass,
        usage=usage or Usage(),
    )


def both(p_ab: float, p_ba: float, principle_id: str = "harm") -> tuple[Judgement, ...]:
    """The judgements of both orders."""
    return judgement(p_ab, "ab", principle_id), judgement(p_ba, "ba", principle_id)


def label(
    id: int | str,
    *judgements: Judgement,
    p_a: float | None = None,
    prompt: Sequence[str] = (),
    a: str = "Text A.",
    b: str = "Text B.",
    gold: Side | None = "a",
    topic: str | None = None,
) -> Label:
    """A label; its p_a is the mean of the judgements', its prompt one of its own, where others are not given."""
    mean = sum(one.p_a for one in judgements) / len(judgements)
    return Label(
        id=str(id),
        index=0,
        comparison=Comparison(
            id=str(id),
            prompt=Prompt(id=f"p-{id}", messages=turns(*(prompt or [f"Question {id}?"])), topic=topic),
            a=Response(text=a, origin="small"),
            b=Response(text=b, origin="large"),
            source="sampled",
            gold=gold,
        ),
        verdict=Verdict(p_a=mean if p_a is None else p_a, judgements=judgements),
        constitution_sha256="c" * 64,
        templates_sha256="t" * 64,
        model="judge",
        seed=7,
    )


def judge(**changes: object) -> JudgeIdentity:
    known: dict[str, Any] = {
        "engine": "transformers",
        "model": "tiny",
        "adapter": None,
        "dtype": "float32",
        "settings": {"protocol": ["pairwise"], "layout": "principle-last", "cot": False, "scale": 1.0},
        "principle_ids": ("harm", "honesty"),
        "constitution_sha256": "c" * 64,
        "templates_sha256": "t" * 64,
    }
    return JudgeIdentity.model_validate(known | changes)


def certificate(
    labels: Sequence[Label],
    *,
    failures: Mapping[str, int] | None = None,
    seconds: float = 10.0,
    name: str = "planted",
    created: str = "2026-11-21T10:00:00+00:00",
    **changes: object,
) -> Certificate:
    return certify(
        labels,
        judge=judge(**changes),
        gold_set=GoldSet(name=name, sha256="s" * 64, rows=len(labels)),
        fitted_scale=None,
        failures=failures or {},
        seconds=seconds,
        seed=1,
        created=created,
    )


def right_and_wrong(right: int, wrong: int, p: float = 0.7) -> list[Label]:
    """Labels of one prompt each; the gold side alternates, and both responses are equally long."""
    sides: tuple[Side, Side] = ("a", "b")
    return [
        label(number, judgement(p if (number < right) == (sides[number % 2] == "a") else 1 - p), gold=sides[number % 2])
        for number in range(right + wrong)
    ]
