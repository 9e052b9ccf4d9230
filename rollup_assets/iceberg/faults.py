"""Says in one sentence what is wrong with a catalog that is in use: translates the errors of drivers and clients.

What can go wrong while one is opened is said where that is done (``catalog``, ``postgres``, ``rest``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rollup_assets.errors import CatalogError
from rollup_assets.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

_PASSWORD = "set ROLLUP_CATALOG_PASSWORD, or ROLLUP_CATALOG_PASSWORD_FILE, to the password of the user in ROLLUP_CATALOG"
_TRUST = (
    "set sslrootcert in ROLLUP_CATALOG to the certificate of the authority that signed the server's, "
    "and use a host name that the certificate contains"
)
_GRANT = "run `rollups catalog init`, which grants the user of ROLLUP_CATALOG what it needs"
_REACH = "start the server, or correct host and port in ROLLUP_CATALOG"
# The same for the admin of `rollups catalog init`.
_ADMINS = {
    _PASSWORD: "set ROLLUP_CATALOG_ADMIN_PASSWORD, or ROLLUP_CATALOG_ADMIN_PASSWORD_FILE, to the admin's password",
    _GRANT: "use --admin to name a role that owns the database or is a superuser",
    "correct it in ROLLUP_CATALOG, or create the role": "name another one with --admin",
    "create it and run `rollups catalog init`": "create it and run this again",
}

# PostgreSQL refuses a connection with a text and no code. Most specific first: a wrong certificate is also "connection failed".
_REFUSALS = (
    (r"certificate verify failed|does not match host name|root certificate file|unable to get local issuer", "is not trusted", _TRUST),
    (
        r"server does not support SSL|no encryption",
        "and sslmode in ROLLUP_CATALOG do not agree about TLS",
        "switch it on in the server, or correct sslmode",
    ),
    (r"no password supplied", "asks for a password, but none is set", _PASSWORD),
    (r"password authentication failed", "refuses the user's password", _PASSWORD),
    (r"role .* does not exist", "does not know the user", "correct it in ROLLUP_CATALOG, or create the role"),
    (r"role .* is not permitted to log in", "does not let the user in", "alter the role to LOGIN"),
    (
        r"database .* does not exist",
        "does not have that database",
        "correct its name in ROLLUP_CATALOG, or create it and run `rollups catalog init`",
    ),
    (
        r"invalid connection option|invalid (sslmode|integer) value",
        "has an invalid connection option",
        "correct what follows the ? in ROLLUP_CATALOG",
    ),
    (r"permission denied for database", "does not let the user in", _GRANT),
    (r"pg_hba\.conf", "does not let this machine in as that user", "correct the user in ROLLUP_CATALOG, or allow it in pg_hba.conf"),
    (
        r"too many (clients|connections)|connection slots",
        "has no connection left",
        "raise its max_connections, or run fewer batches at once",
    ),
    (r"starting up|shutting down|not yet accepting", "is starting or stopping", "run the same command again"),
)

# By SQLSTATE, for statements.
_STATES = {
    "42P01": ("schema not initialized, a table is missing", "run `rollups catalog init`"),
    "3F000": ("schema not initialized", "run `rollups catalog init`"),
    "42501": ("this user may not do that", _GRANT),
    "25006": ("this server is read-only", "name the primary in ROLLUP_CATALOG"),
    "57014": ("it did not answer in time", "look at what keeps the server busy, and run the same command again"),
    "55P03": ("another session has locked its tables", "find that session in pg_stat_activity, and run the same command again"),
    "53100": ("its disk is full", "make room on the server"),
}


def shown(settings: Settings) -> str:
    """The catalog as messages name it: the setting and its value without options. It has no password: the settings refuse one there."""
    if settings.catalog.startswith("sqlite:") and (kind := other_kind(settings)):
        # The URI is only the default: the catalog is one that needs none.
        return f"ROLLUP_CATALOG_PROPERTIES={kind}"
    return f"ROLLUP_CATALOG={settings.catalog.partition('?')[0]}"


def other_kind(settings: Settings) -> str | None:
    """The property that names a catalog of another kind than a SQL database, such as ``type=glue``; None if there is none."""
    for name in ("py-catalog-impl", "type"):
        value = settings.catalog_properties.get(name)
        if value and (name, value.lower()) != ("type", "sql"):
            return f"{name}={value}"
    return None


def unusable_place(settings: Settings, error: OSError) -> CatalogError:
    """What to do if the file of an embedded catalog, its folder or its lock cannot be made or looked at."""
    return CatalogError(
        f"{shown(settings)} cannot be used ({error}); set ROLLUP_CATALOG or ROLLUP_HOME to a place where this user may write"
    )


@contextlib.contextmanager
def catalog_faults(settings: Settings, *, admin: str | None = None) -> Iterator[None]:
    """Turn the errors of drivers and clients into a :class:`CatalogError`; others pass. ``admin``: the role, if not the URI's."""
    try:
        yield
    except Exception as error:
        if (sentence := _explain(error, settings)) is None:
            raise
        if admin is not None:
            for runs, theirs in _ADMINS.items():
                sentence = sentence.replace(runs, theirs)
            sentence += f" (the admin is {admin})"
        raise CatalogError(f"{shown(settings)}{sentence}") from error


