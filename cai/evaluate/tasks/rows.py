"""What the rows of several tasks' sets have in common."""

from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import StringConstraints

from cai.evaluate.task import Item

Text = Annotated[str, StringConstraints(pattern=r"\S")]
"""A text with something in it."""


def check_keys(row: Item, kind: str, keys: Mapping[str, Collection[str]]) -> None:
    """Check that a row has the keys of its kind and no others; `keys` names those that not all kinds have.

    Raises:
        ValueError: it lacks one, or has another kind's.
    """
    wanted, given = set(keys[kind]), row.model_fields_set & {name for names in keys.values() for name in names}
    for name in sorted(wanted - given):
        raise ValueError(f"a row of kind `{kind}` needs `{name}`")
    for name in sorted(given - wanted):
        raise ValueError(f"`{name}` does not belong to a row of kind `{kind}`; remove it")
