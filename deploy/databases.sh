#!/bin/sh
# The databases of a deployment and the roles that use them, made where they are missing. Runs as a superuser: in the container of
# PostgreSQL when its volume is new, anywhere else with libpq's variables (PGHOST, PGPORT, PGUSER, PGPASSWORD).
#
# The catalog's tables are the business of `rollups catalog init`, as catalog_owner.
set -eu
export PGUSER="${PGUSER:-${POSTGRES_USER:-postgres}}"
export DAGSTER_PASSWORD CATALOG_PASSWORD CATALOG_OWNER_PASSWORD
DAGSTER_PASSWORD=$(cat "$DAGSTER_POSTGRES_PASSWORD_FILE")
CATALOG_PASSWORD=$(cat "$ROLLUP_CATALOG_PASSWORD_FILE")
CATALOG_OWNER_PASSWORD=$(cat "$ROLLUP_CATALOG_ADMIN_PASSWORD_FILE")

# Passwords come from the environment: arguments of a process are seen by everybody, and statements are logged.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
\getenv dagster_password DAGSTER_PASSWORD
\getenv catalog_password CATALOG_PASSWORD
\getenv catalog_owner_password CATALOG_OWNER_PASSWORD

SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', name, password)
FROM (VALUES ('dagster', :'dagster_password'), ('rollups', :'catalog_password'), ('catalog_owner', :'catalog_owner_password')) AS wanted (name, password)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES ('dagster', 'dagster'), ('catalog', 'catalog_owner')) AS wanted (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

REVOKE ALL ON DATABASE dagster, catalog FROM PUBLIC;
GRANT CONNECT ON DATABASE catalog TO rollups;
SQL
