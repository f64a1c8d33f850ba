"""The monitor at work in a PPO run: held-out prompts are answered now and then, and alerts are acted on."""

from pathlib import Path

import numpy as np

from cai.records import stable_seed
from cai.statistics import Floats
from cai.train.monitor.files import read_run, write_report
from cai.train.monitor.looking import best_step, look
from cai.train.monitor.records import MonitorReport, ProbeSample
from cai.train.ppo.checkpoint import PpoState
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.rewards import RewardSource
from cai.train.ppo.trainer import PpoTrainer

RAISED, LOWERED = 1.5, 0.5
"""Factors of β and of the learning rate, for each look with an alert that asks for it."""


def probe(trainer: PpoTrainer, gold: RewardSource | None) -> list[ProbeSample]:
    """Responses of the policy as it is now to all held-out prompts, scored by what it is trained on and by gold.

    Each response draws from the same random numbers at every look, so that looks differ by the policy alone.
    """
    config, step = trainer.config, trainer.state.step
    prompts = [prompt for prompt in trainer.plan.held for _ in range(config.probe.samples)]
    seeds = [stable_seed(config.seed, "probe", place) for place in range(len(prompts))]
    rollouts = trainer.roll_out(prompts, seeds)
    golden = None if gold is None else gold.score([prompt.messages for prompt in prompts], rollouts.responses).scores
    mask = rollouts.texts.response_mask
    sums = [(values * mask).sum(-1).tolist() for values in (rollouts.logprobs, rollouts.ref_logprobs)]
    return [
        ProbeSample(
            step=step,
            prompt_id=prompt.id,
            prompt=prompt.messages,
            response=rollouts.responses[row],
            score=_number(rollouts.scored.scores, row),
            gold=_number(golden, row),
            variance=_number(rollouts.scored.variance, row),
            tokens=tokens,
            ended=rollouts.ended[row],
            logprob=sums[0][row],
            ref_logprob=sums[1][row],
        )
        for row, (prompt, tokens) in enumerate(zip(prompts, mask.sum(-1).tolist(), strict=True))
    ]


def watch(out: Path, config: PpoConfig) -> MonitorReport:
    """Look at all that a run has written down so far, and write what is found beside it."""
    found = read_run(out)
    report = look(found.metrics, found.samples, config.monitor)
    write_report(report, out)
    return report


def react(state: PpoState, report: MonitorReport) -> tuple[PpoState, list[str]]:
    """Do what the alerts ask for: the state to go on with, and what was changed in words."""
    asked = {alert.action for alert in report.alerts}
    if "stop" in asked:
        return state.model_copy(update={"stopped": True}), []
    done = []
    if "raise_kl_coef" in asked and state.kl_coef:
        state = state.model_copy(update={"kl_coef": state.kl_coef * RAISED})
        done.append(f"β is raised to {state.kl_coef:.3g}")
    elif "raise_kl_coef" in asked:
        done.append("β is 0, and stays so")
    if "lower_learning_rate" in asked:
        state = state.model_copy(update={"learning_rate_factor": state.learning_rate_factor * LOWERED})
        done.append(f"the learning rate is lowered to {state.learning_rate_factor:.3g} of what was planned")
    return state, done


def worth_keeping(report: MonitorReport, looks_in_a_row: int) -> set[int]:
    """Steps of the best policy, and of those that may turn out to be: an alert that stops a run begins looks earlier,
    and what came after that does not count."""
    ends = range(max(0, len(report.looks) - looks_in_a_row), len(report.looks) + 1)
    found = [report.best, *(best_step(report.looks[:end], (), ()) for end in ends)]
    return {best.step for best in found if best is not None}


def _number(values: Floats | None, row: int) -> float | None:
    return None if values is None or not np.isfinite(values[row]) else float(values[row])
