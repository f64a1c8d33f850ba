"""Word-level difference of two texts, for people to read.

Words are aligned by the shortest edit script (Myers 1986, "An O(ND) difference algorithm and its variations", the
greedy form), which takes time in proportion to the size of the difference and so can be cut off at a known cost.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PieceKind = Literal["same", "removed", "added"]

MAX_EDITS = 1000
"""Words removed plus added beyond which the part that differs counts as replaced whole. Time and memory grow with the
square of it: half a second and some tens of megabytes here."""

_TOKEN = re.compile(r"(\s*)(\w+(?:['’]\w+)*|[^\w\s]|$)")


@dataclass(frozen=True)
class DiffPiece:
    """A run of text that stands in both texts, in the old one only, or in the new one only."""

    kind: PieceKind
    text: str


@dataclass
class _Run:
    """Text that both have, and the change that follows it."""

    same: str = ""
    removed: str = ""
    added: str = ""

    @property
    def size(self) -> int:
        """Length of the change, in characters."""
        return max(len(self.removed), len(self.added))


def word_diff(old: str, new: str) -> list[DiffPiece]:
    """Compare two texts word by word; punctuation marks are words, white space belongs to the word that follows.

    `same` and `removed` pieces joined are exactly `old`, `same` and `added` ones exactly `new`. Where both texts
    differ the removed piece comes first. Same text that is shorter than the changes on both of its sides is shown as
    changed: single shared words such as "the" do not help a reader.
    """
    kinds: tuple[PieceKind, ...] = ("same", "removed", "added")
    return [
        DiffPiece(kind, text)
        for run in _readable(_runs(old, new))
        for kind, text in zip(kinds, (run.same, run.removed, run.added), strict=True)
        if text
    ]


def _runs(old: str, new: str) -> list[_Run]:
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    runs = [_Run()]
    x = y = 0
    for i, j in (*_matches([word for _, word in a], [word for _, word in b]), (len(a), len(b))):
        last = runs[-1]
        last.removed += "".join(space + word for space, word in a[x:i])
        last.added += "".join(space + word for space, word in b[y:j])
        if i == len(a):
            break
        (space, word), (new_space, _) = a[i], b[j]
        if space != new_space:
            last.removed += space
            last.added += new_space
            space = ""
        if last.size:
            runs.append(_Run(space + word))
        else:
            last.same += space + word
        x, y = i + 1, j + 1
    return runs


def _readable(runs: list[_Run]) -> list[_Run]:
    """Make one change of two changes and the shorter same text between them."""
    kept = runs[:1]
    for run in runs[1:]:
        before = kept[-1]
        if len(run.same) <= min(before.size, run.size):
            before.removed += run.same + run.removed
            before.added += run.same + run.added
        else:
            kept.append(run)
    return kept


def _matches(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Positions of the words that both have, in order. Common beginnings and ends are taken off first."""
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    tail = 0
    while tail < min(len(a), len(b)) - start and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    middle = _middle_matches(a[start : len(a) - tail], b[start : len(b) - tail])
    return [
        *((i, i) for i in range(start)),
        *((start + i, start + j) for i, j in middle),
        *((len(a) - back, len(b) - back) for back in range(tail, 0, -1)),
    ]


def _middle_matches(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Matches of the shortest edit script; none where it would need more than MAX_EDITS edits."""
    end = len(a) - len(b)
    reach = {1: 0}  # on diagonal k = x - y: the furthest x reached with the edits so far
    trace: list[dict[int, int]] = []
    for edits in range(min(len(a) + len(b), MAX_EDITS) + 1):
        before, reach = reach, {}
        for k in range(-edits, edits + 1, 2):
            down = k == -edits or (k != edits and before[k - 1] < before[k + 1])
            x = before[k + 1] if down else before[k - 1] + 1
            while x < len(a) and x - k < len(b) and a[x] == b[x - k]:
                x += 1
            reach[k] = x
        trace.append(before)
        if reach.get(end, -1) >= len(a):
            return _backtrack(trace, len(a), len(b))
    return []


def _backtrack(trace: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    """Walk the furthest-reaching paths back to the start and collect the diagonal steps."""
    found: list[tuple[int, int]] = []
    for edits in range(len(trace) - 1, -1, -1):
        before, k = trace[edits], x - y
        down = k == -edits or (k != edits and before[k - 1] < before[k + 1])
        from_k = k + 1 if down else k - 1
        from_x = before[from_k]
        while min(x, y) > 0 and x > (from_x if down else from_x + 1):
            x, y = x - 1, y - 1
            found.append((x, y))
        x, y = from_x, from_x - from_k
    return found[::-1]
