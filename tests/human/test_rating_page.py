"""The rating page over HTTP, as a browser without JavaScript meets it."""

import http.client
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest
from rating_pages import FORM, Client, PageReader, Served, serving
from rating_samples import comparison, new_store

from cai.constitution import Constitution, load_constitution
from cai.errors import RunDirError
from cai.human.page_forms import MAX_BODY, Showing
from cai.human.page_guard import HEADERS
from cai.human.records import Answer
from cai.human.store import RatingStore
from cai.records import Comparison, Side

pytestmark = pytest.mark.enable_socket

ODD = (
    "<script>alert(1)</script>",
    "</div></main><img src=x onerror=alert(1)>",
    "**bold** _it_ [link](javascript:alert(1)) `code`\n\n# Heading\n| a | b |",
    "{{ 7 * 7 }} {% raw %} ${x} &amp; &lt;b&gt; &#x41;",
    "مرحبا بالعالم \u202eevil\u202c שלום",
    "zero\u200bwidth \u200d joiner, combining a\u0301\u0302, \U0001f468\u200d\U0001f469\u200d\U0001f467, \ufeffBOM",
    "  leading and trailing  \n\n\ttab\n",
    "bell \x07 and escape \x1b[31mred\x1b[0m",
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with new_store(tmp_path / "ratings.sqlite", items=6, now=_now) as store, serving(store) as found:
        yield found


def _now() -> datetime:
    return datetime.now(UTC)


def rows(store: RatingStore) -> list[tuple[str, str, str, str]]:
    return [(one.comparison_id, one.rater, one.answer, one.comment) for one in store.ratings(checks=True)]


def shown_pair(page: PageReader) -> tuple[str, str]:
    first, second = page.responses
    return first, second


def test_answer_is_that_of_the_text_and_not_of_the_place(tmp_path: Path) -> None:
    """By hand: the rater finds text A clearly better, then slightly, …; where A stands decides which button that is."""
    wanted: list[Answer] = ["a", "rather_a", "rather_b", "b", "both_bad", "skipped"] * 4
    at_a = {"a": "1", "rather_a": "2", "rather_b": "3", "b": "4"}
    at_b = {"a": "4", "rather_a": "3", "rather_b": "2", "b": "1"}
    with new_store(tmp_path / "r.sqlite", items=24, now=_now) as store, serving(store) as served:
        client = served.client()
        places = []
        for answer in wanted:
            page = client.look()
            a_first = shown_pair(page) == ("Text A.", "Text B.")
            places.append(a_first)
            value = answer if answer in ("both_bad", "skipped") else (at_a if a_first else at_b)[answer]
            assert client.answer(page, value).status == 303
        assert [one.answer for one in store.ratings()] == wanted
        assert [one.first == "a" for one in store.ratings()] == places
        assert set(places) == {True, False}


def test_two_choices(tmp_path: Path) -> None:
    with new_store(tmp_path / "r.sqlite", items=8, scale="two", now=_now) as store, serving(store) as served:
        client = served.client()
        for _ in range(8):
            page = client.look()
            assert page.buttons == ["1", "2", "both_bad", "skipped"]
            assert client.answer(page, "3").status == 400
            assert client.answer(page, "1" if page.responses[0] == "Text A." else "2").status == 303
        assert [one.answer for one in store.ratings()] == ["a"] * 8


def test_conversation_is_whole_and_its_roles_are_marked(tmp_path: Path) -> None:
    talk = ("First question?", "First reply.", "Second question?")
    items = [comparison(1, prompt=talk)]
    with new_store(tmp_path / "r.sqlite", items, now=_now) as store, serving(store) as served:
        page = served.client().look()
        assert page.turns == list(talk)
        assert re.findall(r"<h3>(\w+)</h3>", page.html) == ["Human", "Assistant", "Human"]


@pytest.mark.parametrize("text", [*ODD, "word " * 10_000])
def test_texts_are_shown_as_text(tmp_path: Path, text: str) -> None:
    items = [comparison(1, prompt=[text], a=f"A {text}", b=f"B {text}")]
    with new_store(tmp_path / "r.sqlite", items, now=_now) as store, serving(store) as served:
        page = served.client().look()
        assert page.turns == [text]
        assert sorted(page.responses) == [f"A {text}", f"B {text}"]
        assert page.html.count("<script") == 1
        assert "<img" not in page.html


def test_page_says_nothing_of_where_responses_come_from(tmp_path: Path) -> None:
    def item(id: str, gold: Side) -> Comparison:
        made = comparison(id, gold, prompt=["A question?"])
        return made.model_copy(
            update={
                "source": "revision",
                "prompt": made.prompt.model_copy(update={"id": "PROMPTID", "source": "SOURCEFILE", "kind": "helpful"}),
                "a": made.a.model_copy(update={"origin": "ORIGINONE"}),
                "b": made.b.model_copy(update={"origin": "ORIGINTWO"}),
            }
        )

    data = [item(f"DATAID{place}", "a") for place in range(4)]
    checks = [item(f"CHECKID{place}", "b") for place in range(4)]
    with (
        new_store(tmp_path / "r.sqlite", data, checks, check_every=2, now=_now) as store,
        serving(store) as served,
    ):
        client = served.client()
        seen = ""
        while True:
            reply = client.get()
            seen += reply.body + str(reply.headers)
            if "answer" not in reply.page.fields:
                break
            seen += str(client.answer(reply.page, "1").headers)
            seen += client.undo(reply.page).body + client.get().body
            client.answer(client.look(), "2")
        assert len(list(store.ratings(checks=True))) > 4, "a check was among the items"
        for word in ("DATAID", "CHECKID", "PROMPTID", "SOURCEFILE", "ORIGIN", "revision", "gold", "expected"):
            assert word not in seen, word
        assert not re.search(r'value="[ab]"', seen)


def test_what_the_page_knows_apart_two_items_by_is_opaque(tmp_path: Path) -> None:
    """Neither the number of an item nor the order of its responses can be read off the form."""
    with new_store(tmp_path / "r.sqlite", items=1, now=_now) as store, serving(store) as served:
        client = served.client()
        one, other = (client.look().fields["answer"] for _ in range(2))
        assert set(one) == {"csrf", "key", "seconds"}
        assert one["key"] != other["key"]
        hidden, also = (int(fields["key"].split("~")[2], 16) for fields in (one, other))
        assert hidden != also
        assert min(hidden, also) > 2**20


def test_undo_brings_back_answer_and_comment(served: Served) -> None:
    client = served.client()
    first = client.look()
    assert first.title == "Comparison 1"
    assert client.answer(first, "2", "Both fine,\r\nthis one <b>better</b>.").headers["location"] == "/?after=answer"
    assert client.get("/?after=answer").page.note == "Your answer is saved."
    second = client.look()
    assert second.title == "Comparison 2"
    assert client.undo(second).headers["location"] == "/?after=undo"
    again = client.get("/?after=undo").page
    assert again.note == "Your last answer is taken back. Here it is again."
    assert (again.turns, again.responses) == (first.turns, first.responses)
    assert again.chosen == ["2"]
    assert again.comment.strip() == "Both fine,\nthis one <b>better</b>."
    assert rows(served.store) == []
    assert client.answer(again, "skipped", "changed").status == 303
    assert [row[2:] for row in rows(served.store)] == [("skipped", "changed")]
    client.undo(client.look())
    assert client.look().chosen == ["skipped"]


def test_nothing_to_undo(served: Served) -> None:
    client = served.client()
    assert client.undo(client.look()).headers["location"] == "/?after=nothing"
    assert client.get("/?after=nothing").page.note == "There is no answer to take back."


def test_a_form_counts_once(served: Served) -> None:
    """A retry after a lost reply: the same form is sent twice."""
    client = served.client()
    page = client.look()
    assert [client.answer(page, "1").status for _ in range(3)] == [303, 303, 303]
    assert len(rows(served.store)) == 1
    client.answer(client.look(), "1")
    third = client.look()
    assert [client.undo(third).status for _ in range(2)] == [303, 303]
    assert len(rows(served.store)) == 1


def test_done(tmp_path: Path) -> None:
    with new_store(tmp_path / "r.sqlite", items=2, now=_now) as store, serving(store) as served:
        client = served.client()
        for _ in range(2):
            client.answer(client.look(), "1")
        page = client.look()
        assert page.title == "All done. Thank you!"
        assert "You have rated 2 comparisons as Ann" in page.text
        assert client.undo(page).headers["location"] == "/?after=undo"
        assert client.look().title == "Comparison 2"


def test_progress_is_shown(served: Served) -> None:
    client = served.client()
    for done in range(6):
        page = client.look()
        assert f"{done} answered, {5 - done} to go after this one" in page.text
        client.answer(page, "1")
    assert len(served.changes) == 6


def test_time_is_measured_by_the_page_and_bounded_by_the_server(served: Served) -> None:
    client = served.client()
    for seconds in ("0.25", "", "1e9", "-5", "inf"):
        assert client.answer(client.look(), "1", seconds=seconds).status == 303
    for seconds in ("nan", "soon"):
        assert client.answer(client.look(), "1", seconds=seconds).status == 400
    found = [one.seconds for one in served.store.ratings()]
    assert found[3] == 0
    assert all(0 <= one < 60 for one in found)
    assert found[1] > 0, "without JavaScript, the time since the page was sent"


def test_guidelines_are_the_judges_sentences(tmp_path: Path) -> None:
    rules = Constitution.model_validate(
        {
            "name": "rules",
            "version": "1",
            "principles": [
                {"id": "one", "comparison": "Choose the <kinder> reply about {{ topic }}.", "tags": ["kind", "calm"]},
                {"id": "two", "text": "Be brief."},
                {"id": "three", "comparison": "Choose the ruder reply.", "polarity": "worse"},
                {"id": "off", "text": "Switched off.", "weight": 0},
                {"id": "other", "critique": "Only criticise.", "revision": "Only revise."},
            ],
        }
    )
    made = comparison(1)
    made = made.model_copy(update={"prompt": made.prompt.model_copy(update={"topic": "tax  law"})})
    with new_store(tmp_path / "r.sqlite", [made], now=_now) as store, serving(store, rules) as served:
        text = " ".join(served.client().look().text.split())
        assert "Choose the <kinder> reply about tax law. kind calm" in text
        better, worse = text.split("lead to the worse response")
        assert "Be brief." in better
        assert "Choose the ruder reply." in worse
        assert "Choose the ruder reply." not in better
        assert "Switched off" not in text
        assert "Only" not in text


def test_shipped_guidelines_hold_every_comparison_of_the_constitution(served: Served) -> None:
    text = served.client().look().text
    sentences = [one.comparison for one in load_constitution("hhh").principles if one.comparison]
    assert len(sentences) == 16
    assert all(sentence in text for sentence in sentences)


# ---- Who may come in ------------------------------------------------------------------------------------------------


def test_a_link_sets_a_cookie_that_scripts_and_other_sites_do_not_get(served: Served) -> None:
    token = served.store.add_rater("Ann")
    reply = Client(served.port).get(f"/r/{token}")
    assert reply.status == 303
    assert reply.headers["location"] == "/?after=link"
    cookie = reply.headers["set-cookie"]
    assert f"={token};" in cookie
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert "secure" not in cookie.lower()


def test_cookie_stays_on_tls_where_a_proxy_has_it(served: Served) -> None:
    token = served.store.add_rater("Ann")
    reply = Client(served.port).send("GET", f"/r/{token}", headers={"X-Forwarded-Proto": "https"})
    assert "secure" in reply.headers["set-cookie"].lower()


@pytest.mark.parametrize("cookie", [None, "", "wrong", "\u00e9", "A" * 32])
def test_without_a_valid_token_nothing_is_shown(served: Served, cookie: str | None) -> None:
    page = served.client().look()
    client = Client(served.port, {} if cookie is None else {"cai_rater": cookie})
    for reply in (client.get("/"), client.answer(page, "1"), client.undo(page), client.get("/r/wrong")):
        assert reply.status == 401
        assert "Text A." not in reply.body
    assert rows(served.store) == []


def test_a_new_link_ends_the_old_one(served: Served) -> None:
    old, new = served.client(), served.client()
    assert old.get().status == 401
    assert new.get().status == 200


def test_link_from_another_site_comes_in_at_the_second_step(served: Served) -> None:
    """A strict cookie is not sent along with a redirect that began on another site; the page then asks once more."""
    reply = Client(served.port).get("/?after=link")
    assert reply.status == 401
    assert '<meta http-equiv="refresh" content="0; url=/">' in reply.body
    assert "refresh" not in Client(served.port).get("/").body, "and not for ever"
    assert "refresh" not in Client(served.port, {"cai_rater": "old"}).get("/?after=link").body


@pytest.mark.parametrize("of_other", [False, True])
@pytest.mark.parametrize("path", ["/answer", "/undo"])
def test_a_form_without_the_raters_own_csrf_token_is_refused(served: Served, path: str, of_other: bool) -> None:
    client, other = served.client("Ann"), served.client("Ben")
    client.answer(client.look(), "1")
    before = rows(served.store)
    page = client.look()
    form = path.removeprefix("/")
    fields = {**page.fields[form], "answer": "1"}
    if of_other:
        fields["csrf"] = other.look().fields[form]["csrf"]
    else:
        del fields["csrf"]
    assert client.post(path, fields).status == 403
    assert client.post(path, {**fields, "csrf": ""}).status == 403
    assert client.post(path, {**fields, "csrf": "\u00e9"}).status == 403
    assert rows(served.store) == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1:PORT"}, 303),
        ({"Origin": "https://rate.example"}, 303),
        ({"Origin": "https://rate.example.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "cross-site"}, 403),
        ({}, 303),
    ],
)
def test_forms_of_other_origins_are_refused(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    with new_store(tmp_path / "r.sqlite", now=_now) as store, serving(store, names=("rate.example",)) as served:
        client = served.client()
        fields = {**client.look().fields["answer"], "answer": "1"}
        headers = {name: value.replace("PORT", str(served.port)) for name, value in headers.items()}
        assert client.post("/answer", fields, headers).status == status
        assert len(rows(store)) == (status == 303)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("", 400),
        ("[", 400),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("192.0.2.7:8008", 200),
        ("[::1]:8008", 200),
    ],
)
def test_other_names_of_the_server_are_refused(served: Served, host: str, status: int) -> None:
    """A name of another site that leads here would let its pages read ours."""
    client = served.client()
    reply = client.send("GET", "/", headers={"Host": host})
    assert reply.status == status
    assert ("Text A." in reply.body) == (status == 200)
    link = f"/r/{served.store.add_rater('Ben')}"
    assert client.send("GET", link, headers={"Host": host}).status == (303 if status == 200 else 400)
    assert client.send("GET", "/static/rate.css", headers={"Host": host}).status == status


