"""The tables of preferences: what a row holds, and how it follows from a label or from a gold choice."""

import json
from collections.abc import Mapping
from typing import Literal

from cai.data.dataset import Row, Table, conversation_chars
from cai.prompting import transcript
from cai.records import TIE, Comparison, Label, Message, stable_seed

LABEL_STUDIO_CONFIG = """\
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="pairwise" toName="response_a,response_b"/>
  <Text name="response_a" value="$response_a"/>
  <Text name="response_b" value="$response_b"/>
</View>
"""
"""The labelling interface that the Label Studio tasks are for."""


class PreferenceRow(Row):
    """Two responses to a prompt; `chosen` is likelier to be the better one. Ties are included, with their p."""

    prompt: tuple[Message, ...]
    """The conversation up to the last user turn."""
    chosen: tuple[Message, ...]
    """The response that is likelier to be the better one, as one assistant message; in an exact tie, drawn."""
    rejected: tuple[Message, ...]
    """The other response, as one assistant message."""
    p_chosen: float
    """Probability that `chosen` is the better one, from 0.5 to 1: the label to learn from. Of people the mean of their
    votes; 1 where all that is known is the order."""
    p_ab: float | None
    """That probability where the judge saw `chosen` first, before any clamp; null where it saw one at a time."""
    p_ba: float | None
    """That probability where the judge saw `chosen` second, before any clamp; null where it saw one at a time."""
    position_flip: float | None
    """Share of the principles by which another response wins in the other order; null where orders do not apply."""
    off_mass: float | None
    """Probability that the judge gave to anything but its options, mean over its answers; null without a judge."""
    principle_ids: tuple[str, ...]
    """Principles that the judge was asked by, or that the two responses follow and oppose; none for human choices."""
    judge_model: str | None
    """Model of the judge; null without one."""
    constitution_sha256: str | None
    """Hash of the constitution's content; null for human choices."""
    seed: int
    """Seed of the run."""
    source: str
    """`ai` (a judge's label), `human` (people's votes, or the choice that came with the data), `contrast` (what the two
    were asked to be) or `revision` (a model's revision and its draft); the last two are nobody's judgement."""
    annotator_id: str | None
    """Who chose, where that is known: a rater's name, or several in alphabetical order with a comma between them."""
    id: str
    """Id of the comparison."""
    prompt_id: str
    """Id of the prompt; all comparisons of a prompt share it."""
    chosen_origin: str
    """Who wrote `chosen`: name of a policy, `draft`, `revision 2`, `follow` …; empty where it is not known."""
    rejected_origin: str
    """Who wrote `rejected`."""
    response_source: str
    """How the two came about: `sampled`, `revision`, `contrast` or `file`."""
    kind: str
    """Kind of the prompt: `red_team` or `helpful`."""
    topic: str | None
    """Topic of the prompt, where the prompt set names one."""

    @property
    def chars(self) -> int:
        return conversation_chars(self.prompt, self.chosen, self.rejected)


class KtoRow(Row):
    """One response that is better (`label` true) or worse than another one. Two rows for each pair that is no tie.

    A response that was compared several times may be in some rows with true and in others with false.
    """

    prompt: tuple[Message, ...]
    """The conversation up to the last user turn."""
    completion: tuple[Message, ...]
    """The response, as one assistant message."""
    label: bool
    """Whether it is the better one of its pair."""
    id: str
    """`<id of the comparison>/chosen` or `…/rejected`."""
    prompt_id: str
    """Id of the prompt."""
    source: str
    """`ai`, `human`, `contrast` or `revision`."""

    @property
    def chars(self) -> int:
        return conversation_chars(self.prompt, self.completion)


class SwarmPreferenceRow(Row):
    """The same pairs, without ties, in the preference columns of llm-swarm's constitutional-ai example.

    Departure: the whole conversation is kept where the original keeps its first human turn.
    """

    prompt: str
    """The last user turn."""
    messages: tuple[Message, ...]
    """The conversation, ending with the better response."""
    chosen: tuple[Message, ...]
    """The same as `messages`."""
    rejected: tuple[Message, ...]
    """The conversation, ending with the other response."""

    @property
    def chars(self) -> int:
        return conversation_chars(self.messages, self.chosen, self.rejected)


PREFERENCES = Table("preferences", PreferenceRow, ("train", "test"))
KTO = Table("kto", KtoRow, ("train", "test"))
SWARM_PREFERENCES = Table("llm_swarm", SwarmPreferenceRow, ("train_prefs", "test_prefs"))
PREFERENCE_TABLES = (PREFERENCES, KTO, SWARM_PREFERENCES)


_UNJUDGED: Mapping[str, None] = dict.fromkeys(("p_ab", "p_ba", "position_flip", "off_mass", "judge_model"))
"""The columns that speak of a judge, where there was none."""


def is_tie(p: float, margin: float) -> bool:
    """Whether a probability is 0.5 or within `margin` of it."""
    return abs(p - 0.5) <= margin + TIE


