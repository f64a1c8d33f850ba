"""The stage `label`: pairs of responses in, preference data with soft labels of a judge out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from cai.data.card_parts import ConstitutionFacts
from cai.data.comparisons import scan_comparisons
from cai.data.preference_card import LABEL_STUDIO, PreferenceCounts, PreferenceFacts
from cai.data.preferences import PreferencesConfig, export_labels
from cai.errors import ConfigError
from cai.feedback.certificate import Certificate
from cai.feedback.certificate_files import CERTIFICATE, Found, find_certificates, read_certificate
from cai.feedback.judging import JudgingConfig, JudgingInputs, judging_phase, load_judging, refuse_assumed
from cai.records import Label
from cai.rundir import RunDir, read_records
from cai.running import Job, Outcome, run_facts, run_job
from cai.statistics import CHANCE, percent

STAGE = "label"


class LabelConfig(JudgingConfig):
    """Configuration of `cai label`."""

    export: PreferencesConfig = PreferencesConfig()

    FREE_KEYS: ClassVar[frozenset[str]] = (
        JudgingConfig.FREE_KEYS
        | {"constitution", "templates", "comparisons"}
        | {f"export.{name}" for name in PreferencesConfig.model_fields}
    )


def load_labelling(config: LabelConfig) -> JudgingInputs:
    """Load and check everything that labelling works from, the human choices included, before any model is loaded.

    Raises:
        CaiError: a file is wrong; all problems of that file are named.
        ConfigError: the human choices come from `cai contrast`, so that nobody made them.
    """
    human_sha256 = None
    if (human := config.export.human_input()) is not None:
        human_sha256 = scan_comparisons(human).sha256
        refuse_assumed(human, "what people prefer")
    return replace(load_judging(config, require_gold=False), human_sha256=human_sha256)


def find_certificate(inputs: JudgingInputs, path: Path | None, folder: Path) -> Found | None:
    """The certificate of this judge: the one at `path` (a file, or the run that made it), or the newest that lies in
    a run within `folder`.

    Where there is none, the one within `folder` whose judge has the same model and differs least; its `differences` are
    not empty then, and it says nothing about this judge.

    Raises:
        DataError: `path` holds no certificate.
        ConfigError: the certificate at `path` is one of another judge; the differences are named.
    """
    if path is None:
        return next(iter(find_certificates(folder, inputs.identity).found), None)
    file = path / CERTIFICATE if path.is_dir() else path
    certificate = read_certificate(file)
    if differences := inputs.identity.differences(certificate.judge):
        raise ConfigError(
            f"{file} is the certificate of another judge than the one asked for: {'; '.join(differences)}. Certify "
            "this one with `cai judge-check` and the same judge options"
        )
    return Found(file, certificate, ())


def refuse_chance(certificate: Certificate) -> None:
    """Check that the judge does better than a coin.

    Raises:
        ConfigError: the interval of its accuracy includes chance.
    """
    accuracy = certificate.figures.accuracy
    if accuracy.low <= CHANCE:
        raise ConfigError(
            f"this judge's accuracy on {certificate.gold_set.name} is {percent(accuracy)}, which "
            f"{'is below' if accuracy.high < CHANCE else 'cannot be told from'} chance: its labels would be noise. "
            "Take another judge, or --force to label all the same"
        )


def label(
    inputs: JudgingInputs,
    out: Path,
    console: Console,
    *,
    certificate: Certificate | None,
    command: Sequence[str] = (),
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Outcome[PreferenceCounts]:
    """Label the comparisons, or go on with it, and write the preference data; its card shows `certificate`.

    Raises:
        KeyboardInterrupt: interrupted by a signal; what is finished is kept.
        StageError: more than `max_failure_share` of the comparisons failed; everything is written all the same.
        CaiError: the run cannot go on; what is finished is kept.
    """
    config, constitution = inputs.config, inputs.constitution
    assert isinstance(config, LabelConfig)
    certified = None if certificate is None else summary(certificate)

    def export(run: RunDir) -> PreferenceCounts:
        facts = PreferenceFacts(
            run=run_facts(run, f"Preferences by the constitution {constitution.name}", inputs.rejects),
            constitution=ConstitutionFacts.of(constitution, inputs.prompts.sha256),
            judge=_described(inputs, run),
            comparisons=config.comparisons,
            certificate=certified,
            human_sha256=inputs.human_sha256,
        )
        labels = read_records(run.path, Label)
        return export_labels(labels, run.path, config=config.export, seed=config.seed, card=facts)

    job = Job(
        stage=STAGE,
        noun="labels",
        config=config,
        hashes=inputs.hashes,
        constitution=constitution,
        counts={"comparisons": inputs.total},
        total=inputs.total,
        rejects=inputs.rejects,
        phases=[judging_phase(inputs)],
        record=Label,
        counts_model=PreferenceCounts,
        other_files=(LABEL_STUDIO,),
        export=export,
        export_key=f"{config.export.model_dump_json()} {inputs.human_sha256 or ''} {certified or ''}",
    )
    return run_job(job, out, console, command=command, overwrite=overwrite, retry_failed=retry_failed)


def summary(certificate: Certificate) -> str:
    """What a certificate says, in a sentence."""
    figures = certificate.figures
    return (
        f"Grade {certificate.grade} on {certificate.gold_set.name}: accuracy {percent(figures.accuracy)} on "
        f"{figures.comparisons} comparisons with known answers."
    )


def _described(inputs: JudgingInputs, run: RunDir) -> dict[str, str]:
    """The judge in words, for the card."""
    engine, judge = run.manifest.engine, inputs.config.judge
    settings = judge.model_dump(mode="json", exclude_defaults=True)
    return {
        "model": str(engine.get("model", "")),
        "engine": inputs.config.engine.engine,
        "protocol": ", ".join(judge.protocol),
        "principles for each comparison": str(judge.principles),
        **{name: str(value) for name, value in settings.items() if name not in ("protocol", "principles")},
    }
