"""The card of a policy that PPO trained: README.md beside its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.data.card_parts import escaped, markdown_table
from cai.engines.weights import TRAINED
from cai.journal import write_file
from cai.rundir import Manifest
from cai.train.card import CARD, LICENCE, NOT_HUMAN, arguments, header, how_it_was_trained
from cai.train.card_usage import how_to_use
from cai.train.monitor.records import CANNOT_SEE
from cai.train.ppo.plan import PpoPlan

_ABOUT = (
    "A language model that learned to write replies that a reward rates higher, by proximal policy optimisation "
    "(Schulman et al. 2017, arXiv 1707.06347; Bai et al. 2022, arXiv 2212.08073, section 4), made with `cai train ppo`."
)
_LIMITS = """\
- It was trained to please a reward. A policy that is trained for long enough finds replies that the reward rates too
  high; "What became of it" says what was seen of that.
- Nothing here says that it is harmless, honest or helpful. `cai evaluate` measures it.
"""
_UNWATCHED = "The monitor was left out (`probe.prompts: 0`), so nobody looked for reward hacking.\n"
_FIGURES = (
    ("score", "score"),
    ("kl", "KL from the start, nats a response (k1)"),
    ("length", "length in tokens"),
    ("eos_rate", "share that ends by itself"),
    ("entropy", "entropy, nats a token"),
)


def write_card(out: Path, plan: PpoPlan, results: Mapping[str, Any], manifest: Manifest) -> None:
    """Write the card beside the trained model of a run.

    Raises:
        RunDirError: it cannot be written.
    """
    write_file(out / TRAINED / CARD, render_card(plan, results, manifest))


def render_card(plan: PpoPlan, results: Mapping[str, Any], manifest: Manifest) -> str:
    """Write the card. Text from outside is escaped."""
    sections = {
        "Read this first": _LIMITS + NOT_HUMAN,
        "How it was made": how_it_was_trained(plan, manifest),
        "Prompts and rewards": _inputs(plan),
        "Arguments": arguments(plan),
        "What became of it": _outcome(results),
        "How to use it": how_to_use(plan),
        "Licence": LICENCE,
    }
    parts = [header(plan, "ppo"), f"# Language model trained by PPO, from {escaped(plan.start.name)}\n", f"{_ABOUT}\n"]
    for heading, text in sections.items():
        parts += [f"## {heading}\n", text]
    return "\n".join(parts)


def _inputs(plan: PpoPlan) -> str:
    prompts = (
        (escaped(source.path), f"`{sha256}`")
        for source, sha256 in zip(plan.config.prompts, plan.inputs.values(), strict=True)
    )
    return "\n".join(
        [
            markdown_table(("prompts", "sha256"), prompts),
            markdown_table(("", "prompts"), plan.row_counts.items()),
            markdown_table(
                ("reward", "sha256"), ((escaped(name), f"`{value}`") for name, value in plan.reward_hashes.items())
            ),
        ]
    )


def _outcome(results: Mapping[str, Any]) -> str:
    metrics = results["metrics"]
    rows = [(name, f"{metrics[key]:.4g}") for key, name in _FIGURES if metrics.get(key) is not None]
    ended = "The monitor stopped it." if results["ended_by"] == "alert" else "All steps were taken."
    best = results["best"]
    saved = f"of step {results['saved_step']}" if results["saved_step"] else "the start's, as no step was better"
    parts = [
        f"{ended} Steps: {results['steps']}. The weights are {saved}.\n",
        markdown_table(("at the last step", ""), rows),
        *((_UNWATCHED,) if results["alerts"] is None else _seen(results["alerts"])),
    ]
    if best is not None:
        parts.insert(1, f"The monitor holds step {best['step']} for the best: {escaped(best['reason'])}\n")
    return "\n".join(parts)


def _seen(alerts: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The monitor's alerts, and what it cannot see."""
    said = "".join(f"- **{escaped(alert['reason'])}**\n" for alert in alerts)
    return said or "The monitor raised no alert that still stands.\n", f"{CANNOT_SEE}\n"
