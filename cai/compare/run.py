"""The stage `compare`: two preference data sets in, one page out.

manifest.json     what was asked and by which versions, hashes of model and data, state, counts, timings
rejects.jsonl     rows of the sources that cannot be used, with the reason
pairs/, models/   see `compare.training`
comparison.json   all figures, see `compare.records`
comparison.html   one page with tables and plots; comparison.md has the same text
cross.svg, efficiency.svg, cost.svg   the plots by themselves
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from rich.console import Console

from cai.compare.config import CompareConfig
from cai.compare.costs import find_costs
from cai.compare.drawing import FIGURES, draw_figures
from cai.compare.matching import Pairs, read_pairs, subset_sizes
from cai.compare.measuring import agreement, cross_table, held_out_labels, label_efficiency
from cai.compare.page import render_html, render_markdown
from cai.compare.records import Costs, PathComparison
from cai.compare.report import report
from cai.compare.training import MODELS, PAIRS, ModelAsked, models_asked, train_models
from cai.data.demonstration_source import read_demonstrations
from cai.evaluate.ranking_output import read_ranking
from cai.evaluate.ranking_records import Ranking
from cai.journal import write_file
from cai.rundir import Manifest, RunDir, run_path
from cai.stage import sigterm_interrupts
from cai.train.arguments import check_further
from cai.train.encoding import Encoding
from cai.train.lifecycle import versions
from cai.train.models import Start, find_start

STAGE = "compare"
COMPARISON, PAGE, MARKDOWN = "comparison.json", "comparison.html", "comparison.md"


@dataclass(frozen=True)
class ComparePlan:
    """A comparison whose inputs are sound; nothing is trained or written yet."""

    config: CompareConfig
    start: Start
    pairs: Pairs
    sizes: tuple[int, ...]
    """Numbers of labels, rising; the last is all of them."""
    models: tuple[ModelAsked, ...]
    costs: Costs
    ranking: Ranking | None
    hashes: Mapping[str, str]

    @property
    def default_out(self) -> Path:
        """`runs/compare-HASH`: the same command finds its run again, another configuration gets its own."""
        return run_path(STAGE, self.config, self.hashes)


@dataclass(frozen=True)
class Compared:
    """What a run left behind."""

    path: Path
    manifest: Manifest
    comparison: PathComparison


def plan_comparison(config: CompareConfig) -> ComparePlan:
    """Read, match and check all that a comparison needs.

    Raises:
        ConfigError, DataError, EngineError: an input is wrong, or the sides have nothing to compare.
    """
    check_further("reward", config.reward)
    costs = find_costs(config)
    ranking = None if config.ranking is None else read_ranking(config.ranking)
    start = find_start(config.reward, generates=False)
    pairs = read_pairs(config, Encoding(start.chat, start.max_length))
    sizes = subset_sizes(config, len(pairs.train))
    facts = pairs.facts
    template = sha256(start.tokenizer.chat_template.encode()).hexdigest()
    hashes = {"model": start.sha256, "chat template": template}
    hashes |= {"AI labels": facts.ai.sha256, "human labels": facts.human.sha256}
    if facts.test is not None:
        hashes["test"] = facts.test.sha256
    if config.reward.reference is not None:
        named = read_demonstrations([config.reward.reference], [], test_share=0, seed=config.seed)
        hashes["reference"] = named.sources[0].sha256
    return ComparePlan(config, start, pairs, sizes, models_asked(config, sizes), costs, ranking, hashes)


def compare_paths(
    plan: ComparePlan, out: Path, console: Console, *, command: Sequence[str] = (), overwrite: bool = False
) -> Compared:
    """Train the reward models that are not there yet, measure all of them, and write the page.

    Raises:
        KeyboardInterrupt: interrupted by a signal; the same command goes on.
        CaiError: the run cannot go on; what is finished is kept.
    """
    config = plan.config
    with (
        sigterm_interrupts(),
        RunDir.open(
            out,
            stage=STAGE,
            config=config.model_dump(mode="json"),
            inputs=plan.hashes,
            seed=config.seed,
            command=command,
            free_keys=config.free_keys,
            other_files=(COMPARISON, PAGE, MARKDOWN, *FIGURES, PAIRS, MODELS),
            keeps_records=False,
            overwrite=overwrite,
        ) as run,
    ):
        facts = plan.pairs.facts
        run.manifest.versions = versions()
        run.manifest.counts = {
            "matched": facts.matched,
            "train": facts.train,
            "held_out": facts.held_out,
            "models": len(plan.models),
            "rejected_rows": len(plan.pairs.rejects),
        }
        run.write_rejects(plan.pairs.rejects)
        with run.stopped_if_it_fails():
            with run.at_work():
                comparison = _measure(plan, out, console, command)
            _write(run, comparison)
        run.save("finished")
        return Compared(out, run.manifest, comparison)


def _measure(plan: ComparePlan, out: Path, console: Console, command: Sequence[str]) -> PathComparison:
    config, pairs, whole = plan.config, plan.pairs, plan.sizes[-1]
    deltas = train_models(config, pairs, plan.models, out, console, command)
    name = (config.human if config.test is None else config.test).path
    return PathComparison(
        start=plan.start.name,
        start_sha256=plan.start.sha256,
        seed=config.seed,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
        matching=pairs.facts,
        agreement=agreement(pairs.matched, config.seed),
        held_out=tuple(held_out_labels(pairs.held_out, deltas, whole, name=name, seed=config.seed)),
        cross=tuple(cross_table(pairs.held_out, deltas, whole, config.seed)),
        efficiency=tuple(label_efficiency(pairs.held_out, deltas, plan.costs, config.seed)),
        costs=plan.costs,
        ranking=plan.ranking,
    )


def _write(run: RunDir, comparison: PathComparison) -> None:
    """The page is the last of the files, so that what it shows is there."""
    figures = draw_figures(comparison)
    for name in FIGURES:
        if name in figures:
            write_file(run.path / name, figures[name])
        else:
            (run.path / name).unlink(missing_ok=True)  # of an earlier session with other sizes or prices
    sections = report(comparison)
    run.write_text(COMPARISON, comparison.model_dump_json(indent=2) + "\n")
    run.write_text(MARKDOWN, render_markdown(sections))
    run.write_text(PAGE, render_html(sections, figures))
