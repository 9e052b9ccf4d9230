"""The database objects of a PostgreSQL catalog, and what the runs' role may do with them.

The tables are those that PyIceberg's ``SqlCatalog`` and Java's ``JdbcCatalog`` (``jdbc.schema-version=V1``) share. Databases and roles
themselves are made by whoever runs the server.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.faults import catalog_faults, shown
from rollup_assets.settings import Settings

DEFAULT_SCHEMA = "public"


@dataclass(frozen=True, slots=True)
class CatalogNames:
    """Where the catalog's objects are: the database, the schema in it, and the role that runs connect as."""

    database: str
    schema: str
    role: str


def initialize(settings: Settings, *, admin: str, role: str | None = None, schema: str = DEFAULT_SCHEMA) -> CatalogNames:
    """Make the tables and grant the role what runs need, in one transaction; changes nothing that is already in place.

    Args:
        settings: name the database and the admin's password.
        admin: role that owns the database, or a superuser; for any schema but ``public`` it must also be able to alter the runs' role.
        role: role of the runs; the user in ``ROLLUP_CATALOG`` unless given.
        schema: schema of the tables, made if it is missing.

    Raises:
        CatalogError: the catalog is not PostgreSQL, the role is missing or is the admin itself, or the admin lacks the rights.
    """
    from sqlalchemy import text

    from rollup_assets.iceberg.postgres import create_engine

    names = catalog_names(settings, role=role, schema=schema)
    if names.role == admin:
        raise CatalogError(
            f"the admin {admin} is also named as the role of the runs, by --role or {shown(settings)}; runs need a role of their own: "
            "name that one there, or another admin with --admin"
        )
    connections = create_engine(settings, user=admin, admin=True)
    try:
        with catalog_faults(settings, admin=admin), connections.begin() as connection:
            if connection.execute(text("select 1 from pg_roles where rolname = :role"), {"role": names.role}).first() is None:
                raise CatalogError(
                    f"{shown(settings)}: there is no role {names.role}; create it with "
                    f"`CREATE ROLE {_quoted(names.role)} LOGIN PASSWORD '…'`, and run this again"
                )
            for statement in statements(names):
                connection.exec_driver_sql(statement)
    finally:
        connections.dispose()
    return names


def catalog_names(settings: Settings, *, role: str | None = None, schema: str = DEFAULT_SCHEMA) -> CatalogNames:
    """Database and role as ``ROLLUP_CATALOG`` names them.

    Raises:
        CatalogError: the catalog is not PostgreSQL, or its URI lacks one of them.
    """
    from sqlalchemy import make_url

    from rollup_assets.iceberg.catalog import is_postgres

    if not is_postgres(settings):
        raise CatalogError(f"{shown(settings)} is not a PostgreSQL database, and needs no init; only postgresql+psycopg:// does")
    url = make_url(settings.catalog)
    role = role or url.username
    if not url.database or not role:
        missing = "database" if not url.database else "user"
        raise CatalogError(f"{shown(settings)} names no {missing}; write postgresql+psycopg://user@host:5432/database")
    return CatalogNames(url.database, schema, role)


def statements(names: CatalogNames) -> list[str]:
    """The SQL statements in order. All of them may be run again."""
    database, schema, role = _quoted(names.database), _quoted(names.schema), _quoted(names.role)
    tables = f"{schema}.iceberg_tables"
    namespaces = f"{schema}.iceberg_namespace_properties"
    made = [] if names.schema == DEFAULT_SCHEMA else [f"CREATE SCHEMA IF NOT EXISTS {schema}"]
    # If the tables are in a schema of their own, the role finds them without each client having to set the search path.
    path = [] if names.schema == DEFAULT_SCHEMA else [f"ALTER ROLE {role} IN DATABASE {database} SET search_path = {schema}"]
    return [
        *made,
        f"""CREATE TABLE IF NOT EXISTS {tables} (
    catalog_name varchar(255) NOT NULL,
    table_namespace varchar(255) NOT NULL,
    table_name varchar(255) NOT NULL,
    metadata_location varchar(1000),
    previous_metadata_location varchar(1000),
    iceberg_type varchar(5),
    PRIMARY KEY (catalog_name, table_namespace, table_name)
)""",
        f"ALTER TABLE {tables} ADD COLUMN IF NOT EXISTS iceberg_type varchar(5)",
        f"""CREATE TABLE IF NOT EXISTS {namespaces} (
    catalog_name varchar(255) NOT NULL,
    namespace varchar(255) NOT NULL,
    property_key varchar(255) NOT NULL,
    property_value varchar(1000) NOT NULL,
    PRIMARY KEY (catalog_name, namespace, property_key)
)""",
        # Before PostgreSQL 15 every role may create tables in public; every version lets all roles create temporary ones.
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC",
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {database} TO {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE (metadata_location, previous_metadata_location) ON {tables} TO {role}",
        f"GRANT SELECT, INSERT ON {namespaces} TO {role}",
        *path,
    ]


def script(names: CatalogNames) -> str:
    """The SQL as a script for ``psql``."""
    return "".join(f"{statement};\n" for statement in ["BEGIN", *statements(names), "COMMIT"])


def _quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