# ---- What is not this rater's to answer -----------------------------------------------------------------------------


def test_item_of_another_rater_is_refused(served: Served) -> None:
    ann, ben = served.client("Ann"), served.client("Ben")
    theirs, own = ben.look().fields["answer"], ann.look().fields["answer"]
    reply = ann.post("/answer", {**own, "key": theirs["key"], "answer": "1"})
    assert reply.status == 409
    assert 'href="/"' in reply.body
    assert rows(served.store) == []


def test_item_that_is_not_open_is_refused(served: Served) -> None:
    """Two windows: what was answered in one is gone in the other; an item that was never handed out is nobody's."""
    client = served.client()
    one, other = client.look(), client.look()
    assert client.answer(one, "1").status == 303
    assert client.answer(other, "2").status == 409
    token = client.cookies["cai_rater"]
    fields = {**client.look().fields["answer"], "answer": "1"}
    for item in (0, 5, 10**6, 2**63):
        assert client.post("/answer", {**fields, "key": Showing(item, "a", 1.0).key(token)}).status in (400, 409)
    assert [row[2] for row in rows(served.store)] in (["a"], ["b"])


def test_a_key_that_was_changed_is_refused(served: Served) -> None:
    client = served.client()
    fields = {**client.look().fields["answer"], "answer": "1"}
    stamp, nonce, hidden, mac = fields["key"].split("~")
    other = f"{int(hidden, 16) ^ 1:x}"
    for key in ("", "x", f"{stamp}~{nonce}~{other}~{mac}", f"1.0~{nonce}~{hidden}~{mac}", f"{stamp}~{nonce}~{hidden}~"):
        assert client.post("/answer", {**fields, "key": key}).status == 409
    assert client.post("/undo", {**fields, "key": fields["csrf"]}).status == 400
    assert rows(served.store) == []


