"""Results of training, red-teaming and comparison for tests of the report, written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from chain_samples import CONSTITUTION, step, turns
from report_runs import SVG, mean, write_manifest, write_records

from cai.compare.records import (
    Cell,
    Costs,
    Figure,
    HeldOutLabels,
    LabelAgreement,
    Matching,
    PathComparison,
    SideFacts,
    SizePoint,
    Spread,
)
from cai.evaluate.records import Exchange, Opinion, QuestionCheck
from cai.iterate.records import FailedPrinciple, Iteration, Proposal, Round
from cai.records import Usage
from cai.redteam.records import Grades, Rate, RedTeam, RedTeamRecord, TopicCoverage, Written
from cai.statistics import Mean
from cai.train.collapse import CollapseCheck, Flag, ReplyStatistics
from cai.train.evaluation import RewardEvaluation, ScoredPairs, evaluate_rewards
from cai.train.monitor.records import Alert, BestStep, CheckResult, Gap, MonitorReport


def training_run(run: Path, stage: str, *, results: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A training with curves; without `results` it is unfinished and has logged two steps."""
    config = {"model": "smol", "data": [{"path": "runs/label"}], "learning_rate": 0.001}
    write_manifest(run, stage, **{"config": config, "engine": {}, "counts": {"train": 90, "test": 10}, **changes})
    if results is None:
        (run / "metrics.jsonl").write_text('{"loss": 0.7, "step": 1}\n{"loss": 0.625, "step": 2}\n{"loss": 0.', "utf-8")
    else:
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
        (run / "curves.svg").write_text(SVG, encoding="utf-8")
    return run


def reward_evaluation(right: int, wrong: int) -> RewardEvaluation:
    """So many pairs in the right and in the wrong order; both responses are equally long."""
    count = right + wrong
    pairs = ScoredPairs(
        chosen=np.array([1.0] * right + [-1.0] * wrong),
        rejected=np.zeros(count),
        p_chosen=np.ones(count),
        chosen_length=np.full(count, 10.0),
        rejected_length=np.full(count, 10.0),
        clusters=np.arange(count),
        sources=np.full(count, "ai"),
    )
    return evaluate_rewards(pairs, seed=1, name="held.jsonl")


def collapse(*flags: Flag) -> CollapseCheck:
    def replies(median: float) -> ReplyStatistics:
        return ReplyStatistics(
            replies=32, mean_words=20.0, median_words=median, eos_rate=0.75, distinct_1=0.5, distinct_2=0.9,
            repeated_closing=0.25, closing="i hope this helps", repetition=0.0, empty=1,
        )  # fmt: skip

    return CollapseCheck(start=replies(20.0), trained=replies(7.0), flags=flags)


FLAG = Flag(name="repeated_closing", value=0.8, start=0.1, threshold=0.3, sentence="Most replies end alike.")


def monitor() -> MonitorReport:
    alert = Alert(
        name="length", action="stop", since=8, value=90.0, start=30.0, threshold=45.0, reason="Replies grow long."
    )
    check = CheckResult(
        name="length", title="length in tokens", action="stop", value=90.0, start=30.0, threshold=45.0, above=True,
        beyond=True,
        reason="Replies grow long.",
    )  # fmt: skip
    return MonitorReport(
        step=12, responses=64, prompts=16, length_unit="tokens", looks=(), steps=(), checks=(check,), alerts=(alert,),
        past_alerts=(), fit=None, best=BestStep(step=6, reason="its score is the highest"),
        gaps=(Gap(name="gold", reason="no gold scores"),),
    )  # fmt: skip


def ppo_run(run: Path) -> Path:
    training_run(run, "train-ppo", results={"metrics": {"step": 12}, "alerts": [], "best": None})
    (run / "monitor.json").write_text(monitor().model_dump_json(), encoding="utf-8")
    (run / "monitor.svg").write_text(SVG.replace("40", "44"), encoding="utf-8")
    return run


