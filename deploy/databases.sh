#!/bin/sh
# The databases of a deployment and the roles that use them, made where they are missing. Runs as a superuser, or as a role with
# CREATEROLE and CREATEDB, which is what managed services offer: in the container of PostgreSQL when its volume is new, anywhere else with
# libpq's variables (PGHOST, PGPORT, PGUSER, PGPASSWORD).
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
-- What a role may set is a superuser's to say. Where this one may not switch logging off, no password is sent to a server that logs the
-- statements of its own accord; it still logs one that fails, so what can be checked is checked first.
DO $$
DECLARE
  wanted record;
BEGIN
  FOR wanted IN SELECT * FROM (
    VALUES ('log_statement', 'none'), ('log_min_duration_statement', '-1'), ('log_min_error_statement', 'panic')
  ) AS quiet (name, value) LOOP
    BEGIN
      PERFORM set_config(wanted.name, wanted.value, false);
    EXCEPTION WHEN insufficient_privilege THEN
      NULL;
    END;
  END LOOP;
  IF current_setting('log_statement') <> 'none' OR current_setting('log_min_duration_statement') <> '-1' THEN
    RAISE EXCEPTION 'this server would log passwords, and % may not prevent that (log_statement = %, log_min_duration_statement = %)',
      current_user, current_setting('log_statement'), current_setting('log_min_duration_statement')
      USING HINT = 'Run this as a superuser, or set the two to none and -1 in the configuration of the server until it is done.';
  END IF;
  IF NOT (SELECT rolsuper OR (rolcreaterole AND rolcreatedb) FROM pg_roles WHERE rolname = current_user) THEN
    RAISE EXCEPTION 'role % may not make roles and databases', current_user
      USING HINT = 'Name another one in PGUSER: a superuser, or one with CREATEROLE and CREATEDB.';
  END IF;
END $$;
\getenv dagster_password DAGSTER_PASSWORD
\getenv catalog_password CATALOG_PASSWORD
\getenv catalog_owner_password CATALOG_OWNER_PASSWORD

SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', name, password)
FROM (VALUES ('dagster', :'dagster_password'), ('rollups', :'catalog_password'), ('catalog_owner', :'catalog_owner_password')) AS wanted (name, password)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

-- Only who belongs to a role may make a database for it. A superuser does; who has made the role may, for the time that this takes.
SELECT count(*) > 0 AS borrows, string_agg(quote_ident(name), ', ') AS borrowed
FROM (VALUES ('dagster'), ('catalog_owner')) AS owner (name)
WHERE NOT pg_has_role(name, 'USAGE') \gset
\if :borrows
GRANT :borrowed TO CURRENT_USER;
\endif

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES ('dagster', 'dagster'), ('catalog', 'catalog_owner')) AS wanted (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

REVOKE ALL ON DATABASE dagster, catalog FROM PUBLIC;
GRANT CONNECT ON DATABASE catalog TO rollups;
\if :borrows
REVOKE :borrowed FROM CURRENT_USER;
\endif
SQL
