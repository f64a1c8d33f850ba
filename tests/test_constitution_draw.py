"""Drawing a principle: by weight, repeatably, and with the least change when the file is edited."""

import collections
import hashlib
import math

from cai.constitution import Constitution, Principle, load_constitution


def weighted(**weights: float) -> Constitution:
    return Constitution(
        name="w", version="1", principles=tuple(Principle(id=id_, weight=w, text=id_) for id_, w in weights.items())
    )


def test_draws_follow_the_weights() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 0.0, "e": 4.0}
    found = weighted(**weights)
    n, total = 20_000, sum(weights.values())
    counts = collections.Counter(found.draw("critique", 7, i).id for i in range(n))
    assert counts["d"] == 0
    chi2 = sum((counts[id_] - n * w / total) ** 2 / (n * w / total) for id_, w in weights.items() if w)
    assert chi2 < 16.27  # 0.999 quantile, 3 degrees of freedom


def test_draws_of_two_rounds_parts_or_prompts_are_independent() -> None:
    found = weighted(a=1, b=1, c=1)
    n = 9_000
    pairs = {
        "rounds": [(found.draw("critique", 1, i, 1).id, found.draw("critique", 1, i, 2).id) for i in range(n)],
        "parts": [(found.draw("critique", 1, i).id, found.draw("comparison", 1, i).id) for i in range(n)],
        "seeds": [(found.draw("critique", 1, i).id, found.draw("critique", 2, i).id) for i in range(n)],
        "joined": [(found.draw("critique", 1, f"{i}1").id, found.draw("critique", f"1{i}", 1).id) for i in range(n)],
    }
    for what, drawn in pairs.items():
        counts = collections.Counter(drawn)
        chi2 = sum((counts[x, y] - n / 9) ** 2 / (n / 9) for x in "abc" for y in "abc")
        assert chi2 < 26.13, what  # 0.999 quantile, 8 degrees of freedom


def test_draw_is_the_exponential_race_on_every_machine() -> None:
    # The winner by its definition, with the logarithm of the other sign and base, on integers of the hash.
    weights = {"a": 1.0, "b": 2.5, "c": 0.3}
    found = weighted(**weights)
    for i in range(200):
        rates = {}
        for id_, weight in weights.items():
            digest = hashlib.blake2b(f"critique\x1f11\x1f{i}\x1f{id_}".encode(), digest_size=8).hexdigest()
            rates[id_] = (52 - math.log2(int(digest[:13], 16) + 0.5)) / weight
        assert found.draw("critique", 11, i).id == min(rates, key=lambda id_: rates[id_])


def test_removing_a_principle_changes_only_the_draws_that_it_won() -> None:
    before, after = weighted(a=1, b=2, c=1, d=3), weighted(a=1, c=1, d=3)
    moved = 0
    for i in range(2_000):
        old, new = before.draw("critique", 5, i).id, after.draw("critique", 5, i).id
        if old == "b":
            moved += 1
        else:
            assert new == old
    assert moved > 400


def test_adding_a_principle_changes_only_the_draws_that_it_wins() -> None:
    before, after = weighted(a=1, c=1), weighted(b=1, a=1, c=1)
    changed = [i for i in range(2_000) if before.draw("critique", i).id != after.draw("critique", i).id]
    assert {after.draw("critique", i).id for i in changed} == {"b"}
    assert 500 < len(changed) < 850  # a third


def test_a_higher_weight_only_wins_draws_and_other_edits_change_none() -> None:
    before, after = weighted(a=1, b=1, c=1), weighted(a=1, b=2, c=1)
    changed = [i for i in range(2_000) if before.draw("critique", i).id != after.draw("critique", i).id]
    assert changed
    assert {after.draw("critique", i).id for i in changed} == {"b"}
    reworded = Constitution(
        name="other", version="2", principles=tuple(Principle(id=i, text="new", tags=("t",)) for i in "cba")
    )
    drawn = [before.draw("critique", i).id for i in range(300)]
    assert drawn == [reworded.draw("critique", i).id for i in range(300)]


def test_drawing_leaves_the_constitution_equal_to_an_untouched_one() -> None:
    used = weighted(a=1, b=1)
    used.draw("critique", 1)
    assert used.sha256 == weighted(a=1, b=1).sha256
    assert used == weighted(a=1, b=1)


def test_draw_by_tag_takes_only_principles_with_the_tag() -> None:
    hhh = load_constitution("hhh")
    drawn = {hhh.draw("critique", i, tags=["privacy", "sycophancy"]).id for i in range(50)}
    assert drawn == {"private-facts", "agreement-to-please"}
    assert len({hhh.draw("critique", i).id for i in range(200)}) == 16
    assert len({hhh.draw("comparison", i).id for i in range(200)}) == 16
