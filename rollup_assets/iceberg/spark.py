"""Spark SQL on the table: the configuration of an Iceberg catalog in a Spark session, from the same settings as everything else.

For users' own sessions, and for the tests that read and write the table with them; the Spark engine needs none of it, and no jar.
No secret is in it: Spark shows its configuration in its UI and on the driver's command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from rollup_assets.errors import SettingsError
from rollup_assets.iceberg.catalog import catalog_properties, is_postgres, is_rest

if TYPE_CHECKING:
    from rollup_assets.settings import Settings

ICEBERG_RUNTIME = "org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0"
ICEBERG_AWS = "org.apache.iceberg:iceberg-aws-bundle:1.12.0"
POSTGRESQL_DRIVER = "org.postgresql:postgresql:42.7.13"

# From libpq's parameter names, which psycopg takes, to those of PostgreSQL's Java driver.
_DRIVER_PARAMETERS = {
    "sslmode": "sslmode",
    "sslrootcert": "sslrootcert",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "connect_timeout": "connectTimeout",
    "options": "options",
}
# The other REST properties are PyIceberg's own, or could hold a secret.
_REST_PROPERTIES = ("oauth2-server-uri", "scope", "audience", "resource", "prefix")
_CREDENTIAL = "ICEBERG_REST_CREDENTIAL"
_POSTGRESQL_PORT = 5432


def packages(settings: Settings) -> tuple[str, ...]:
    """Maven coordinates of the jars that a session needs for this catalog and warehouse."""
    found = [ICEBERG_RUNTIME]
    if _is_on_s3(settings):
        found.append(ICEBERG_AWS)
    if is_postgres(settings):
        found.append(POSTGRESQL_DRIVER)
    return tuple(found)


def session_properties(settings: Settings) -> dict[str, str]:
    """Every ``spark.*`` property that makes the table ``<catalog name>.<table>`` in Spark SQL.

    Raises:
        SettingsError: the catalog is one that only this machine's Python can open; says which can be shared.
    """
    catalog = f"spark.sql.catalog.{settings.catalog_name}"
    properties = {**_catalog(settings), "warehouse": catalog_properties(settings)["warehouse"], **_storage(settings)}
    return {
        "spark.jars.packages": ",".join(packages(settings)),
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.session.timeZone": "UTC",
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        **{f"{catalog}.{name}": value for name, value in properties.items()},
        # A session that uses a table at least every 30 s keeps it as first seen, and would miss what is published since.
        f"{catalog}.cache-enabled": "false",
    }


def properties_file(settings: Settings) -> str:
    """The same as a properties file (``spark-defaults.conf``, ``spark-sql --properties-file``), noting what the environment supplies.

    Raises:
        SettingsError: as :func:`session_properties`.
    """
    lines = [f"# Spark SQL on {settings.catalog_name}.{settings.table}; this configuration contains no secrets, and should not."]
    lines += [f"# {line}" for line in _secrets(settings)]
    lines += [f"{name} {value}" for name, value in session_properties(settings).items()]
    return "\n".join(lines) + "\n"


def password_file_line(settings: Settings) -> str:
    """The line for a password file as PostgreSQL's clients read it (``PGPASSFILE``), with ``<password>`` in the password's place."""
    host, port, database, user = _address(settings)
    return ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in (host, str(port), database, user)) + ":<password>"


def _secrets(settings: Settings) -> list[str]:
    lines = []
    if is_postgres(settings):
        lines.append("The catalog's password: in a file of mode 0600 that PGPASSFILE names where the driver runs, as the line")
        lines.append(f"  {password_file_line(settings)}")
    if is_rest(settings):
        if client := urlsplit(settings.catalog).username:
            lines.append(f"The catalog's client and its secret: in {_CREDENTIAL} where the driver runs, as {unquote(client)}:<secret>.")
        else:
            lines.append("The catalog's token, if it asks for one: in ROLLUP_CATALOG_PASSWORD where the driver runs.")
    if _is_on_s3(settings):
        lines.append("S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role, where driver and executors run.")
        if settings.s3.ca_bundle:
            lines.append(f"S3's certificate authority {settings.s3.ca_bundle}: Java reads it from a trust store only, which")
            lines.append("-Djavax.net.ssl.trustStore=… names in spark.driver.extraJavaOptions and spark.executor.extraJavaOptions.")
    return lines


def _catalog(settings: Settings) -> dict[str, str]:
    if is_postgres(settings):
        return _jdbc(settings)
    if is_rest(settings):
        return _rest(settings)
    raise SettingsError(
        f"ROLLUP_CATALOG={settings.catalog.partition('://')[0]}://… is a catalog that only this package can use; Spark SQL needs a shared "
        "one: postgresql+psycopg://… or rest+https://… (docs/production.md)"
    )


def _jdbc(settings: Settings) -> dict[str, str]:
    host, port, database, user = _address(settings)
    given = dict(parse_qsl(urlsplit(settings.catalog).query))
    parameters = {_DRIVER_PARAMETERS[name]: value for name, value in given.items() if name in _DRIVER_PARAMETERS}
    return {
        "type": "jdbc",
        "uri": f"jdbc:postgresql://{f'[{host}]' if ':' in host else host}:{port}/{database}",
        "jdbc.user": user,
        "jdbc.ApplicationName": "spark",
        # PyIceberg's catalog tables have this version; Java would assume the older one and could not tell views from tables.
        "jdbc.schema-version": "V1",
        # Readers of the table need no right to create the catalog's tables: `rollups catalog init` creates those.
        "jdbc.init-catalog-tables": "false",
        **{f"jdbc.{name}": value for name, value in parameters.items()},
    }


def _address(settings: Settings) -> tuple[str, int, str, str]:
    """Host, port, database and user of the PostgreSQL catalog."""
    parts = urlsplit(settings.catalog)
    query = dict(parse_qsl(parts.query))
    user = unquote(parts.username or query.get("user", ""))
    return (
        parts.hostname or query.get("host", "localhost"),
        parts.port or int(query.get("port", _POSTGRESQL_PORT)),
        unquote(parts.path.lstrip("/")),
        user,
    )


def _rest(settings: Settings) -> dict[str, str]:
    given = {name: value for name, value in settings.catalog_properties.items() if name in _REST_PROPERTIES or name.startswith("rest.")}
    parts = urlsplit(settings.catalog.removeprefix("rest+"))
    secret: dict[str, str] = {}
    if settings.read_catalog_password() is not None:
        # Iceberg's REST client reads a value with this prefix from the environment.
        name, variable = ("credential", _CREDENTIAL) if parts.username else ("token", "ROLLUP_CATALOG_PASSWORD")
        secret = {name: f"env:{variable}"}
    return {"type": "rest", "uri": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), **given, **secret}


def _is_on_s3(settings: Settings) -> bool:
    return settings.warehouse.startswith("s3://")


def _storage(settings: Settings) -> dict[str, str]:
    if not _is_on_s3(settings):
        return {}
    found = {"io-impl": "org.apache.iceberg.aws.s3.S3FileIO"}
    options = settings.s3
    if options.endpoint:
        found["s3.endpoint"] = options.endpoint
    if options.path_style:
        found["s3.path-style-access"] = "true"
    if options.region:
        found["client.region"] = options.region
    return found
