#!/bin/sh
# What a container does first: it puts in writable places what has to be there, and becomes the command it was given.
set -eu

# numba uses compiled code only from a folder that it could write to, and the image is read-only.
if [ -n "${COMPILED_KERNELS:-}" ] && [ ! -d "$NUMBA_CACHE_DIR" ]; then
  cp -R "$COMPILED_KERNELS" "$NUMBA_CACHE_DIR"
fi

# libpq uses a password file only if nobody else may read it, and mounted secrets belong to somebody else.
if [ -n "${DAGSTER_POSTGRES_PASSWORD_FILE:-}" ]; then
  # A backslash goes before the two characters that mean something in that file.
  password=$(sed 's/[\\:]/\\&/g' "$DAGSTER_POSTGRES_PASSWORD_FILE")
  (umask 077 && printf '*:*:%s:%s:%s\n' "$DAGSTER_POSTGRES_DB" "$DAGSTER_POSTGRES_USER" "$password" > "$PGPASSFILE.$$")
  mv "$PGPASSFILE.$$" "$PGPASSFILE"
  unset password
fi

# Spark's client takes a token from the environment alone. An empty file is none.
if [ -s "${SPARK_CONNECT_AUTHENTICATE_TOKEN_FILE:-}" ]; then
  SPARK_CONNECT_AUTHENTICATE_TOKEN=$(cat "$SPARK_CONNECT_AUTHENTICATE_TOKEN_FILE")
  export SPARK_CONNECT_AUTHENTICATE_TOKEN
fi

# Runs are processes of the code location. Those of an earlier one at this address are gone, and nobody else can say so.
case "$*" in
  "dagster api grpc "*) python -m rollup_assets.defs.lost_runs ;;
esac

exec "$@"
