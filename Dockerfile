# Two images: `docker build --target rollups .` (the local engine) and `--target rollups-spark` (Java 17 and the jars besides). Web server
# and daemon run from either. Everything runs as a user without rights, on a read-only root file system: what is written goes to DAGSTER_DATA,
# ROLLUP_HOME and /tmp, which the container has to be given (docker-compose.yaml does).

# ---------------------------------------------------------------------------------------------------------------- what is built
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
RUN python -m venv /opt/rollups/venv
ENV PATH=/opt/rollups/venv/bin:$PATH
COPY deploy/requirements.lock deploy/requirements-build.lock ./
RUN pip install --require-hashes --no-deps --requirement requirements.lock
RUN python -m venv tools && tools/bin/pip install --require-hashes --no-deps --requirement requirements-build.lock
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY rollup_assets rollup_assets
RUN tools/bin/python -m build --wheel --no-isolation --outdir dist . && pip install --no-deps dist/*.whl
# Code for any processor of the architecture: it is as fast as code for one (docs/production.md), and what is compiled here is valid there.
ENV NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/opt/rollups/kernels
# Away from /build, where the package would be imported from the sources and the kernels belong to those.
WORKDIR /tmp
RUN python -m rollup_assets.precompile && python -m compileall -q /opt/rollups/venv/lib

# ------------------------------------------------------------------------------------------------------- what is built for Spark
FROM eclipse-temurin:17.0.16_8-jre-jammy AS java

FROM build AS build-spark
COPY --from=java /opt/java/openjdk /opt/java/openjdk
ENV JAVA_HOME=/opt/java/openjdk
COPY deploy/requirements-spark.lock deploy/jars.sha256 /build/
COPY deploy/jars.sh /build/
RUN pip install --require-hashes --no-deps --requirement /build/requirements-spark.lock \
    && sh /build/jars.sh /build/jars.sha256 /opt/rollups/jars \
    && python -m compileall -q /opt/rollups/venv/lib

# ------------------------------------------------------------------------------------------------------------------ what is run
FROM python:3.11.14-slim-bookworm AS base
ENV PATH=/opt/rollups/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    DAGSTER_HOME=/opt/rollups/dagster \
    DAGSTER_DATA=/var/lib/rollups/dagster \
    DAGSTER_COMPUTE_LOGS=/var/lib/rollups/dagster/compute_logs \
    DAGSTER_ARTIFACTS=/var/lib/rollups/dagster/artifacts \
    ROLLUP_HOME=/var/lib/rollups/scratch \
    NUMBA_CPU_NAME=generic \
    COMPILED_KERNELS=/opt/rollups/kernels \
    NUMBA_CACHE_DIR=/tmp/kernels \
    PGPASSFILE=/tmp/pgpass
COPY deploy/dagster.yaml deploy/workspace.yaml /opt/rollups/dagster/
COPY --chmod=0555 deploy/entrypoint.sh /opt/rollups/entrypoint.sh
# The folders are empty, for volumes to take their owner from. The user has a name after all, since Hadoop fails without one.
RUN groupadd --gid 10001 rollups \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rollups \
    && mkdir -p "$DAGSTER_DATA" "$ROLLUP_HOME" \
    && chown -R 10001:10001 /var/lib/rollups
WORKDIR /var/lib/rollups
USER 10001:10001
EXPOSE 3000 4000
ENTRYPOINT ["/opt/rollups/entrypoint.sh"]
# The code location; web server and daemon are other commands of the same image, with health checks of their own.
CMD ["dagster", "api", "grpc", "--host", "0.0.0.0", "--port", "4000", "--module-name", "rollup_assets.definitions", "--attribute", "defs", "--location-name", "rollup_assets"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["dagster", "api", "grpc-health-check", "--port", "4000"]

FROM base AS rollups-spark
COPY --from=java /opt/java/openjdk /opt/java/openjdk
COPY --from=build-spark /opt/rollups /opt/rollups
ENV JAVA_HOME=/opt/java/openjdk SPARK_LOCAL_DIRS=/var/lib/rollups/scratch/spark

# The last one is what `docker build .` makes.
FROM base AS rollups
COPY --from=build /opt/rollups /opt/rollups