def ai_row(label: Label) -> PreferenceRow:
    """The row of a judge's label."""
    verdict = label.verdict
    a_chosen = _a_chosen(verdict.p_a, label.seed, label.comparison.id)
    # Where b is chosen, the order in which it was shown first is "ba".
    first, second = (verdict.p_ab, verdict.p_ba) if a_chosen else (_other(verdict.p_ba), _other(verdict.p_ab))
    masses = [judgement.off_mass for judgement in verdict.judgements]
    return _row(
        label.comparison if a_chosen else label.comparison.swap(),
        p_chosen=max(verdict.p_a, 1 - verdict.p_a),
        p_ab=first,
        p_ba=second,
        position_flip=verdict.position_flip,
        off_mass=sum(masses) / len(masses),
        principle_ids=tuple(dict.fromkeys(judgement.principle_id for judgement in verdict.judgements)),
        judge_model=label.model,
        constitution_sha256=label.constitution_sha256,
        seed=label.seed,
        source="ai",
    )


def gold_row(
    comparison: Comparison, seed: int, *, principle_ids: tuple[str, ...] = (), constitution_sha256: str | None = None
) -> PreferenceRow:
    """The row of a comparison with a gold label, which people are taken to have given, unless it is a `contrast`."""
    return _row(
        comparison if comparison.gold == "a" else comparison.swap(),
        **_UNJUDGED,
        p_chosen=1.0,
        principle_ids=principle_ids,
        constitution_sha256=constitution_sha256,
        seed=seed,
        source="contrast" if comparison.source == "contrast" else "human",
    )


def vote_row(
    comparison: Comparison, p_a: float, seed: int, *, annotator_id: str | None, source: Literal["human", "revision"]
) -> PreferenceRow:
    """The row of a comparison of which people say, or the order of a revision, how likely a is the better one."""
    return _row(
        comparison if _a_chosen(p_a, seed, comparison.id) else comparison.swap(),
        **_UNJUDGED,
        p_chosen=max(p_a, 1 - p_a),
        principle_ids=(),
        constitution_sha256=None,
        seed=seed,
        source=source,
        annotator_id=annotator_id,
    )


def kto_rows(row: PreferenceRow) -> tuple[KtoRow, KtoRow]:
    """The two rows of a pair that is no tie."""
    chosen, rejected = (
        KtoRow(
            prompt=row.prompt,
            completion=completion,
            label=label,
            id=f"{row.id}/{'chosen' if label else 'rejected'}",
            prompt_id=row.prompt_id,
            source=row.source,
        )
        for completion, label in ((row.chosen, True), (row.rejected, False))
    )
    return chosen, rejected


def swarm_preference_row(row: PreferenceRow) -> SwarmPreferenceRow:
    """The row of a pair that is no tie."""
    chosen = row.prompt + row.chosen
    return SwarmPreferenceRow(
        prompt=row.prompt[-1].content, messages=chosen, chosen=chosen, rejected=row.prompt + row.rejected
    )


def label_studio_task(label: Label, margin: float) -> str:
    """A task for `LABEL_STUDIO_CONFIG` as JSON on one line, with the label as prediction; a tie predicts nothing."""
    comparison, p_a = label.comparison, label.verdict.p_a
    choice = {
        "from_name": "pairwise",
        "to_name": "pairwise",
        "type": "pairwise",
        "value": {"selected": "left" if p_a > 0.5 else "right"},
    }
    prediction = {"model_version": label.model, "score": max(p_a, 1 - p_a), "result": [choice]}
    task = {"data": task_data(comparison), "predictions": [] if is_tie(p_a, margin) else [prediction]}
    return json.dumps(task, ensure_ascii=False)


def task_data(comparison: Comparison) -> Mapping[str, object]:
    """What a Label Studio task shows; `messages` is the conversation as it is, which its transcript is not quite."""
    return {
        "id": comparison.id,
        "prompt": transcript(comparison.prompt.messages).strip(),
        "messages": [message.model_dump() for message in comparison.prompt.messages],
        "response_a": comparison.a.text,
        "response_b": comparison.b.text,
    }


def _row(better_first: Comparison, **columns: object) -> PreferenceRow:
    """The row of a comparison whose response a is the better one."""
    chosen, rejected, prompt = better_first.a, better_first.b, better_first.prompt
    return PreferenceRow.model_validate(
        {"annotator_id": None}
        | columns
        | {
            "prompt": prompt.messages,
            "chosen": (Message(role="assistant", content=chosen.text),),
            "rejected": (Message(role="assistant", content=rejected.text),),
            "id": better_first.id,
            "prompt_id": prompt.id,
            "chosen_origin": chosen.origin,
            "rejected_origin": rejected.origin,
            "response_source": better_first.source,
            "kind": prompt.kind,
            "topic": prompt.topic,
        }
    )


def _a_chosen(p_a: float, seed: int, id_: str) -> bool:
    """Whether response a is the likelier one; drawn in an exact tie."""
    return stable_seed(seed, "tie", id_) % 2 == 0 if is_tie(p_a, 0) else p_a > 0.5


def _other(p: float | None) -> float | None:
    return None if p is None else 1 - p
