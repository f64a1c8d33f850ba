"""The directory of a pipeline: its lock, `pipeline.json`, and the run directories of its stages.

pipeline.json      what each stage did, with all that its result depends on
changes.json       what the last run of the recipe did, and which figures moved
recipe.yaml        the recipe as it was last run
NAME-KEY/          the run directory of a stage, by the hash of what its result depends on
NAME-KEY.yaml      the settings that its command was given
hashes.json        hashes of files, so that large ones are not read again
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cai import __version__
from cai.errors import RunDirError
from cai.journal import first_problem, partial_path, write_file
from cai.pipeline_records import PIPELINE, PipelineState

RECIPE, HASHES = "recipe.yaml", "hashes.json"
_LOCK = ".pipeline.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Create the directory of a pipeline where there is none, and keep others out of it.

    Raises:
        RunDirError: another process works in it, it cannot be made, or it holds something else.
    """
    try:
        if out.is_dir() and not (out / PIPELINE).exists():
            begun = (_LOCK, partial_path(out / PIPELINE).name)
            others = sorted(entry.name for entry in out.iterdir() if entry.name not in begun)
            if others:
                raise RunDirError(f"{out} holds no pipeline and is not empty ({others[0]} …); choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / _LOCK, timeout=0):
            yield
    except Timeout:
        raise RunDirError(f"another process is working on {out}; wait for it, or choose another --out") from None
    except OSError as error:
        raise RunDirError(f"{out} cannot be used: {error.strerror or error}; choose another --out") from None


def read_state(out: Path, recipe: str) -> PipelineState:
    """What the pipeline in `out` has done; nothing where there is none yet.

    Raises:
        RunDirError: the file is broken, or belongs to another recipe.
    """
    path = out / PIPELINE
    try:
        state = PipelineState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return PipelineState(recipe=recipe, cai=__version__)
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise RunDirError(f"{path} is broken ({first_problem(error)}); choose another --out") from None
    if state.recipe != recipe:
        raise RunDirError(f"{out} holds the pipeline of the recipe `{state.recipe}`, not of `{recipe}`; choose --out")
    return state.model_copy(update={"cai": __version__})


def write_state(out: Path, state: PipelineState) -> None:
    """Put down what the pipeline has done.

    Raises:
        RunDirError: it cannot be written.
    """
    write_file(out / PIPELINE, state.model_dump_json(indent=1) + "\n")
