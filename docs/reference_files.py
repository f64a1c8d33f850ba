"""What the reference says of files: which records stand in which file, and how directories are laid out."""

import ast
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

from cai.pipeline.stages import KINDS


@dataclass(frozen=True)
class File:
    """A file, or the rows of a table, and the model of what is in it."""

    name: str
    model: str


@dataclass(frozen=True)
class FilePage:
    """A page of the reference about files."""

    name: str
    title: str
    about: str
    """For the index."""
    text: str
    files: tuple[File, ...]
    by_hand: bool = False
    """Whether people write these files, so that defaults are of interest."""


_LAYOUTS = {
    "Of every run": "cai.rundir",
    "Of `cai train`": "cai.train.lifecycle",
    "Of `cai train ppo`": "cai.train.ppo.run",
    "Of `cai score`": "cai.train.scoring",
    "Of `cai red-team`": "cai.redteam.stage",
    "Of `cai iterate`": "cai.iterate.run",
    "Of `cai run`": "cai.pipeline.state",
    "Of `cai compare`": "cai.compare.run",
    "Of `cai rate`": "cai.human.page_directory",
    "Of `cai export`": "cai.human.exporting",
}
"""Modules whose docstring lists the files of a directory."""


def _layouts() -> str:
    return "\n".join(f"## {title}\n\n```\n{_layout(module)}\n```\n" for title, module in _LAYOUTS.items())


def _layout(module: str) -> str:
    """The files that the docstring of a module lists."""
    found = [block for block in _blocks(module) if all(map(_names_file, block.splitlines()))]
    assert found, f"the docstring of {module} lists no files"
    return dedent(found[0])


def _recipe() -> str:
    """The recipe that the docstring of its module shows."""
    return dedent(next(block for block in _blocks("cai.pipeline.recipe") if block.startswith("    name:")))


def _blocks(module: str) -> list[str]:
    """The docstring of a module in parts, read without importing it."""
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    doc = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    return re.split(r"\n\s*\n", doc)


def _names_file(line: str) -> bool:
    """Whether a line has the name of a file and what it is, or goes on with the line above."""
    return re.match(r"\s*[\w./*-]+(,? [\w./*-]+)*  +\S|\s{12}", line) is not None