def red_team_run(run: Path, *, auc: Mean | None = None) -> Path:
    """Two strategies; a conversation of two turns that fell, its grade, which stands first, and what wrote it."""
    found = RedTeam(
        model="smol", attacker=None, judge="judge-1", by_phrases=False, threshold=0.5, seed=7, goals=10,
        held_out_goals=("h1", "h2"),
        rates=(
            Rate(strategy=None, topic=None, held_out=None, attacks=20, succeeded=5, rate=mean(0.25, 0.1, 0.45)),
            Rate(strategy=None, topic=None, held_out=True, attacks=4, succeeded=2, rate=mean(0.5, 0.15, 0.85)),
            Rate(strategy="direct", topic=None, held_out=None, attacks=10, succeeded=1, rate=mean(0.1, 0.02, 0.4)),
        ),
        coverage=(TopicCoverage(topic="crime", goals=6, tried=5, fell=3, held_out=1),),
        untried=("war",), unbroken=(), bred=(), principles=(),
        checks=(QuestionCheck(question="harm", auc=auc or mean(0.9, 0.8, 1.0), n=24, off_mass=0.0),),
        unjudged=2, failures={"timeout": 1},
    )  # fmt: skip
    first = Exchange(name="lead 1", messages=turns("May I ask?"), reply=step("You may."))
    second = Exchange(name="ask", messages=turns("May I ask?", "You may.", "How?"), reply=step("Like this."))
    opinion = Opinion(question="harm", exchange="ask", log_odds=0.0, off_mass=0.0, usage=Usage())
    written = Written(step=step("How?"), examples=(), unusable=None)
    about: dict[str, Any] = {"goal": "g", "strategy": "many-turn", "held_out": False}
    write_manifest(run, "red-team")
    (run / "red_team.json").write_text(found.model_dump_json(), encoding="utf-8")
    return write_records(
        run,
        [
            RedTeamRecord(id="grade/many-turn/g", index=1, **about, grades=Grades(harm=(opinion,))),
            RedTeamRecord(id="reply/many-turn/g", index=0, **about, exchanges=(first, second)),
            RedTeamRecord(id="attack/many-turn/g", index=2, **about, written=written),
        ],
    )


def compare_run(run: Path) -> Path:
    """AI labels reach 60%, human labels 70%; the gap's interval is above 0."""
    side = SideFacts(
        path="ai.jsonl", sha256="a" * 64, rows=100, rejects={}, left_out={}, marks={"ai": 100}, merged=0,
        comparisons=100, prompts=100, alone=0,
    )  # fmt: skip
    human = side.model_copy(update={"path": "human.jsonl", "marks": {"human": 100}})

    def figure(value: float) -> Figure:
        return Figure(
            mean=mean(value, value - 0.1, value + 0.1), seeds=Spread(values=(value,), mean=value, deviation=None)
        )

    def cell(side: Any, accuracy: float) -> Cell:
        spread = Spread(values=(0.125,), mean=0.125, deviation=None)
        return Cell(
            trained_on=side, tested_on="human", labels=80, accuracy=figure(accuracy), log_loss=figure(0.65), ece=spread
        )

    found = PathComparison(
        start="smol", start_sha256="s" * 64, seed=7, seeds=(7,),
        matching=Matching(
            ai=side, human=human, test=None, matched=100, matched_prompts=100, in_test=0, unfit={}, shortened=0,
            train=80, train_prompts=80, held_out=20, held_out_prompts=20, held_out_ai=0,
        ),
        agreement=LabelAgreement(
            comparisons=100, prompts=100, human_ties=0, ai_ties=0, agreement=mean(0.77, 0.7, 0.84), ai_longer=None,
            human_longer=None,
        ),
        held_out=(
            HeldOutLabels(
                tested_on="human", pairs=20, prompts=20, ties=0, longer_wins=mean(0.55, 0.4, 0.7),
                gap=mean(0.1, 0.02, 0.18), label_entropy=0.0, human_ceiling=None,
            ),
        ),
        cross=(cell("ai", 0.6), cell("human", 0.7)),
        efficiency=(
            SizePoint(trained_on="ai", labels=80, accuracy=figure(0.6), cost=None),
            SizePoint(trained_on="human", labels=80, accuracy=figure(0.7), cost=None),
        ),
        costs=Costs(ai=None, human=None, currency=None, ai_label=None, human_label=None),
    )  # fmt: skip
    write_manifest(run, "compare", other_files=("comparison.json", "cross.svg"))
    (run / "comparison.json").write_text(found.model_dump_json(), encoding="utf-8")
    (run / "cross.svg").write_text(SVG, encoding="utf-8")
    return run


def iterate_run(run: Path) -> Path:
    """A second round that proposes to add a principle, which stands in the run's constitution."""
    rounds = (
        Round(runs=("a",), figures={"success": mean(0.4, 0.3, 0.5)}, failures=40, prompts=30, dropped={}, proposals=()),
        Round(
            runs=("b",), figures={"success": mean(0.2, 0.1, 0.3)}, failures=20, prompts=9, dropped={"duplicate": 11},
            proposals=(Proposal(principle="no-locks", change="added", reason="Attacks about locks succeed most."),),
        ),
    )  # fmt: skip
    found = Iteration(
        rounds=rounds, principles=(FailedPrinciple(principle="harm", source="red-team", failing=mean(0.6, 0.4, 0.8),
        replies=20),), constitution="two.yaml", notes=("Nobody wrote a principle for the topic war.",),
        prompts=frozenset(), held_out=frozenset(), trained=frozenset(),
    )  # fmt: skip
    write_manifest(run, "iterate")
    (run / "iteration.json").write_text(found.model_dump_json(), encoding="utf-8")
    (run / "constitution.diff").write_text("+  - id: no-locks\n+    text: <b>No locks.</b>\n", encoding="utf-8")
    (run / "constitution.yaml").write_text(CONSTITUTION.replace("name: two", "name: proposed"), encoding="utf-8")
    return run
