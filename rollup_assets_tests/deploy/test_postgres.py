"""The PostgreSQL server that tests, benchmarks and the production demo run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer


def test_a_role_needs_its_password(postgres_server: PostgresServer) -> None:
    import psycopg

    postgres_server.create_role("needs password", "it's secret")
    postgres_server.create_database("needs-password", "needs password")
    with postgres_server.connect("needs-password", "needs password", "it's secret") as connection:
        assert connection.execute("select current_user").fetchall() == [("needs password",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        postgres_server.connect("needs-password", "needs password", "wrong")
    assert "it's secret" not in repr(postgres_server) + postgres_server.uri("needs-password", "needs password")


def test_a_stopped_server_goes_on_with_its_data_on_its_port(tmp_path: Path) -> None:
    from deploy.servers.postgres import postgres

    with postgres(tmp_path) as server:
        server.create_database("kept")
        port = server.port
        server.stop()
        server.start()
        assert server.port == port
    with postgres(tmp_path) as again:
        assert again.execute("select 1 from pg_database where datname = 'kept'") == [(1,)]
        assert again.superuser_password == server.superuser_password


def test_data_that_were_being_made_when_somebody_killed_it_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file that initdb writes is the one by which data are known."""
    from deploy.servers import postgres as module

    def killed(command: list[str], **_: object) -> None:
        folder = Path(command[command.index("-D") + 1])
        (folder / "PG_VERSION").write_text("18")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "run", killed)
        with pytest.raises(KeyboardInterrupt), module.postgres(tmp_path):
            pass
    with module.postgres(tmp_path) as server:
        assert server.execute("select 1") == [(1,)]


def test_a_server_that_does_not_start_says_where_to_look(tmp_path: Path) -> None:
    from deploy.servers.postgres import postgres

    with pytest.raises(RuntimeError, match=r"did not start; see .*postgres\.log"), postgres(tmp_path, options={"max_connections": "-1"}):
        pass
