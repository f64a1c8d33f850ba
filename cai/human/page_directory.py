"""A rating directory: a store of ratings and the constitution that raters go by.

    ratings.sqlite     comparisons, raters, and every answer and undo (see `cai.human.store`)
    constitution.yaml  the constitution whose principles the page shows, frozen

The store is made last and takes its name whole, so a directory is a rating directory once that is there.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from cai.config import Positive, StrictModel
from cai.constitution import Constitution, frozen_yaml, load_constitution
from cai.data.comparisons import ComparisonInput, read_comparisons, scan_comparisons
from cai.data.rows import Reject, ignore
from cai.errors import ConfigError, RunDirError
from cai.human.config import Count, RatingConfig
from cai.human.store import RatingStore
from cai.journal import write_error, write_file
from cai.records import Comparison
from cai.rundir import run_path

STORE = "ratings.sqlite"
CONSTITUTION = "constitution.yaml"


def _no_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"names `{name}` twice")
    return names


class RateConfig(StrictModel):
    """Configuration of `cai rate`."""

    source: str
    """Comparisons: the directory of a run, a file, a shipped set, `hub:owner/name[@config][:split]`; or a rating
    directory, to go on with it."""
    prompt_column: str | None = None
    """Column that holds the prompt. Default: found by its name."""
    gold_column: str | None = None
    """Column that names the better of `response_a` and `response_b`; raters never see it."""
    constitution: str = "hhh"
    """The constitution file, or the name of a shipped one, whose principles raters go by."""
    checks: str = "planted"
    """Comparisons with known answers, of which attention checks are made."""
    skip: Count = 0
    """Pass over the first comparisons; `limit` counts after."""
    limit: Positive | None = None
    """Use only so many comparisons."""
    raters: Annotated[tuple[str, ...], AfterValidator(_no_twice)] = ()
    """Names of the raters. Default, in a new directory: one of the name `rater`."""
    rating: RatingConfig = RatingConfig()
    host: str = "127.0.0.1"
    """Address or name to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8008
    """0 takes any free one."""
    allow_host: tuple[str, ...] = ()
    """Further names under which the page is reached, such as that of a reverse proxy."""

    FREE_KEYS: ClassVar[frozenset[str]] = frozenset({"raters", "host", "port", "allow_host"})


