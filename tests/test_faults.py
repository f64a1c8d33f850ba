"""Faults that users meet, through real processes: one clear message, a non-zero exit, nothing finished lost."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cai_process import SCRIPT, complete, exported, job, manifest, records, run, words, write_prompts, write_script

CONSTITUTION = "name: mine\nversion: '1'\nprinciples:\n  - id: kind\n    text: Be kind.\n"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- an existing run directory ------------------------------------------------------------------------------------


def test_a_changed_configuration_is_refused_and_each_difference_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CONSTITUTION)
    job_words = [*job(tmp_path, 3), "--out", "run", "--constitution", "mine.yaml"]
    complete(job_words, tmp_path)
    before = records(tmp_path / "run"), exported(tmp_path / "run")
    (tmp_path / "mine.yaml").write_text(CONSTITUTION.replace("kind.", "kinder."))
    refused = run([*job_words, "--seed", "3", "--max-tokens", "9"], tmp_path)
    assert refused.code == 1
    assert refused.err == (
        "error: run holds a run with another configuration: sampling.max_tokens is 9, was 256; seed is 3, was 0; "
        "the constitution changed. Give another --out, or --overwrite to start it anew\n"
    )
    assert (records(tmp_path / "run"), exported(tmp_path / "run")) == before


def test_overwrite_starts_anew_and_keeps_files_that_are_not_of_the_run(tmp_path: Path) -> None:
    job_words = [*job(tmp_path, 4), "--out", "run"]
    complete(job_words, tmp_path)
    for mine in ("notes.txt", "data/mine.csv"):
        (tmp_path / "run" / mine).write_text("mine")
    before = records(tmp_path / "run"), set(exported_names(tmp_path / "run"))
    complete([*job_words, "--seed", "3", "--overwrite"], tmp_path)
    assert records(tmp_path / "run").keys() == before[0].keys()
    assert not set(records(tmp_path / "run").values()) & set(before[0].values())
    assert not set(exported_names(tmp_path / "run")) & before[1]
    assert manifest(tmp_path / "run")["sessions"] == 1
    for mine in ("notes.txt", "data/mine.csv"):
        assert (tmp_path / "run" / mine).read_text() == "mine"


def exported_names(out: Path) -> list[str]:
    return [path.name for path in (out / "data").glob("*.parquet")]


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, more: tuple[str, ...]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    refused = run([*job(tmp_path, 3), "--out", "thesis", *more], tmp_path)
    assert refused.code == 1
    assert refused.err == "error: thesis is not a run directory and not empty (chapter.tex); choose another --out\n"
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


# --- failed prompts -----------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_counted_and_the_others_are_finished(tmp_path: Path) -> None:
    texts = [f"Question {n}?" for n in range(20)]
    prompts = write_prompts(tmp_path, [*texts, "An OVERLONG question?"])
    done = complete([*words(prompts, write_script(tmp_path)), "--out", "run"], tmp_path)
    assert re.search(r"failed +1, 1 context_overflow", done.out)
    out = tmp_path / "run"
    assert lines(out / "failures.jsonl") == [
        {
            "id": "p20", "index": 22, "step": "draft", "reason": "context_overflow",
            "message": "the script fails this request",
        }
    ]  # fmt: skip
    assert len(records(out)) == 20 + 2
    assert "p20" not in records(out)
    assert (manifest(out)["state"], manifest(out)["failures"]) == ("finished", {"context_overflow": 1})


def test_too_many_failures_fail_the_command_after_the_export_and_can_be_retried(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, [f"{'OVERLONG' if n % 2 else 'Question'} {n}?" for n in range(10)])
    job_words = [*words(prompts, write_script(tmp_path)), "--out", "run"]
    out = tmp_path / "run"
    failed = run(job_words, tmp_path)
    assert failed.code == 1
    assert failed.err == (
        "error: 5 of 11 chains failed (5 context_overflow), more than the share of 0.1 that is allowed; "
        "run/failures.jsonl has each. --retry-failed tries them again, --max-failure-share allows more\n"
    )
    assert manifest(out)["state"] == "failed"
    kept = records(out)
    assert len(kept) == 6
    first_export = exported(out)

    again = run(job_words, tmp_path)  # failed prompts are not tried again unasked
    assert (again.code, again.err) == (failed.code, failed.err)
    assert len(lines(out / "failures.jsonl")) == 5
    allowed = run([*job_words, "--max-failure-share", "0.5"], tmp_path)
    assert allowed.code == 0
    assert exported(out) == first_export

    write_script(tmp_path, SCRIPT.replace("OVERLONG", "no such text"))
    complete([*job_words, "--retry-failed"], tmp_path)
    found = records(out)
    assert len(found) == 11
    assert {id: found[id] for id in kept} == kept
    assert (manifest(out)["state"], manifest(out)["failures"]) == ("finished", {})
    assert exported(out).keys() != first_export.keys()


def test_a_retry_that_fails_again_is_one_failed_prompt_with_two_tries(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, ["OVERLONG?", *(f"Question {n}?" for n in range(19))])
    job_words = [*words(prompts, write_script(tmp_path)), "--out", "run"]
    complete(job_words, tmp_path)
    done = complete([*job_words, "--retry-failed"], tmp_path)
    assert re.search(r"failed +1, 1 context_overflow", done.out)
    assert len(lines(tmp_path / "run" / "failures.jsonl")) == 2
    assert manifest(tmp_path / "run")["counts"]["failed"] == 1
    write_script(tmp_path, SCRIPT.replace("context_overflow", "timeout"))
    complete([*job_words, "--retry-failed"], tmp_path)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "failed: timeout" in card
    assert "overflow" not in card


def test_a_data_file_that_was_removed_is_exported_again(tmp_path: Path) -> None:
    job_words = [*job(tmp_path, 5), "--out", "run"]
    complete(job_words, tmp_path)
    before = exported(tmp_path / "run")
    (tmp_path / "run" / "data" / min(before)).unlink()
    complete(job_words, tmp_path)
    assert exported(tmp_path / "run") == before


def test_a_run_where_everything_fails_gives_up_and_goes_on_when_that_is_mended(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, [f"Question {n}?" for n in range(90)])
    broken = SCRIPT.replace("OVERLONG, fail: context_overflow", "'Question [1-9]', fail: timeout")
    job_words = [*words(prompts, write_script(tmp_path, broken)), "--out", "run"]
    job_words += ["--helpful-ratio", "0", "--concurrency", "1"]
    stopped = run(job_words, tmp_path)
    assert stopped.code == 1
    assert stopped.err == (
        "error: stopped after 50 failures in a row, the last one at draft: the script fails this request. What is "
        "finished is kept; mend the cause and run the same command again with --retry-failed\n"
    )
    out = tmp_path / "run"
    assert len(lines(out / "failures.jsonl")) == 50
    assert list(records(out)) == ["p0"]
    write_script(tmp_path)
    complete([*job_words, "--retry-failed"], tmp_path)
    assert len(records(out)) == 90


def test_an_engine_that_ends_stops_the_run_which_goes_on_later(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, [f"Question {n}?" for n in range(30)])
    dying = SCRIPT.replace("OVERLONG, fail: context_overflow", "'Question 20', fail: engine")
    job_words = [*words(prompts, write_script(tmp_path, dying)), "--out", "run"]
    stopped = run(job_words, tmp_path)
    assert (stopped.code, stopped.err) == (1, "error: the script ends the engine here\n")
    kept = records(tmp_path / "run")
    assert len(kept) >= 15
    assert manifest(tmp_path / "run")["state"] == "stopped"
    write_script(tmp_path)
    complete(job_words, tmp_path)
    found = records(tmp_path / "run")
    assert len(found) == 33
    assert {id: found[id] for id in kept} == kept


# --- files that are wrong -----------------------------------------------------------------------------------------


def explained(arguments: list[str], cwd: Path, *said: str) -> None:
    """Check that a command is refused with exit code 2 and these patterns in its message, before any work."""
    before = sorted(cwd.rglob("*"))
    refused = run([*arguments, "--out", "run"], cwd)
    assert refused.code == 2, refused
    for pattern in said:
        assert re.search(pattern, refused.err), refused.err
    assert not re.search(r"\w+Error\b", refused.err)
    assert len(refused.err) < 2000
    assert sorted(cwd.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONSTITUTION.replace("text:", "txt:"), (r"mine\.yaml:5: ", r"\btxt\b", "text")),
        (CONSTITUTION + "  - id: kind\n    text: Again.\n", (r"mine\.yaml:6: ", "kind")),
        (CONSTITUTION.replace("Be kind.", "'{{ nobody }}'"), (r"mine\.yaml:5: ", "nobody")),
        (CONSTITUTION.replace("Be kind.", "'{% if %}'"), (r"mine\.yaml:5: ",)),
        (CONSTITUTION.replace("id: kind", "id: [kind"), (r"mine\.yaml:\d: ",)),
        ("", (r"mine\.yaml(:1)?: ", "empty")),
        (CONSTITUTION + "# " + "x" * 1_100_000, (r"mine\.yaml: ", "(MB|bytes|large)")),
        (CONSTITUTION.encode("utf-16"), (r"mine\.yaml", "UTF-8")),
    ],
    ids=["unknown key", "duplicate id", "unknown variable", "bad Jinja", "bad YAML", "empty", "1 MB", "not UTF-8"],
)
def test_a_wrong_constitution_is_explained(tmp_path: Path, text: str | bytes, said: tuple[str, ...]) -> None:
    (tmp_path / "mine.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    explained([*job(tmp_path, 3), "--constitution", "mine.yaml"], tmp_path, *said)


def test_a_missing_constitution_is_explained(tmp_path: Path) -> None:
    explained([*job(tmp_path, 3), "--constitution", "nowhere.yaml"], tmp_path, r"nowhere\.yaml")


PACKED = gzip.compress(b'{"prompt": "Hello?"}\n' * 50, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b"", ("has no rows",)),
        ("p.txt", b"caf\xe9 noir?\n", ("UTF-8",)),
        ("p.jsonl", b'{"prompt": "half\n', ("not_json", "row 1")),
        ("p.csv", b"colour,size\nred,3\n", ("prompt", "colour")),
        ("p.jsonl.gz", PACKED[: len(PACKED) // 2], (r"\.gz",)),
        ("p.jsonl.gz", b"not packed at all", (r"\.gz",)),
        ("p.parquet", b"PAR1 and nothing more", (r"p\.parquet",)),
        ("p.docx", b"x", (r"p\.docx",)),
    ],
    ids=["empty", "not UTF-8", "broken line", "no column", "truncated gz", "no gz", "no parquet", "unknown kind"],
)
def test_a_wrong_prompt_file_is_explained(tmp_path: Path, name: str, content: bytes, said: tuple[str, ...]) -> None:
    prompts = tmp_path / name
    prompts.write_bytes(content)
    explained(words(prompts, write_script(tmp_path)), tmp_path, re.escape(name), *said)


def test_broken_rows_and_duplicate_ids_are_listed_and_the_others_are_used(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, [f"Question {n}?" for n in range(10)])
    with prompts.open("a") as file:
        file.write('{"id": "p3", "prompt": "Another?"}\n{"prompt": "half\n')
    done = complete([*words(prompts, write_script(tmp_path)), "--out", "run"], tmp_path)
    assert "duplicate_id" in done.out
    assert [(row["row"], row["reason"]) for row in lines(tmp_path / "run" / "rejects.jsonl")] == [
        (11, "duplicate_id"),
        (12, "not_json"),
    ]
    assert len(records(tmp_path / "run")) == 11


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("revision.j2", "{% block user %}", ()),
        ("revision.j2", "{% block user %}{{ nobody }}{% endblock %}{% block request %}{% endblock %}", ("nobody",)),
        ("critique.j2", "no block at all", ("block|request",)),
    ],
    ids=["syntax", "unknown variable", "missing block"],
)
def test_a_wrong_template_is_explained(tmp_path: Path, name: str, text: str, said: tuple[str, ...]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(text)
    explained([*job(tmp_path, 3), "--templates", "mine"], tmp_path, re.escape(name), *said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nroundz: 2\n", (r"run\.yaml:2: ", "roundz", "rounds")),
        ("seed: 1\nengine:\n  engine: scriptd\n", (r"run\.yaml:3: ", "engine", "scripted")),
        ("rounds: 0\nlimit: many\n", (r"run\.yaml:1: ", r"run\.yaml:2: ")),
        ("rounds: [\n", (r"run\.yaml:\d: ",)),
    ],
    ids=["unknown key", "unknown engine", "two at once", "bad YAML"],
)
def test_a_wrong_config_file_is_explained(tmp_path: Path, text: str, said: tuple[str, ...]) -> None:
    (tmp_path / "run.yaml").write_text(text)
    prompts = write_prompts(tmp_path, ["Question?"])
    explained(["critique-revise", "--config", "run.yaml", "--prompts", str(prompts)], tmp_path, *said)


def test_a_wrong_script_is_explained(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, ["Question?"])
    script = write_script(tmp_path, "answers:\n  - {sey: Hello}\n")
    refused = run([*words(prompts, script), "--out", "run"], tmp_path)
    assert refused.code == 2
    assert re.search(r"script\.yaml:2: .*sey.*say", refused.err)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, ["Question?"])
    refused = run(["critique-revise", "--prompts", str(prompts), "--model", "./nowhere", "--out", "run"], tmp_path)
    assert refused.code == 1
    assert refused.err == (
        "error: there is no model directory ./nowhere; give a directory or a hub id such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct\n"
    )


def test_a_run_directory_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused = run([*job(tmp_path, 3), "--out", "file/run"], tmp_path)
    assert refused.code == 1
    assert refused.err == ("error: file/run cannot be used as a run directory: Not a directory; choose another --out\n")


@pytest.mark.parametrize("spoil", [lambda line: b"x" + line, lambda line: line[: len(line) // 2] + b"\n"])
def test_a_broken_record_is_named_and_once_removed_made_anew(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    job_words = [*job(tmp_path, 5), "--out", "run"]
    complete(job_words, tmp_path)
    path = tmp_path / "run" / "records.jsonl"
    before, data = records(tmp_path / "run"), exported(tmp_path / "run")
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:2], spoil(whole[2]), *whole[3:]]))
    refused = run(job_words, tmp_path)
    assert refused.code == 1
    assert refused.err == ("error: run/records.jsonl:3: broken line; remove it, and its record is made anew\n")
    path.write_bytes(b"".join([*whole[:2], *whole[3:]]))
    complete(job_words, tmp_path)
    assert records(tmp_path / "run") == before
    assert exported(tmp_path / "run") == data
