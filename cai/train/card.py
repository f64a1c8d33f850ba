"""The card of a trained model: README.md beside the weights, with what made it and what it is known to be worth."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cai.data.card_parts import RunFacts, by_reason, escaped, how_made, markdown_table, most_first
from cai.engines.weights import DEFAULT_HUB_ID, DEFAULT_MODEL, TRAINED
from cai.journal import write_file
from cai.rundir import Manifest
from cai.statistics import Mean, percent
from cai.train.card_usage import how_to_use, is_adapter
from cai.train.collapse import CollapseCheck, brief_rows
from cai.train.config import Kind, RewardConfig, TrainConfig
from cai.train.evaluation import RewardEvaluation, SourceEvaluation
from cai.train.models import Start
from cai.train.precision import trains_in_bf16
from cai.train.reward_model import MEMBER

if TYPE_CHECKING:  # it loads TRL, which PPO does without
    from cai.train.plan import Plan

CARD = "README.md"

_TITLES: Mapping[Kind, str] = {
    "sft": "Language model fine-tuned on conversations",
    "reward": "Reward model",
    "dpo": "Language model trained on preferences",
}
_ABOUT: Mapping[Kind, str] = {
    "sft": "A language model that learned to reply as a set of conversations does (Constitutional AI, Bai et al. 2022, "
    "arXiv 2212.08073, section 3), made with `cai train sft`.",
    "reward": "A model that gives a conversation's last reply a number, fitted to the probabilities with which one of "
    "two replies is the better one (RLAIF, Lee et al. 2023, arXiv 2309.00267), made with `cai train reward`.",
    "dpo": "A language model that learned from pairs of replies which one is likelier to be the better one (direct "
    "preference optimisation, Rafailov et al. 2023, arXiv 2305.18290), made with `cai train dpo`.",
}
_TAGS: Mapping[Kind, str] = {"sft": "sft", "reward": "reward-model", "dpo": "dpo"}
_LIMITS: Mapping[Kind, str] = {
    "reward": """\
- Only the difference of two rewards of one prompt has a meaning: its logistic function is the probability that the one
  reply is the better one. Rewards of replies to different prompts were never compared.
- It knows replies like those it was trained on. A policy that is trained against it finds others, which it rates too
  high; watch the distance from the start of that policy.
""",
    "sft": """\
- It was trained on a model's replies where the table of sources says so, so it has the faults of that model.
- Nothing here says that it is harmless, honest or helpful. `cai evaluate` measures it.
""",
    "dpo": """\
- Nothing here says that it is harmless, honest or helpful. `cai evaluate` measures it.
- DPO lowers the probability of the worse replies and often that of the better ones too; what takes their place was not
  in the data.
