"""`cai rate` as a process: rating directories, links, the way to stop, and kill -9 under eight raters."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from random import Random
from urllib.parse import urlencode, urlsplit

import pytest
from cai_process import CAI, Finished, finish, start
from rating_pages import FORM, Client, PageReader
from rating_samples import comparison

from cai.human.page_directory import STORE
from cai.human.records import Answer, Rating
from cai.human.store import RatingStore

pytestmark = pytest.mark.enable_socket


def write_source(folder: Path, number: int, name: str = "source.jsonl") -> Path:
    """Comparisons whose texts say which one they are and which response is the better one."""
    path = folder / name
    rows = (
        {"id": f"c{n}", "prompt": f"Question {n}?", "response_a": f"good {n}", "response_b": f"bad {n}"}
        if n % 2
        else {"id": f"c{n}", "prompt": f"Question {n}?", "response_a": f"bad {n}", "response_b": f"good {n}"}
        for n in range(number)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Server:
    """A running `cai rate`."""

    process: subprocess.Popen[str]
    lines: list[str]
    """What it has printed before it served."""

    @property
    def links(self) -> dict[str, str]:
        """Those that were printed, by rater."""
        return dict(re.findall(r"^(\S+): (http://\S+/r/\S+)$", "\n".join(self.lines), re.MULTILINE))

    @property
    def port(self) -> int:
        port = urlsplit(re.findall(r"http://\S+", "\n".join(self.lines))[0]).port
        assert port is not None
        return port

    def stop(self, by: signal.Signals = signal.SIGINT) -> str:
        """Stop it as Ctrl-C does, and return what it prints then."""
        self.process.send_signal(by)
        done = finish(self.process)
        assert done.code == 0, done.err
        assert done.err == ""
        return done.out


@contextmanager
def rating(words: Sequence[str], cwd: Path) -> Iterator[Server]:
    process = start(["rate", *words], cwd)
    try:
        yield _served(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _served(process: subprocess.Popen[str]) -> Server:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("Ctrl-C"):
            return Server(process, lines)
    raise AssertionError("".join(lines) + finish(process).err)


def refused(words: Sequence[str], cwd: Path) -> Finished:
    """Run `cai rate` where it is not to serve; one that does is killed in the end."""
    done = subprocess.run([*CAI, "rate", *words], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return Finished(done.returncode, done.stdout, done.stderr)


def stored(out: Path) -> list[Rating]:
    with RatingStore.open(out / STORE) as store:
        return list(store.ratings())


def better(page: PageReader) -> str:
    """The button for the text that is better."""
    return "1" if page.responses[0].startswith("good") else "4"


def test_rates_stops_and_goes_on(tmp_path: Path) -> None:
    source = str(write_source(tmp_path, 3))
    words = [source, "--out", "out", "--port", "0", "--rater", "first", "--rater", "second", "--check-every", "0"]
    with rating(words, tmp_path) as server:
        assert list(server.links) == ["first", "second"]
        assert "comparisons: 3" in server.lines[0]
        client = Client(server.port).open(server.links["first"])
        client.answer(client.look(), better(client.look()))
        printed = server.stop()
    assert re.search(r"first\s+1 answered \(0 skipped\), median [\d.]+ s", printed)
    assert re.search(r"second\s+0 answered", printed)
    assert "go on with: cai rate out" in printed

    with rating(["out", "--port", str(server.port), "--rater", "cleo"], tmp_path) as again:
        assert list(again.links) == ["cleo"], "the others keep theirs"
        assert client.look().title == "Comparison 2"
        client.answer(client.look(), "4")
        again.stop(signal.SIGTERM)
    assert [(one.rater, one.comment) for one in stored(tmp_path / "out")] == [("first", "")] * 2

    with rating([*words, "--new-links"], tmp_path) as fresh:
        assert set(fresh.links) == {"first", "second", "cleo"}
        other = Client(fresh.port, dict(client.cookies))
        other.cookies = {name.replace(str(server.port), str(fresh.port)): one for name, one in other.cookies.items()}
        assert other.get().status == 401, "the link made before has ended"
        fresh.stop()


def test_one_rater_where_none_is_named_and_a_directory_by_the_settings(tmp_path: Path) -> None:
    source = str(write_source(tmp_path, 3))
    with rating([source, "--port", "0"], tmp_path) as server:
        assert list(server.links) == ["rater"]
        server.stop()
    with rating([source, "--port", "0", "--rater", "rater", "--rater", "second"], tmp_path) as server:
        assert list(server.links) == ["second"], "raters do not make it another directory"
        server.stop()
    with rating([source, "--port", "0", "--scale", "two"], tmp_path) as server:
        server.stop()
    found = sorted((tmp_path / "runs").iterdir())
    assert len(found) == 2
    assert all(re.fullmatch(r"rate-[0-9a-f]{8}", path.name) for path in found)
    assert {(path / "constitution.yaml").is_file() for path in found} == {True}


def test_skip_limit_and_a_config_file(tmp_path: Path) -> None:
    source = write_source(tmp_path, 9)
    (tmp_path / "rate.yaml").write_text(
        f"source: {source}\nskip: 2\nlimit: 3\nport: 0\nraters: [ann]\n"
        "rating: {scale: two, check_every: 0, overlap: 0}\n"
    )
    with rating(["--config", "rate.yaml", "--out", "out"], tmp_path) as server:
        client = Client(server.port).open(server.links["ann"])
        seen = []
        while (page := client.look()).responses:
            seen += page.turns
            client.answer(page, "1")
        server.stop()
    assert sorted(seen) == ["Question 2?", "Question 3?", "Question 4?"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scale", "two"], ["scale is two, was four"]),
        (["--overlap", "0.5", "--seed", "3"], ["overlap is 0.5, was 0.1", "seed is 3, was 0"]),
        (["--constitution", "short"], ["the constitution changed"]),
        (["--check-every", "0"], ["check_every is 0, was 20", "the attention checks changed"]),
        (["--checks", "checks.jsonl"], ["the attention checks changed"]),
        (["--limit", "2"], ["the comparisons changed"]),
        (["--skip", "1"], ["the comparisons changed"]),
    ],
)
def test_other_settings_for_the_same_directory_are_named(tmp_path: Path, words: list[str], said: list[str]) -> None:
    source = write_source(tmp_path, 3)
    rows = [{"id": "k", "prompt": "2 + 2?", "response_a": "4", "response_b": "5", "gold": "a"}]
    (tmp_path / "checks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with rating([str(source), "--out", "out", "--port", "0"], tmp_path) as server:
        server.stop()
    done = refused([str(source), "--out", "out", "--port", "0", *words], tmp_path)
    assert done.code == 1
    assert all(part in done.err for part in said), done.err
    assert "Give another --out" in done.err
    again = refused(["out", "--port", "0", *words], tmp_path)
    assert again.code == 1
    assert said[0] in again.err or f"{words[0].removeprefix('--')} cannot be set any more" in again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "source"),
        (["nothing.jsonl"], "nothing.jsonl"),
        (["source.jsonl", "--skip", "3"], "`skip` passes over all of them"),
        (["source.jsonl", "--rater", "ann", "--rater", "ann"], "names `ann` twice"),
        (["source.jsonl", "--rater", " "], "cannot be a rater's name"),
        (["source.jsonl", "--port", "70000"], "port"),
        (["source.jsonl", "--host", "no.such.name.invalid"], "no.such.name.invalid"),
        (["source.jsonl", "--constitution", "none"], "none"),
        (["planted"], "is one of the attention checks (planted) as well"),
        (["source.jsonl", "--out", "full"], "is not a rating directory and not empty"),
        (["source.jsonl", "--overlap", "2"], "overlap"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(tmp_path: Path, words: list[str], said: str) -> None:
    write_source(tmp_path, 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    done = refused(["--port", "0", *words], tmp_path)
    assert done.code in (1, 2)
    assert said in done.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/" + STORE)) or "name" in said


def test_answers_that_were_assumed_check_nobody(tmp_path: Path) -> None:
    made = comparison("k", "a").model_copy(update={"source": "contrast"})
    (tmp_path / "checks.jsonl").write_text(made.model_dump_json() + "\n")
    words = [str(write_source(tmp_path, 3)), "--checks", "checks.jsonl", "--port", "0", "--out", "out"]
    done = refused(words, tmp_path)
    assert done.code == 2
    assert "checks nobody's attention" in done.err
    assert not (tmp_path / "out" / STORE).exists()


def test_a_rating_directory_is_gone_on_with_where_it_is(tmp_path: Path) -> None:
    with rating([str(write_source(tmp_path, 3)), "--out", "out", "--port", "0"], tmp_path) as server:
        server.stop()
    done = refused(["out", "--out", "other", "--port", "0"], tmp_path)
    assert done.code == 2
    assert "leave out --out other" in done.err
    with rating(["out", "--out", "./out", "--port", "0"], tmp_path) as server:
        server.stop()


def test_client_that_hangs_up_leaves_nothing(tmp_path: Path) -> None:
    """Half a form comes, and then nothing: nothing is stored, and nobody is told of a bug."""
    with rating([str(write_source(tmp_path, 3)), "--out", "out", "--port", "0"], tmp_path) as server:
        client = Client(server.port).open(server.links["rater"])
        fields = urlencode({**client.look().fields["answer"], "answer": "1"})
        ((name, value),) = client.cookies.items()
        head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nCookie: {name}={value}\r\nContent-Length: 5000\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(f"{head}Content-Type: {FORM['Content-Type']}\r\n\r\n{fields}".encode())
        assert client.look().title == "Comparison 1"
        server.stop()
    with RatingStore.open(tmp_path / "out" / STORE) as store:
        assert list(store.ratings(checks=True)) == []


def test_a_taken_port_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = refused([str(write_source(tmp_path, 3)), "--port", str(port), "--out", "out"], tmp_path)
    assert done.code == 2
    assert done.err.startswith(f"error: port {port} of 127.0.0.1 is taken; ")
    assert not (tmp_path / "out").exists()


def test_listening_beyond_this_machine_is_warned_of(tmp_path: Path) -> None:
    words = [str(write_source(tmp_path, 3)), "--port", "0", "--host", "0.0.0.0", "--allow-host", "rate.example"]
    with rating(words, tmp_path) as server:
        assert any("plain HTTP" in line for line in server.lines)
        assert socket.gethostname() in server.links["rater"]
        client = Client(server.port)
        token = urlsplit(server.links["rater"]).path
        for host, status in ((socket.gethostname(), 303), ("rate.example", 303), ("evil.example", 400)):
            assert client.send("GET", token, headers={"Host": host}).status == status
        server.stop()


def test_tokens_stand_in_no_file_and_in_nothing_that_is_printed_later(tmp_path: Path) -> None:
    with rating([str(write_source(tmp_path, 3)), "--port", "0", "--out", "out"], tmp_path) as server:
        token = server.links["rater"].rpartition("/")[2]
        client = Client(server.port).open(server.links["rater"])
        client.answer(client.look(), "1")
        client.get("/nothing")
        client.post("/answer", {})
        kept = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
        assert token.encode() not in kept
        assert token not in server.stop()


def test_a_terminal_has_a_count_that_goes_along(tmp_path: Path) -> None:
    source = str(write_source(tmp_path, 3))
    seen, terminal = os.openpty()
    process = subprocess.Popen(
        [*CAI, "rate", source, "--port", "0", "--check-every", "0"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(terminal)
    try:
        text = ""

        def read_until(words: str) -> None:
            nonlocal text
            while words not in text:
                text += os.read(seen, 4096).decode(errors="replace")

        read_until("0 answers by 1 rater; 3 comparisons")
        link = re.findall(r"http://\S+/r/[\w-]+", text)[0]
        client = Client(urlsplit(link).port or 0).open(link)
        client.answer(client.look(), "1")
        read_until("1 answers by 1 rater; 3 comparisons")
        process.send_signal(signal.SIGINT)
        read_until("go on with: cai rate")
        assert process.wait(60) == 0
        assert "Traceback" not in text
    finally:
        process.kill()
        process.wait()
        os.close(seen)


# ---- Eight raters and a server that is killed -----------------------------------------------------------------------

RATERS = 8
RATINGS = 2_000
KILLS = (500, 1_000, 1_500)
"""The server is killed once so many ratings are confirmed."""


@dataclass
class Afternoon:
    """What the raters know of each other and of the server."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    lives: int = 0
    """How often the server has been started."""
    confirmed: list[tuple[str, str, Answer]] = field(default_factory=list)
    """Rater, comparison and answer of each reply 303."""