@dataclass(frozen=True)
class RatingDirectory:
    """An open rating directory."""

    path: Path
    store: RatingStore
    constitution: Constitution
    total: int
    """Comparisons to be rated."""
    is_new: bool
    rejects: tuple[Reject, ...]
    """Input rows that cannot be used."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""


def open_directory(config: RateConfig, out: Path | None) -> RatingDirectory:
    """Make the rating directory that the configuration asks for, or open it to go on.

    Raises:
        CaiError: a file is wrong; the directory holds something else, or ratings under other settings, which are named.
    """
    named = Path(config.source)
    if not config.source.startswith("hub:") and (named / STORE).is_file():
        if out is not None and out.resolve() != named.resolve():
            raise ConfigError(
                f"{named} is a rating directory, which is gone on with where it is; leave out --out {out}"
            )
        return _go_on(named, config)
    return _from_source(config, out)


def _go_on(path: Path, config: RateConfig) -> RatingDirectory:
    """Open a rating directory by its name; only what the user has set is compared."""
    store = RatingStore.open(path / STORE)
    try:
        constitution = load_constitution(str(path / CONSTITUTION))
        given = config.model_fields_set
        changed = _changes(store.config, config.rating, config.rating.model_fields_set if "rating" in given else ())
        if "constitution" in given and load_constitution(config.constitution).sha256 != constitution.sha256:
            changed.append("the constitution changed")
        if "checks" in given and _digest(_checks(config)) != _digest(store.check_comparisons()):
            changed.append("the attention checks changed")
        fixed = ("prompt_column", "gold_column", "skip", "limit")
        changed += [f"{key} cannot be set any more" for key in fixed if key in given]
        _refuse(path, changed)
        total = sum(1 for _ in store.comparisons())
    except BaseException:
        store.close()
        raise
    return RatingDirectory(path, store, constitution, total, is_new=False, rejects=(), notes={})


def _from_source(config: RateConfig, out: Path | None) -> RatingDirectory:
    constitution = load_constitution(config.constitution)
    constitution.select("comparison")
    source = ComparisonInput(path=config.source, column=config.prompt_column, gold_column=config.gold_column)
    rejects: list[Reject] = []
    scan = scan_comparisons(source, on_reject=rejects.append)
    total = max(0, scan.comparisons - config.skip)
    if not total:
        raise ConfigError(f"{config.source} has {scan.comparisons} comparisons, and `skip` passes over all of them")
    total = total if config.limit is None else min(total, config.limit)

    def wanted() -> Iterator[Comparison]:
        end = None if config.limit is None else config.skip + config.limit
        return islice(read_comparisons(source, on_reject=ignore), config.skip, end)

    hashes = {"constitution": constitution.sha256, "comparisons": scan.sha256, "checks": _digest(_checks(config))}
    if out is None:
        out = run_path("rate", config, hashes)
    if is_new := not (out / STORE).exists():
        _check_apart(config, wanted())
        _make(out, config, constitution, wanted(), scan.sha256)
    store = RatingStore.open(out / STORE)
    try:
        frozen = load_constitution(str(out / CONSTITUTION))
        changed = _changes(store.config, config.rating, RatingConfig.model_fields)
        if frozen.sha256 != constitution.sha256:
            changed.append("the constitution changed")
        if _digest(store.comparisons()) != _digest(wanted()):
            changed.append(f"the comparisons changed (they are of {config.source}, were of {store.source})")
        if _digest(store.check_comparisons()) != _digest(_checks(config)):
            changed.append("the attention checks changed")
        _refuse(out, changed)
    except BaseException:
        store.close()
        raise
    return RatingDirectory(out, store, frozen, total, is_new, tuple(rejects), scan.notes)


def _make(
    out: Path, config: RateConfig, constitution: Constitution, comparisons: Iterator[Comparison], source_sha256: str
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = sorted(one.name for one in out.iterdir() if one.name != CONSTITUTION and not one.name.startswith("."))
    except OSError as error:
        raise write_error(out, error) from None
    if foreign:
        raise RunDirError(f"{out} is not a rating directory and not empty ({foreign[0]}); choose another --out")
    write_file(out / CONSTITUTION, frozen_yaml(constitution))
    RatingStore.create(out / STORE, comparisons, _checks(config), config.rating, config.source, source_sha256).close()


def _checks(config: RateConfig) -> Iterator[Comparison]:
    """The comparisons with known answers; none where there are to be no checks.

    Raises:
        ConfigError: their answers are assumed.
        CaiError: the source is wrong.
    """
    if not config.rating.check_every:
        return
    for one in read_comparisons(ComparisonInput(path=config.checks, require_gold=True), on_reject=ignore):
        if one.source == "contrast":
            raise ConfigError(
                f"{config.checks} is a run of `cai contrast`: which response is better was assumed there, so it checks "
                "nobody's attention; name comparisons that people have labelled"
            )
        yield one


def _check_apart(config: RateConfig, comparisons: Iterable[Comparison]) -> None:
    """Make sure that no attention check is among the comparisons."""
    ids = {one.id for one in _checks(config)}
    if shared := next((one.id for one in comparisons if one.id in ids), None):
        raise ConfigError(
            f"the comparison `{shared}` of {config.source} is one of the attention checks ({config.checks}) as well; "
            "name others by --checks, or do without by --check-every 0"
        )


def _digest(comparisons: Iterable[Comparison]) -> str:
    content = sha256()
    for one in comparisons:
        content.update(one.model_dump_json().encode() + b"\n")
    return content.hexdigest()


def _changes(before: RatingConfig, after: RatingConfig, keys: Iterable[str]) -> list[str]:
    old, new = before.model_dump(), after.model_dump()
    return [f"{key} is {new[key]}, was {old[key]}" for key in sorted(keys) if new[key] != old[key]]


def _refuse(path: Path, changed: list[str]) -> None:
    if changed:
        raise RunDirError(
            f"{path} holds ratings under other settings: {'; '.join(changed)}. Give another --out, or leave them as "
            "they were"
        )