""",
}
NOT_HUMAN = """\
- **The labels of a model or of a method are not human preferences.** `human` labels are people's; all others are not.
- **The data may be offensive or harmful**, since many prompts ask for harmful things.
"""
LICENCE = """\
No licence is granted here. The terms of the start and of the data apply; check both before you share the model.
"""
_INTERVALS = """\
Intervals are of 95%, by a bootstrap over prompts. Chance is {chance:.0%}, and the log loss of equal rewards is \
{loss:.3f}.
"""
_OFFSET = """\
`reward_offset` in config.json is {offset:.6g}: the mean raw reward of {number:,} reference answers ({answers}). Take \
it off the model's output, so that these answers average 0; differences do not change.
"""
_BESIDE = "`manifest.json` in the run's directory holds the whole configuration."
_NOT_ARGUMENTS = frozenset({"model", "adapter", "data", "eval_data", "reference", "prompts"})


def write_model_cards(out: Path, plan: "Plan[Any, Any]", results: Mapping[str, Any], manifest: Manifest) -> None:
    """Write README.md into the folder of the trained model below `out`, of an ensemble into that of each member.

    Raises:
        RunDirError: a file cannot be written.
    """
    members = _members(plan)
    folders = [out] if members == 1 else [out / f"{MEMBER}{number}" for number in range(members)]
    for member, folder in enumerate(folders):
        path = folder / TRAINED / CARD
        write_file(path, render_model_card(plan, results, manifest, member))


def render_model_card(plan: "Plan[Any, Any]", results: Mapping[str, Any], manifest: Manifest, member: int = 0) -> str:
    """Write the card of a model, or of one member of an ensemble. Text from outside is escaped."""
    kind = plan.kind
    title = f"{_TITLES[kind]}, from {plan.start.name}"
    about = _ABOUT[kind]
    if (members := _members(plan)) > 1:
        about += f" It is member {member} of an ensemble of {members}, which differ by their seeds."
    sections = {
        "Read this first": _LIMITS[kind] + NOT_HUMAN,
        "How it was made": how_it_was_trained(plan, manifest, member),
        "Data": _data(plan),
        "Arguments": arguments(plan),
        **(_worth(plan, results, member) if kind == "reward" else {"Collapse check": _collapse(results)}),
        "How to use it": how_to_use(plan),
        "Licence": LICENCE,
    }
    parts = [header(plan, _TAGS[kind]), f"# {escaped(title)}\n", f"{about}\n"]
    for heading, text in sections.items():
        parts += [f"## {heading}\n", text]
    return "\n".join(parts)


def _members(plan: "Plan[Any, Any]") -> int:
    return plan.config.ensemble if isinstance(plan.config, RewardConfig) else 1


def header(plan: Any, tag: str) -> str:
    """The YAML header of the card of a planned training's model.

    A start that lies in a folder has no name on the hub, so none is given.
    """
    base = _hub_id(plan.start)
    found = {
        **({} if base is None else {"base_model": base}),
        "library_name": "peft" if is_adapter(plan) else "transformers",
        "tags": ["constitutional-ai", "rlaif", tag],
    }
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True)}---\n"


def _hub_id(start: Start) -> str | None:
    if start.name == DEFAULT_MODEL:
        return DEFAULT_HUB_ID
    return None if Path(start.weights.base).is_dir() else start.weights.base


def how_it_was_trained(plan: Any, manifest: Manifest, member: int = 0) -> str:
    """What a planned training started from, and by which command and versions it ran."""
    start, versions = plan.start, dict(manifest.versions)
    run = RunFacts(
        title="",
        command=shlex.join(manifest.command),
        cai_version=versions.pop("cai"),
        created=manifest.created,
        failures={},
        rejects={},
    )
    base = {} if start.weights.base == start.name else {"base model of the start": start.weights.base}
    adapter = {} if start.weights.adapter is None else {"adapter of the start": str(start.weights.adapter)}
    rows = {
        "start": start.name,
        **base,
        **adapter,
        "sha256 of the start": start.sha256,
        "sha256 of the chat template": plan.hashes["chat template"],
        "seed": str(plan.config.seed + member),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return how_made(run, rows, _BESIDE)


def _data(plan: "Plan[Any, Any]") -> str:
    """Sources, who gave the labels, and rows that are not used."""
    sources = plan.rows.sources
    head = ("source", "for", "rows read", "rows used", "asked for", "sha256")
    listed = (
        (
            escaped(source.path),
            "held-out rows" if source.for_test else "training",
            source.rows,
            source.used,
            _asked(source.weight, source.ratio),
            f"`{source.sha256}`",
        )
        for source in sources
    )
    train, test = (Counter(row.source for row in split.items) for split in (plan.train, plan.test))
    givers = ((f"`{name}`", train[name], test[name]) for name, _ in most_first(train + test))
    what = "replies are" if plan.kind == "sft" else "labels are from"
    constitutions = sorted({sha256 for source in sources for sha256 in source.constitution_sha256s})
    return "\n".join(
        [
            markdown_table(head, listed),
            markdown_table((what, "training", "held out"), givers),
            _constitutions(constitutions),
            markdown_table(("", "rows"), _unused(plan)),
        ]
    )


def _asked(weight: float | None, ratio: float | None) -> str:
    asked = [f"{name} {value:g}" for name, value in (("weight", weight), ("ratio", ratio)) if value is not None]
    return ", ".join(asked) or "–"


def _constitutions(hashes: list[str]) -> str:
    if not hashes:
        return "The rows name no constitution.\n"
    return "sha256 of the constitutions that rows name: " + ", ".join(f"`{escaped(name)}`" for name in hashes) + "\n"


def _unused(plan: "Plan[Any, Any]") -> Iterator[tuple[str, int]]:
    """Rows that are used, those that are not by reason, and those that are used with a change."""
    rows = plan.rows
    rejects, notes = Counter[str](), Counter[str]()
    for source in rows.sources:
        rejects.update(source.rejects)
        notes.update(source.notes)
    fitted = {reason: number for reason, number in plan.counts.items() if reason != "shortened"}
    yield "trained on", len(plan.train.items)
    yield "held out", len(plan.test.items)
    yield "cannot be used", len(rows.rejects)
    yield from by_reason("rejected", rejects)
    yield from by_reason("left out", {name: number for name, number in {**rows.left_out, **fitted}.items() if number})
    yield "lost their oldest turns to fit", plan.counts.get("shortened", 0)
    yield "repeat an earlier training row", rows.duplicates
    yield from by_reason("odd, and used", notes)
    yield "asked for by a ratio, and not there", sum(source.missing for source in rows.sources)


def arguments(plan: Any) -> str:
    """All arguments of a planned training; those that are not the default's are bold."""
    config: TrainConfig = plan.config
    chosen = {"max_length": plan.start.max_length, "bf16": trains_in_bf16(config)}
    rows = []
    for name, value in config.model_dump(mode="json", exclude=set(_NOT_ARGUMENTS)).items():
        usual = getattr(config, name) == type(config).model_fields[name].get_default(call_default_factory=True)
        shown = escaped(json.dumps(chosen.get(name, value) if value is None else value, ensure_ascii=False))
        rows.append((f"`{name}`", shown) if usual else (f"**`{name}`**", f"**{shown}**"))
    notes = "".join(f"- {escaped(note)}\n" for note in plan.notes)
    table = markdown_table(("argument", "value"), rows)
    return "\n".join(["Bold ones are not the default.\n", table, *([notes] if notes else [])])