def _explain(error: Exception, settings: Settings) -> str | None:
    """What follows the catalog's name in the message; None if the error is not the catalog's."""
    import sys

    # Code that raised such an error has imported its module; importing it here would cost seconds for any other error.
    if (sqlalchemy := sys.modules.get("sqlalchemy.exc")) is not None:
        if isinstance(error, sqlalchemy.TimeoutError):
            return f": all connections of this process are in use ({_reason(error)}); publish fewer batches at once in one process"
        if isinstance(error, sqlalchemy.DBAPIError):
            return _explain_sqlite(error) if settings.catalog.startswith("sqlite") else _explain_postgres(error)
    if (requests := sys.modules.get("requests")) is not None and isinstance(error, requests.RequestException):
        if isinstance(error, requests.exceptions.SSLError):
            return (
                f" is not trusted ({_reason(error)}); set ssl.cabundle in ROLLUP_CATALOG_PROPERTIES to the certificate of the authority "
                "that signed the server's (REQUESTS_CA_BUNDLE takes precedence), and use a host name that the certificate contains"
            )
        return f" cannot be reached ({_reason(error)}); {_REACH}"
    if (iceberg := sys.modules.get("pyiceberg.exceptions")) is not None and isinstance(error, iceberg.RESTError):
        if isinstance(error, iceberg.UnauthorizedError | iceberg.ForbiddenError | iceberg.OAuthError | iceberg.AuthorizationExpiredError):
            return (
                f" refuses access ({_reason(error)}); set ROLLUP_CATALOG_PASSWORD, or the AWS credentials if ROLLUP_CATALOG_PROPERTIES "
                "says that requests are signed"
            )
        return f" answers with an error ({_reason(error)}); correct ROLLUP_CATALOG, or look at the server's log"
    return None


def _explain_postgres(error: DBAPIError) -> str:
    reason, state = _reason(error), getattr(error.orig, "sqlstate", None)
    for pattern, problem, remedy in _REFUSALS:
        if re.search(pattern, reason):
            return f" {problem} ({reason}); {remedy}"
    if state in _STATES:
        problem, remedy = _STATES[state]
        return f": {problem} ({reason}); {remedy}"
    if error.connection_invalidated or (state or "08").startswith(("08", "57P")):
        return f" cannot be reached ({reason}); {_REACH}"
    return f" answers with an error ({reason}); look at the server's log"


def _explain_sqlite(error: DBAPIError) -> str:
    return (
        f" cannot be used ({_reason(error)}); set ROLLUP_CATALOG or ROLLUP_HOME to a place where this user may write, "
        "or, if another process has locked the file, run the same command again"
    )


def _reason(error: Exception) -> str:
    """The driver's or client's message on one line, without the statement and the advice that libraries append."""
    text = str(getattr(error, "orig", None) or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = " ".join(dict.fromkeys(line for line in lines if not line.startswith(("DETAIL:", "HINT:", "LINE ", "^", "Is the server"))))
    return found.removeprefix("connection failed: ")[:500]