# ---- Broken and hostile requests ------------------------------------------------------------------------------------


def test_broken_forms_are_refused(served: Served) -> None:
    client = served.client()
    fields = {**client.look().fields["answer"], "answer": "1"}
    without = [{name: value for name, value in fields.items() if name != lost} for lost in ("key", "answer")]
    wrong = [{**fields, "answer": answer} for answer in ("0", "5", "-1", "a", "rather_a", "1 ", "\u0661", "")]
    bad = [*without, *wrong, {**fields, "comment": "x\0y"}, {**fields, "comment": "x" * 2_001}]
    assert [client.post("/answer", one).status for one in bad] == [400] * len(bad)
    twice = [*fields.items(), ("answer", "2")]
    assert client.post("/answer", twice).status == 400
    many = [*fields.items(), *((f"x{number}", "") for number in range(20))]
    assert client.post("/answer", many).status == 400
    for body in (b"\xff\xfe", b"csrf", b"csrf=%ff", b"%zz=1&=&&"):
        assert client.send("POST", "/answer", body, FORM).status in (400, 403)
    assert rows(served.store) == []
    assert client.post("/answer", {**fields, "comment": "\U0001f600" * 2_000}).status == 303


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
def test_other_types_of_body_are_refused(served: Served, kind: str) -> None:
    client = served.client()
    body = b"csrf=" + client.look().fields["answer"]["csrf"].encode()
    assert client.send("POST", "/answer", body, {"Content-Type": kind}).status == 415
    assert client.send("POST", "/undo", body, {"Content-Type": kind}).status == 415