def _worth(plan: "Plan[Any, Any]", results: Mapping[str, Any], member: int) -> dict[str, str]:
    """What a reward model's rewards are worth on held-out pairs, and where their zero is."""
    answers = "better responses of training pairs" if plan.config.reference is None else plan.config.reference.path
    offset = _OFFSET.format(
        offset=results["offsets"][member], number=len(plan.reference.rows), answers=escaped(answers)
    )
    if results["evaluation"] is None:
        return {"Evaluation": "**Not measured.** No pair was held out.\n", "Offset": offset}
    whole = RewardEvaluation.model_validate(results["evaluation"])
    if not results["members"]:
        return {"Evaluation": _evaluation(whole), "Offset": offset}
    own = RewardEvaluation.model_validate(results["members"][member])
    return {
        "Evaluation": _evaluation(own),
        "Evaluation of the ensemble, by the mean of its rewards": _evaluation(whole),
        "Offset": offset,
    }


def _evaluation(evaluation: RewardEvaluation) -> str:
    head = ("labels", "pairs", "accuracy", "the longer one wins", "better than that by", "mean margin")
    losses = ("log loss", "least possible", "calibration error")
    table = markdown_table((*head, *losses), (_evaluated(source) for source in evaluation.sources))
    text = [f"On pairs of {escaped(evaluation.name)} that were held out:\n", table]
    text.append(_INTERVALS.format(chance=evaluation.chance, loss=evaluation.chance_log_loss))
    doubts = [f"- {sentence}\n" for source in evaluation.sources for sentence in _doubts(source)]
    if doubts:
        text.append("".join(doubts))
    if evaluation.human_ceiling is not None:
        text.append(f"What people reach: {escaped(evaluation.human_ceiling)}\n")
    return "\n".join(text)


def _evaluated(source: SourceEvaluation) -> tuple[str | int, ...]:
    shares = (source.accuracy, source.longer_wins, source.gain)
    return (
        f"`{source.source}`",
        source.pairs,
        *("–" if share is None else percent(share) for share in shares),
        _number(source.margin),
        _number(source.log_loss),
        f"{source.label_entropy:.3f}",
        f"{source.ece:.3f}",
    )


def _number(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    if math.isinf(mean.high):
        return f"{mean.value:.3f} (no interval)"
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def _doubts(source: SourceEvaluation) -> Iterator[str]:
    """What the intervals do not show."""
    if not source.beats_chance:
        yield f"**`{source.source}` labels: not shown to be better than a coin.**"
    if not source.beats_length:
        yield f"**`{source.source}` labels: not shown to be better than taking the longer reply.**"


def _collapse(results: Mapping[str, Any]) -> str:
    """The trained model's replies beside those of its start."""
    if results["collapse"] is None:
        return "**Not checked.** The replies of this model were not looked at.\n"
    check = CollapseCheck.model_validate(results["collapse"])
    flags = "".join(f"- **{escaped(flag.sentence)}**\n" for flag in check.flags) or "Nothing suggests a collapse.\n"
    failures = markdown_table(("left out for both", "prompts"), by_reason("failed", check.failures))
    return "\n".join(
        [
            markdown_table(("replies to prompts that were not trained on", "start", "this model"), brief_rows(check)),
            flags,
            *([failures] if check.failures else []),
            f"{check.cannot_see}\n",
        ]
    )
