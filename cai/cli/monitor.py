"""`cai monitor`: a look for reward hacking at what a run has written down."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cai.cli.options import console
from cai.config import load_config
from cai.errors import RunDirError
from cai.journal import write_error
from cai.rundir import read_manifest

if TYPE_CHECKING:  # it is imported in use, like the rest of the monitor
    from cai.train.monitor.config import MonitorConfig


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML file with tolerances. Default: the run's."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for monitor.json and monitor.svg. Default: RUN.")
def monitor(run: Path, config_file: Path | None, out: Path | None) -> None:
    """Look for reward hacking in RUN: a run of cai train ppo, or a folder of another trainer's figures.

    Such a folder holds metrics.jsonl, an object for each step, samples.jsonl, an object for each response to a held-out
    prompt, or both. What is missing there is named, and not guessed.
    """
    from cai.train.monitor.config import MonitorConfig
    from cai.train.monitor.files import read_run, write_report
    from cai.train.monitor.looking import look
    from cai.train.monitor.page import render_report

    config = _tolerances(run) if config_file is None else load_config(MonitorConfig, config_file, {})
    found = read_run(run)
    report = look(found.metrics, found.samples, config)
    screen = console()
    screen.print(render_report(report))
    for name in found.torn:
        screen.print(f"note: the last line of {name} is torn and left out", markup=False, soft_wrap=True)
    folder = run if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    write_report(report, folder)
    screen.print(f"written:   {folder}", markup=False, soft_wrap=True)


def _tolerances(run: Path) -> "MonitorConfig":
    """Those that a run of `cai train ppo` was watched by; the defaults for what another trainer wrote."""
    from cai.train.monitor.config import MonitorConfig

    try:
        manifest = read_manifest(run)
    except RunDirError:
        return MonitorConfig()
    return MonitorConfig.model_validate(manifest.config.get("monitor", {}))
