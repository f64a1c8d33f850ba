"""The stage `judge-check`: a labelled set in, the certificate of a judge out."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from cai.data.dataset import DatasetCounts
from cai.feedback.certificate import Certificate, GoldSet, certify
from cai.feedback.certificate_files import (
    CERTIFICATE,
    CERTIFICATE_FILES,
    certificate_page,
    read_certificate,
    write_certificate,
)
from cai.feedback.judging import JudgingConfig, JudgingInputs, judging_phase, load_judging, refuse_assumed
from cai.feedback.scale import fitted_scale
from cai.records import Label
from cai.rundir import RunDir, read_records
from cai.running import Job, Outcome, run_job

STAGE = "judge-check"


class JudgeCheckConfig(JudgingConfig):
    """Configuration of `cai judge-check`."""

    comparisons: str = "planted"
    """Pairs of responses with a gold label: a file, a shipped set, or `hub:owner/name[@config][:split]`."""

    FREE_KEYS: ClassVar[frozenset[str]] = JudgingConfig.FREE_KEYS | {"constitution", "templates", "comparisons"}


def load_judge_check(config: JudgeCheckConfig) -> JudgingInputs:
    """Load and check everything that a certificate is made from, before any model is loaded.

    Raises:
        CaiError: a file is wrong; all problems of that file are named.
        ConfigError: the comparisons come from `cai contrast`, so that their order is assumed.
    """
    inputs = load_judging(config, require_gold=True)
    refuse_assumed(inputs.source, "a judge")
    return inputs


def judge_check(
    inputs: JudgingInputs,
    out: Path,
    console: Console,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    retry_failed: bool = False,
) -> tuple[Certificate, Outcome[DatasetCounts]]:
    """Judge the comparisons, or go on with it, and write the certificate.

    Raises:
        KeyboardInterrupt: interrupted by a signal; what is finished is kept.
        CaiError: the run cannot go on, or nothing got a verdict; what is finished is kept.
    """

    def export(run: RunDir) -> DatasetCounts:
        certificate = certify(
            read_records(run.path, Label),
            judge=inputs.identity,
            gold_set=GoldSet(
                name=Path(inputs.config.comparisons).name,
                sha256=inputs.hashes["comparisons"],
                skipped=inputs.config.skip,
                rows=inputs.total,
            ),
            fitted_scale=fitted_scale(read_records(run.path, Label), inputs.config.judge, inputs.constitution),
            failures=run.failures,
            seconds=run.manifest.work_seconds,
            seed=inputs.config.seed,
            created=run.manifest.created,
        )
        write_certificate(run.path, certificate)
        run.write_text("README.md", certificate_page(certificate))
        return DatasetCounts()

    job = Job(
        stage=STAGE,
        noun="labels",
        config=inputs.config,
        hashes=inputs.hashes,
        constitution=inputs.constitution,
        counts={"comparisons": inputs.total},
        total=inputs.total,
        rejects=inputs.rejects,
        phases=[judging_phase(inputs)],
        record=Label,
        counts_model=DatasetCounts,
        other_files=CERTIFICATE_FILES,
        export=export,
    )
    outcome = run_job(job, out, console, command=command, overwrite=overwrite, retry_failed=retry_failed)
    return read_certificate(outcome.path / CERTIFICATE), outcome