FILE_PAGES = (
    FilePage(
        "constitution-file",
        "The constitution file",
        "The YAML file of principles.",
        "`cai constitution new NAME` writes one with comments to start from, `cai constitution lint FILE` lists every "
        "problem of one, and `cai constitution schema` prints its JSON Schema for editors.",
        (File("NAME.yaml", "cai.principles.ConstitutionFile"),),
        by_hand=True,
    ),
    FilePage(
        "recipe-file",
        "The recipe",
        "The YAML file that `cai run` takes.",
        "The stages of a pipeline in their order. A stage's keys are those of its command's configuration file; those "
        "of `label`, `rank` and `report` stand below, since their commands take some or all of them as options. "
        f"Kinds of stages: {', '.join(f'`{name}`' for name in KINDS)}.\n\n```yaml\n{_recipe()}\n```",
        (
            File("NAME.yaml", "cai.pipeline.recipe.RecipeFile"),
            File("stage: label", "cai.pipeline.stages.label.LabelStageConfig"),
            File("stage: rank", "cai.evaluate.ranking.RankConfig"),
            File("stage: report", "cai.pipeline.stages.report.ReportStageConfig"),
        ),
        by_hand=True,
    ),
    FilePage(
        "run-directory",
        "Run directories",
        "What lies in a run directory, and the files that all runs have.",
        "A command that takes long writes into a run directory, `--out` or `runs/NAME-HASH`. The same command again "
        "goes on where the last one stopped.\n\n" + _layouts(),
        (
            File("manifest.json", "cai.rundir.Manifest"),
            File("failures.jsonl", "cai.records.Failure"),
            File("rejects.jsonl", "cai.data.rows.Reject"),
        ),
    ),
    FilePage(
        "records",
        "records.jsonl",
        "One finished record a line, by the command that wrote it.",
        "One JSON object a line, in order of completion. `index` is the position in the input.",
        (
            File("Of cai critique-revise", "cai.records.RevisionChain"),
            File("Of cai sample", "cai.records.ResponseSample"),
            File("Of cai contrast", "cai.records.ContrastSample"),
            File("Of cai label and cai judge-check", "cai.records.Label"),
            File("Of cai judge-obedience", "cai.evaluate.obedience.ObedienceRecord"),
            File("Of cai evaluate", "cai.evaluate.records.EvaluationRecord"),
            File("Of cai red-team", "cai.redteam.records.RedTeamRecord"),
        ),
    ),
    FilePage(
        "datasets",
        "Data sets",
        "The tables that `datasets.load_dataset` opens.",
        "A run directory with `data/*.parquet` opens by the name of a table: "
        '`load_dataset("runs/hhh-3f2a91c0", "sft", split="train")`. Its README.md, the data card, lists what was left '
        "out and why.",
        (
            File("sft, of cai critique-revise", "cai.data.tables.SftRow"),
            File("pairs, of cai critique-revise", "cai.data.tables.PairRow"),
            File("llm_swarm, of cai critique-revise", "cai.data.tables.SwarmRow"),
            File("comparisons, of cai sample", "cai.data.sample_card.ComparisonRow"),
            File("preferences, of cai label, contrast, export and import", "cai.data.preference_tables.PreferenceRow"),
            File("kto, of cai label, contrast, export and import", "cai.data.preference_tables.KtoRow"),
            File(
                "llm_swarm, of cai label, contrast, export and import",
                "cai.data.preference_tables.SwarmPreferenceRow",
            ),
        ),
    ),
    FilePage(
        "judge-files",
        "Files about judges",
        "The certificate of a judge, and whether it obeys what it judges.",
        "`cai judge-check` writes `certificate.json` beside a reliability plot, `cai judge-obedience` the other one.",
        (
            File("certificate.json", "cai.feedback.certificate.Certificate"),
            File("obedience.json", "cai.evaluate.obedience.Obedience"),
        ),
    ),
    FilePage(
        "human-files",
        "Files about people's ratings",
        "Ratings, and how raters agree.",
        "`cai export` writes `ratings.jsonl`, `cai agreement` the report.",
        (
            File("ratings.jsonl", "cai.human.records.Rating"),
            File("agreement.json", "cai.human.agreement_report.AgreementReport"),
        ),
    ),
    FilePage(
        "training-files",
        "Files of trainings",
        "What a training measured, and the scores of responses.",
        "Beside the weights in `model/` and the curves in `metrics.jsonl`.",
        (
            File("evaluation.json of cai train reward", "cai.train.evaluation.RewardEvaluation"),
            File("collapse.json of cai train sft and dpo", "cai.train.collapse.CollapseCheck"),
            File("metrics.jsonl of cai train ppo", "cai.train.monitor.records.StepMetrics"),
            File("samples.jsonl of cai train ppo", "cai.train.monitor.records.ProbeSample"),
            File("monitor.json", "cai.train.monitor.records.MonitorReport"),
            File("scores.jsonl of cai score", "cai.train.scores.ResponseScore"),
            File("summary.json of cai score", "cai.train.scores.ScoreSummary"),
        ),
    ),
    FilePage(
        "comparison-file",
        "comparison.json",
        "What `cai compare` found.",
        "`cai compare` writes it beside the page. Intervals are of 95%, over prompts.",
        (File("comparison.json", "cai.compare.records.PathComparison"),),
    ),
    FilePage(
        "evaluation-file",
        "evaluation.json",
        "What `cai evaluate` found.",
        "`cai evaluate` writes it beside plots and a README.md with the table.",
        (File("evaluation.json", "cai.evaluate.records.Evaluation"),),
    ),
    FilePage(
        "ranking-file",
        "ranking.json",
        "What `cai rank` found.",
        "`cai rank` writes it beside plots and a page. Intervals are of 95%, over prompts.",
        (File("ranking.json", "cai.evaluate.ranking_records.Ranking"),),
    ),
    FilePage(
        "red-team-files",
        "Files of red-teaming and of the next round",
        "What attacks came to, and what follows from them.",
        "`cai red-team` writes the first two, `cai iterate` the third.",
        (
            File("red_team.json", "cai.redteam.records.RedTeam"),
            File("attacks.jsonl", "cai.redteam.records.AttackRow"),
            File("iteration.json", "cai.iterate.records.Iteration"),
        ),
    ),
    FilePage(
        "pipeline-files",
        "Files of pipelines",
        "What the stages of `cai run` did, and what an edit moved.",
        "Both lie in the directory of the pipeline, beside the run directories of its stages.",
        (
            File("pipeline.json", "cai.pipeline_records.PipelineState"),
            File("changes.json", "cai.pipeline_records.Changes"),
        ),
    ),
)