def test_oversized_body_is_refused_before_it_is_read(served: Served) -> None:
    client = served.client()
    cookie = f"cai_rater={client.cookies['cai_rater']}"
    head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nContent-Type: {FORM['Content-Type']}\r\n"
    for length in (MAX_BODY + 1, 10**15):
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
            raw.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert raw.recv(4096).startswith(b"HTTP/1.1 413"), "answered although no byte of the body has come"


def test_oversized_body_without_a_length_is_refused(served: Served) -> None:
    client = served.client()
    fields = client.look().fields["answer"]
    begun = f"csrf={fields['csrf']}&key={fields['key']}&answer=1&comment=".encode()
    body = begun + b"x" * (MAX_BODY + 1 - len(begun))
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.putrequest("POST", "/answer")
    sent = {**FORM, "Cookie": f"cai_rater={client.cookies['cai_rater']}", "Transfer-Encoding": "chunked"}
    for name, value in sent.items():
        connection.putheader(name, value)
    connection.endheaders()
    # No byte more than the server must read: a connection closed on unread bytes is reset before its answer is read.
    connection.send(
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1024], body[1024:])).removesuffix(b"\r\n")
    )
    assert connection.getresponse().status == 413
    connection.close()
    assert rows(served.store) == []


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/static//etc/passwd",
        "/static/",
        "/static/rate.css/",
        "/templates/item.html",
        "/ratings.sqlite",
        "/r/",
        "/r/a/b",
        "//evil.example/",
        "/docs",
        "/nothing",
    ],
)
def test_nothing_else_is_served(served: Served, path: str) -> None:
    reply = served.client().get(path)
    assert reply.status == 404
    assert "There is no such page" in reply.body
    assert "import" not in reply.body


