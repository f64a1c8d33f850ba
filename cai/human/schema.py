"""The tables of the store of ratings, as SQL, and how an older file is brought up to date."""

import sqlite3
from collections.abc import Iterator

APPLICATION_ID = 0x63616972
"""Tells our files from other programs' SQLite files: the letters `cair`."""

_VERSION_1 = """
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    config TEXT NOT NULL,
    source TEXT NOT NULL,
    source_sha256 TEXT NOT NULL,
    created TEXT NOT NULL
);

CREATE TABLE raters (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    token_sha256 TEXT NOT NULL UNIQUE
);

-- Comparisons and attention checks, in the order they were given. `expected` is the better side of a check. `wanted`
-- is how many raters a comparison is for, `draw` its place among those that are equally far.
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    comparison_id TEXT NOT NULL UNIQUE,
    expected TEXT CHECK (expected IN ('a', 'b')),
    wanted INTEGER CHECK (wanted >= 1),
    draw INTEGER NOT NULL,
    comparison TEXT NOT NULL,
    CHECK ((expected IS NULL) = (wanted IS NOT NULL))
);
CREATE INDEX items_to_hand_out ON items (expected, draw, wanted);

-- Which items a rater was given; `number` counts a rater's items from 0.
CREATE TABLE handouts (
    rater INTEGER NOT NULL REFERENCES raters (id),
    item INTEGER NOT NULL REFERENCES items (id),
    number INTEGER NOT NULL,
    first TEXT NOT NULL CHECK (first IN ('a', 'b')),
    at TEXT NOT NULL,
    PRIMARY KEY (rater, item),
    UNIQUE (rater, number)
) WITHOUT ROWID;
CREATE INDEX handouts_of_item ON handouts (item);

-- All that raters did, for ever. `id` is the order in which it was recorded.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rater INTEGER NOT NULL,
    item INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('answer', 'undo')),
    answer TEXT CHECK (answer IN ('a', 'rather_a', 'rather_b', 'b', 'both_bad', 'skipped')),
    first TEXT NOT NULL CHECK (first IN ('a', 'b')),
    seconds REAL CHECK (seconds >= 0),
    at TEXT NOT NULL,
    key TEXT NOT NULL,
    comment TEXT NOT NULL,
    UNIQUE (rater, key),
    FOREIGN KEY (rater, item) REFERENCES handouts (rater, item),
    CHECK ((kind = 'answer') = (answer IS NOT NULL)),
    CHECK ((answer IS NULL) = (seconds IS NULL))
);
CREATE INDEX events_of_item ON events (rater, item);
CREATE INDEX skips ON events (item) WHERE answer = 'skipped';

CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_not_removed BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
-- INSERT OR REPLACE removes rows without the trigger above.
CREATE TRIGGER events_are_not_replaced BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE id = NEW.id OR (rater = NEW.rater AND key = NEW.key))
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;

-- The answers that stand: those that are the last event of their hand-out.
CREATE VIEW standing AS
SELECT * FROM events
WHERE kind = 'answer'
    AND id = (SELECT max(id) FROM events AS other WHERE other.rater = events.rater AND other.item = events.item);

-- A rater answers the first of the items they have open and takes back the last of their answers. So those that they
-- answered are the first of theirs, and it is enough to look for the last one of them: `answered` is their number.
CREATE VIEW fronts AS
SELECT raters.id AS rater, coalesce((
    SELECT number + 1 FROM handouts
    WHERE handouts.rater = raters.id
        AND EXISTS (SELECT 1 FROM standing WHERE standing.rater = handouts.rater AND standing.item = handouts.item)
    ORDER BY number DESC LIMIT 1
), 0) AS answered
FROM raters;

-- Hand-outs without an answer that stands, and since when: the item was handed out then or, by an undo, given back.
-- CROSS JOIN has SQLite start from the few raters.
CREATE VIEW open AS
SELECT handouts.rater, item, number, first,
    coalesce((
        SELECT max(at) FROM events
        WHERE events.rater = handouts.rater AND events.item = handouts.item AND kind = 'undo'
    ), at) AS since
FROM fronts CROSS JOIN handouts ON handouts.rater = fronts.rater AND number >= answered;
"""

MIGRATIONS = (_VERSION_1,)
"""What leads from each schema version to the next; the first script makes version 1 out of an empty file."""


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables from `version` to the newest, within the transaction that the caller has begun."""
    for script in MIGRATIONS[version:]:
        for statement in _statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    """Split a script; `executescript` would end the transaction."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""
    if text.strip():
        raise ValueError(f"a statement of the schema has no end: {text.strip():.60}")
