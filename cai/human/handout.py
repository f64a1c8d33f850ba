"""Which item a rater gets next, and which of its responses stands first. All draws are hashes: nothing is random twice.

A comparison is open to a rater who never had it while fewer raters than it is for have it: those who answered it, and
those who were given it less than the hold ago. A skip is no answer, so a skipped comparison goes to another rater.
Those that the fewest raters have go first, then those that the fewest were ever given, then by a draw of the store.
"""

import sqlite3
from collections.abc import Iterable
from itertools import chain
from typing import Literal

from cai.errors import DataError
from cai.human.config import RatingConfig
from cai.records import Comparison, Side, stable_seed

Kind = Literal["comparison", "check"]

_OPEN = """
WITH released AS (
    SELECT item, count(*) AS number FROM (
        SELECT item FROM standing WHERE answer = 'skipped'
        UNION ALL SELECT item FROM open WHERE since <= :held_until
    ) GROUP BY item
), countable AS (
    SELECT id, wanted, draw, (SELECT count(*) FROM handouts WHERE item = id) AS given
    FROM items WHERE expected IS NULL AND id NOT IN (SELECT item FROM handouts WHERE rater = :rater)
)
SELECT id, given - coalesce(number, 0) AS taken
FROM countable LEFT JOIN released ON item = id
WHERE taken < wanted
ORDER BY taken, given, draw, id
"""

_CHECK = """
SELECT items.id FROM items LEFT JOIN handouts ON handouts.item = items.id
WHERE expected IS NOT NULL
GROUP BY items.id
HAVING coalesce(sum(rater = :rater), 0) = 0
ORDER BY count(rater), draw, items.id
LIMIT 1
"""

_NUMBER = "SELECT count(*) FROM handouts WHERE rater = ?"

_CHECKS = """
SELECT count(*) FROM items
WHERE expected IS NOT NULL AND EXISTS (SELECT 1 FROM handouts WHERE rater = ? AND item = items.id)
"""


def wanted(comparison_id: str, config: RatingConfig) -> int:
    """How many raters a comparison is for.

    Its hash is even over [0, 2³²), so each comparison overlaps with probability `overlap`, whatever the others are: the
    number of those that do is binomial. 0 means none and 1 means all.
    """
    overlaps = stable_seed(config.seed, "overlap", comparison_id) < config.overlap * 2**32
    return config.overlap_raters if overlaps else 1


def draw(item_id: str, config: RatingConfig) -> int:
    """An item's place among those that are equally far."""
    return stable_seed(config.seed, "hand out", item_id)


def first_side(config: RatingConfig, rater: str, kind: Kind, number: int) -> Side:
    """The response that stands first in the rater's comparison (or check) of this number, counted from 0.

    Of each two in a row, one shows a first and the other b: which of them is drawn.
    """
    block, place = divmod(number, 2)
    return "a" if stable_seed(config.seed, "first", kind, rater, block) % 2 == place else "b"


def is_check_due(config: RatingConfig, rater: str, number: int) -> bool:
    """Whether the rater's item of this number, counted from 0, is a check: one place is drawn in each block."""
    if config.check_every == 0:
        return False
    block, place = divmod(number, config.check_every)
    return stable_seed(config.seed, "check", rater, block) % config.check_every == place


def add_items(
    connection: sqlite3.Connection,
    comparisons: Iterable[Comparison],
    checks: Iterable[Comparison],
    config: RatingConfig,
) -> None:
    """Fill a new store with what raters get.

    Raises:
        DataError: an id comes twice, or a check has no `gold`.
    """
    seen: set[str] = set()
    for is_check, one in chain(((False, one) for one in comparisons), ((True, one) for one in checks)):
        if one.id in seen:
            raise DataError(f"two of the comparisons and attention checks have the id {one.id!r:.100}; rename one")
        if is_check and one.gold is None:
            raise DataError(f"the attention check {one.id!r:.100} does not say which response is better; give its gold")
        seen.add(one.id)
        expected, raters = (one.gold, None) if is_check else (None, wanted(one.id, config))
        connection.execute(
            "INSERT INTO items (comparison_id, expected, wanted, draw, comparison) VALUES (?, ?, ?, ?, ?)",
            (one.id, expected, raters, draw(one.id, config), one.model_dump_json()),
        )


def open_comparisons(connection: sqlite3.Connection, rater_id: int, held_until: str) -> list[int]:
    """Items that the rater can be given, the next one first; those given at `held_until` or before are held no more."""
    rows = connection.execute(_OPEN, {"rater": rater_id, "held_until": held_until})
    return [row["id"] for row in rows]


def hand_out(
    connection: sqlite3.Connection, config: RatingConfig, rater_id: int, rater: str, comparison: int, at: str
) -> int:
    """Give the rater this comparison, or a check where one is due; returns the item given."""
    number: int = connection.execute(_NUMBER, (rater_id,)).fetchone()[0]
    checks: int = connection.execute(_CHECKS, (rater_id,)).fetchone()[0]
    check = connection.execute(_CHECK, {"rater": rater_id}).fetchone() if is_check_due(config, rater, number) else None
    if check is None:
        item, first = comparison, first_side(config, rater, "comparison", number - checks)
    else:
        item, first = check["id"], first_side(config, rater, "check", checks)
    connection.execute(
        "INSERT INTO handouts (rater, item, number, first, at) VALUES (?, ?, ?, ?, ?)",
        (rater_id, item, number, first, at),
    )
    return item