@pytest.mark.parametrize(
    ("method", "path"),
    [*product(["POST", "PUT", "DELETE", "OPTIONS"], ["/", "/static/rate.js"]), *product(["GET", "PUT"], ["/answer"])],
)
def test_other_methods_are_refused(served: Served, method: str, path: str) -> None:
    reply = served.client().send(method, path)
    assert reply.status == 405
    assert reply.headers["allow"]


def test_undo_is_no_get(served: Served) -> None:
    client = served.client()
    client.answer(client.look(), "1")
    assert client.get("/undo").status == 405
    assert len(rows(served.store)) == 1


def test_every_response_has_the_headers(served: Served) -> None:
    client = served.client()
    page = client.look()
    replies = {
        200: client.get(),
        303: client.answer(page, "1"),
        401: Client(served.port).get(),
        403: client.post("/undo", {}),
        404: client.get("/nothing"),
        405: client.send("PUT", "/"),
        400: client.send("GET", "/", headers={"Host": "evil.example"}),
        415: client.send("POST", "/answer", b"{}", {"Content-Type": "application/json"}),
    }
    replies[409] = client.answer(page, "2")
    replies[2000] = client.get("/static/rate.js")
    for status, reply in replies.items():
        assert reply.status == status or status == 2000
        assert {name.lower(): value for name, value in HEADERS.items()}.items() <= reply.headers.items()
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert HEADERS["Cache-Control"] == "no-store"
    assert replies[2000].headers["content-type"].startswith("text/javascript")