def _rates(client: Client, name: str, day: Afternoon) -> None:
    """Rate until nothing is left; where the server is away, wait for it and send the same form again."""
    random = Random(name)

    def insist(page: PageReader | None = None, value: str = "") -> PageReader | None:
        while True:
            life = day.lives
            try:
                if page is None:
                    return client.look()
                reply = client.answer(page, value)
                assert reply.status == 303, reply.body
                return None
            except ConnectionRefusedError:
                with day.changed:
                    assert day.changed.wait_for(lambda life=life: day.lives > life, timeout=120)  # type: ignore[misc]
            except (OSError, HTTPException):
                continue  # the connection was to the server that has gone; the next one says whether there is another

    while True:
        page = insist()
        assert page is not None
        if not page.responses:
            return
        value = random.choice("1234")
        insist(page, value)
        number = page.responses[0].split()[1]
        # By hand: in odd comparisons a is the good one.
        a_first = page.responses[0].startswith("good") == (int(number) % 2 == 1)
        order: tuple[Answer, ...] = ("a", "rather_a", "rather_b", "b")
        answer = (order if a_first else order[::-1])[int(value) - 1]
        with day.changed:
            day.confirmed.append((name, f"c{number}", answer))
            day.changed.notify_all()


def test_nothing_confirmed_is_lost_when_the_server_is_killed_under_eight_raters(tmp_path: Path) -> None:
    source = str(write_source(tmp_path, RATINGS // 2))
    names = [f"rater-{number}" for number in range(RATERS)]
    words = ["--out", "out", "--overlap", "1", "--overlap-raters", "2", "--check-every", "0", "--port", "0"]
    day = Afternoon(lives=1)
    failed: list[BaseException] = []

    def rates(client: Client, name: str) -> None:
        try:
            _rates(client, name, day)
        except BaseException as error:
            failed.append(error)
            with day.changed:
                day.changed.notify_all()
        finally:
            client.close()

    with rating([source, *words, *(word for name in names for word in ("--rater", name))], tmp_path) as server:
        port, process = server.port, server.process
        clients = [Client(port, keeps_connection=True).open(server.links[name]) for name in names]
        threads = [threading.Thread(target=rates, args=one) for one in zip(clients, names, strict=True)]
        try:
            for thread in threads:
                thread.start()
            for kill in KILLS:
                with day.changed:
                    assert day.changed.wait_for(lambda kill=kill: failed or len(day.confirmed) >= kill, timeout=300)  # type: ignore[misc]
                assert not failed, failed
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                process = start(["rate", "out", "--port", str(port)], tmp_path)
                _served(process)
                with day.changed:
                    day.lives += 1
                    day.changed.notify_all()
        finally:
            for thread in threads:
                thread.join(300)
            process.kill()
            process.communicate()
    assert not failed, failed

    found = stored(tmp_path / "out")
    assert len(day.confirmed) == RATINGS
    assert Counter((one.rater, one.comparison_id, one.answer) for one in found) == Counter(day.confirmed)
    assert max(Counter((one.rater, one.comparison_id) for one in found).values()) == 1
    assert set(Counter(one.comparison_id for one in found).values()) == {2}
    for name in names:
        places = Counter(one.first for one in found if one.rater == name)
        assert abs(places["a"] - places["b"]) <= 1
