"""What people reach on known sets."""

from cai.ceilings import human_ceiling


def test_human_ceilings_are_known_by_the_name_of_the_set() -> None:
    assert "by construction" in (human_ceiling("planted") or "")
    assert "73% to 77%" in (human_ceiling("data/HH-RLHF-harmless-base.jsonl.gz") or "")
    assert human_ceiling("mine.jsonl") is None