def test_nothing_outside_is_loaded(served: Served) -> None:
    """All addresses in the page, its script and its style lead here."""
    client = served.client()
    for path in ("/", "/static/rate.js", "/static/rate.css", "/static/icon.svg"):
        body = client.get(path).body.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|url\(|@import|//[a-z]+\.", body), path
    assert not re.search(r"<[^>]* (style|on\w+)=", client.get().body)


# ---- When the server is in trouble ----------------------------------------------------------------------------------


def test_trouble_of_the_store_is_a_page_for_the_rater_and_a_line_for_the_server(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = served.client()
    page = client.look()

    def fails(*_: object, **__: object) -> None:
        raise RunDirError("/secret/place: the disk is full")

    monkeypatch.setattr(served.store, "answer", fails)
    monkeypatch.setattr(served.store, "next", fails)
    for reply, saved in (
        (client.answer(page, "1"), "This was not saved."),
        (client.get(), "All that you have answered is saved."),
    ):
        assert reply.status == 503
        assert saved in reply.body
        assert "secret" not in reply.body
    assert served.errors == ["/secret/place: the disk is full"] * 2


def test_a_bug_is_a_page_without_a_traceback(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served.client()

    def breaks(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(served.store, "next", breaks)
    reply = client.get()
    assert reply.status == 500
    assert "Something went wrong" in reply.body
    assert "secret" not in reply.body
    assert "Traceback" not in reply.body
    assert reply.headers["cache-control"] == "no-store"
