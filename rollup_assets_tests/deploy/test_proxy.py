"""The proxy that makes faults: what the server got, and what the client saw of it."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from deploy.servers.proxy import Fault, Proxy, proxy

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer

BODY = bytes(range(256)) * 8


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def table(postgres_server: PostgresServer) -> PostgresServer:
    postgres_server.create_database("proxied")
    postgres_server.execute("create table counted (n int)", database="proxied")
    return postgres_server


@pytest.fixture
def to_postgres(table: PostgresServer) -> Iterator[Proxy]:
    table.execute("truncate counted", database="proxied")
    with proxy("postgresql", table.port) as made:
        yield made


def connect(through: Proxy, server: PostgresServer, **more: Any) -> Any:
    import psycopg

    return psycopg.connect(
        host="127.0.0.1", port=through.port, dbname="proxied", user=server.superuser, password=server.superuser_password, **more
    )


def count(server: PostgresServer) -> int:
    return int(server.execute("select count(*) from counted", database="proxied")[0][0])


def test_statements_pass_and_are_understood(to_postgres: Proxy, table: PostgresServer) -> None:
    """With and without parameters, prepared, and many rows."""
    with connect(to_postgres, table) as connection:
        for number in range(8):
            connection.execute("insert into counted values (%s)", (number,), prepare=number > 3)
        assert len(connection.execute("select * from counted, generate_series(1, 1000)").fetchall()) == 8000
        connection.commit()
    assert count(table) == 8
    assert to_postgres.requests.count("insert into counted values ($1)") == 8
    assert to_postgres.requests[-1] == "COMMIT"


@pytest.mark.parametrize(("delivered", "rows"), [(True, 1), (False, 0)])
def test_a_lost_answer_is_of_a_statement_that_was_carried_out_or_of_one_that_never_arrived(
    to_postgres: Proxy, table: PostgresServer, delivered: bool, rows: int
) -> None:
    import psycopg

    seen: list[int] = []
    fault = to_postgres.add(Fault("^COMMIT$", "lost", delivered=delivered, meanwhile=lambda: seen.append(count(table))))
    connection = connect(to_postgres, table)
    connection.execute("insert into counted values (1)")
    with pytest.raises(psycopg.OperationalError, match="closed the connection"):
        connection.commit()
    assert seen == [rows]
    assert fault.hits == 1
    with connect(to_postgres, table) as connection:
        connection.execute("insert into counted values (2)")
    assert count(table) == rows + 1


def test_an_error_in_the_place_of_an_answer(to_postgres: Proxy, table: PostgresServer) -> None:
    """Of a commit that was carried out; the session goes on. The second of two inserts never arrives."""
    import psycopg

    to_postgres.add(Fault("^COMMIT$", "error"))
    with connect(to_postgres, table) as connection:
        connection.execute("insert into counted values (1)")
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.commit()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.execute("select count(*) from counted").fetchone() == (1,)
        to_postgres.add(Fault("^insert", "error", delivered=False, code="53300", skip=1))
        connection.execute("insert into counted values (2)")
        with pytest.raises(psycopg.errors.TooManyConnections):
            connection.execute("insert into counted values (3)")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        connection.rollback()
    assert count(table) == 1


def test_a_withheld_answer_never_comes_and_a_late_one_does(to_postgres: Proxy, table: PostgresServer) -> None:
    to_postgres.add(Fault("insert", "late", seconds=0.2))
    withheld = to_postgres.add(Fault("delete", "withheld"))
    connection = connect(to_postgres, table, autocommit=True)
    started = time.monotonic()
    connection.execute("insert into counted values (1)")
    assert time.monotonic() - started >= 0.2

    def wait() -> None:
        with pytest.raises(Exception, match="closed"):
            connection.execute("delete from counted")

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert withheld.reached.wait(10)
    waiting.join(0.1)
    assert waiting.is_alive()
    assert count(table) == 0
    to_postgres.cut()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_request_that_is_late_itself_meets_what_came_before_it(to_postgres: Proxy, table: PostgresServer) -> None:
    to_postgres.add(
        Fault("select", "late", delivered=False, meanwhile=lambda: table.execute("insert into counted values (1)", database="proxied"))
    )
    with connect(to_postgres, table) as connection:
        assert connection.execute("select count(*) from counted").fetchone() == (1,)


def test_the_seed_decides_who_is_hit(table: PostgresServer) -> None:
    def hit(seed: int) -> list[int]:
        import psycopg

        found = []
        with proxy("postgresql", table.port, seed) as made:
            made.add(Fault("select", "error", times=None, chance=0.5))
            with connect(made, table, autocommit=True) as connection:
                for number in range(20):
                    try:
                        connection.execute("select 1")
                    except psycopg.errors.SerializationFailure:
                        found.append(number)
        return found

    assert hit(1) == hit(1)
    assert 0 < len(hit(1)) < 20
    assert hit(1) != hit(2)


def test_a_proxy_without_a_server_closes_connections_until_it_has_one(to_postgres: Proxy, table: PostgresServer) -> None:
    import psycopg

    port, to_postgres.target = to_postgres.target, None
    with pytest.raises(psycopg.OperationalError):
        connect(to_postgres, table)
    to_postgres.target = port
    connect(to_postgres, table).close()


def test_what_goes_wrong_meanwhile_is_not_lost(table: PostgresServer) -> None:
    def fail() -> None:
        raise RuntimeError("meanwhile")

    def provoke() -> None:
        with proxy("postgresql", table.port) as made:
            made.add(Fault("select", "late", meanwhile=fail))
            with connect(made, table) as connection:
                connection.execute("select 1")

    with pytest.raises(RuntimeError, match="meanwhile"):
        provoke()


def test_bytes_pass(table: PostgresServer) -> None:
    with proxy("bytes", table.port) as made:
        with connect(made, table) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert made.requests == []


# ----------------------------------------------------------------------------------------------------------------- HTTP


class _Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.command, self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        chunked = self.path == "/chunked"
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(BODY)))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        server.daemon_threads = True
        server.got = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def to_store(store: http.server.ThreadingHTTPServer) -> Iterator[Proxy]:
    with proxy("http", store.server_port) as made:
        yield made


def ask(through: Proxy, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", through.port, timeout=5)
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_requests_pass_one_after_another_on_one_connection(to_store: Proxy, store: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", to_store.port, timeout=5)
    for method, body in (("GET", None), ("HEAD", None), ("PUT", b"content"), ("GET", None)):
        connection.request(method, "/a?x=1", body, {"Expect": "100-continue"} if body else {})
        assert connection.getresponse().read() == (b"" if method == "HEAD" else BODY)
    assert [(method, body) for method, _, body in store.got] == [("GET", b""), ("HEAD", b""), ("PUT", b"content"), ("GET", b"")]
    assert to_store.requests == ["GET /a?x=1", "HEAD /a?x=1", "PUT /a?x=1", "GET /a?x=1"]


def test_chunks_pass(to_store: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", to_store.port, timeout=5)
    for _ in range(2):
        connection.request("GET", "/chunked")
        assert connection.getresponse().read() == BODY


def test_a_request_is_refused_before_or_after_the_server_has_it(to_store: Proxy, store: Any) -> None:
    to_store.add(Fault("^PUT /a", "error", delivered=False))
    to_store.add(Fault("^PUT /a", "error", code="500"))
    assert ask(to_store, "PUT", "/a", b"1")[0] == 503
    assert store.got == []
    status, body = ask(to_store, "PUT", "/a", b"2")
    assert (status, b"<Code>InternalError</Code>" in body) == (500, True)
    assert ask(to_store, "PUT", "/a", b"3") == (200, BODY)
    assert [body for *_, body in store.got] == [b"2", b"3"]
    to_store.add(Fault("HEAD", "error", code="403"))
    assert ask(to_store, "HEAD", "/a") == (403, b"")


def test_an_answer_is_lost_after_the_server_has_carried_out_the_request(to_store: Proxy, store: Any) -> None:
    to_store.add(Fault("^PUT", "lost"))
    with pytest.raises(http.client.RemoteDisconnected):
        ask(to_store, "PUT", "/a", b"1")
    assert store.got == [("PUT", "/a", b"1")]


def test_a_body_is_truncated_or_has_one_bit_flipped(to_store: Proxy) -> None:
    to_store.add(Fault("GET", "truncated"))
    to_store.add(Fault("GET", "flipped"))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(to_store, "GET", "/a")
    assert caught.value.partial == BODY[: len(BODY) // 2]
    _, found = ask(to_store, "GET", "/a")
    assert sum((one ^ other).bit_count() for one, other in zip(found, BODY, strict=True)) == 1
    assert ask(to_store, "GET", "/a") == (200, BODY)


def test_a_withheld_answer_is_given_up_by_the_client(to_store: Proxy) -> None:
    to_store.add(Fault("GET", "withheld"))
    connection = http.client.HTTPConnection("127.0.0.1", to_store.port, timeout=0.3)
    connection.request("GET", "/a")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    assert ask(to_store, "GET", "/a")[0] == 200
