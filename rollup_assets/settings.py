"""Every setting: its name, default, unit and check.

Read from the environment (prefix ``ROLLUP_``) and from ``.env`` in the project's root. Relative paths resolve against that
root. Nothing else reads ``ROLLUP_*`` variables, except ``failpoints``; what a setting does stays out.
"""

from __future__ import annotations

import datetime as dt
import difflib
import functools
import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from rollup_assets import failpoints
from rollup_assets.batches import (
    DAY_MS,
    EARLIEST,
    HOUR_MS,
    KEY_FORMAT,
    LATEST,
    MINUTE_MS,
    Batch,
    BatchCalendar,
    to_datetime,
    to_milliseconds,
)
from rollup_assets.env_file import check_env_file
from rollup_assets.errors import SettingsError
from rollup_assets.machine import machine_cores, machine_memory
from rollup_assets.storage.raw_limits import DEFAULT_LIMITS, RawLimits
from rollup_assets.storage.s3 import S3Options
from rollup_assets.units import format_duration, parse_duration, parse_size

MINIMUM_MEMORY = 256 * 2**20
_FORMS = {
    "catalog_name": "a name of letters, digits and underscores, such as rollups",
    "table": "a namespace and a name of letters, digits and underscores, such as metrics.rollups",
}
# Of names with prefix, SHARD, SPARK_CONFIG and CATALOG_URI resemble a setting (0.88 and more), IMAGE and SERVICE_HOST do not (up to 0.83).
_RESEMBLES = 0.85
_PASSWORDS = ("catalog_password", "catalog_admin_password")
_LOCAL_PATH = "a local path; write one"
_LOCAL_DATABASE = "sqlite:/// and a local path; write one such as sqlite:////var/lib/rollups/catalog.db"
_CATALOG_SERVERS = ("postgresql+psycopg", "rest+https", "rest+http", "https", "http")
# Values that are shown to everybody must not have such a name.
_SECRET = re.compile(
    r"(^|[^a-z])(ssl)?(password|passwd|pwd|passphrase|token|credential|credentials|secret|authorization|(access|secret|account|private)-key(-id)?)$"
)
# Parameters follow host and port, among them a user_id, which may be an address with an @. If a colon is followed by anything but a port,
# it is a password, whatever characters are in it.
_CONNECT_SERVER = re.compile(r"(\w+://)?[^/;?:@]*(:[0-9]+)?[/;?]")
# Most folders that a batch may read before or after its own: more are a mistake, such as a lateness in minutes.
_MOST_FOLDERS = 1_000
# No ISO weeks: week-based years mixed with calendar years give the same folder to batches years apart.
_LAYOUT_FIELDS = frozenset("YmdHMjy")


def project_root() -> Path:
    """The folder that relative settings resolve against.

    The checkout this package lies in; for an installed package the nearest folder with a ``workspace.yaml`` at or above the
    working directory, else the working directory itself.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "workspace.yaml").is_file():
        return checkout
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "workspace.yaml").is_file()), here)


def parse_pairs(text: str, example: str) -> dict[str, str]:
    """Names and values from ``a=1 b="x y"`` or a JSON object.

    Raises:
        ValueError: the text is neither; the message shows the example, never the text, which may hold a secret.
    """
    if text.lstrip().startswith("{"):
        try:
            return {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in json.loads(text).items()}
        except ValueError as error:
            raise ValueError(f"it begins like a JSON object but is not one ({error}); write pairs such as {example}") from None
    parts = [part.partition("=") for part in shlex.split(text)]
    pairs = {name: value for name, equals, value in parts if equals}
    if len(pairs) < len(parts):
        raise ValueError(f"it is not a list of key=value pairs; write pairs such as {example}, with spaces between them")
    return pairs


def parse_spark_conf(text: str) -> dict[str, str]:
    """Spark properties from ``spark.a=1 spark.b="x y"`` or a JSON object.

    Raises:
        ValueError: the text is neither, or a name does not begin with ``spark.``.
    """
    pairs = parse_pairs(text, "spark.executor.memory=4g")
    for name in pairs:
        if not name.startswith("spark."):
            raise ValueError(f"{name} is not a Spark property; their names begin with spark.")
    return pairs


def _half_of_memory() -> int:
    return machine_memory() // 2


def _parse_start(value: object) -> object:
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)
    if not isinstance(value, str):
        return value
    for form in ("%Y-%m-%d", KEY_FORMAT):
        try:
            return dt.datetime.strptime(value.strip(), form).replace(tzinfo=dt.UTC)
        except ValueError:
            continue
    raise ValueError(f"{value!r} is not a day; write it as 2026-01-01, or as a partition key such as 2026-01-01-06:00")


def _from_text(parse: Callable[[str], object]) -> BeforeValidator:
    """A validator that parses texts and leaves anything else to pydantic."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


Start = Annotated[dt.datetime, BeforeValidator(_parse_start)]
Duration = Annotated[int, _from_text(parse_duration)]
Durations = Annotated[tuple[int, ...], NoDecode, _from_text(lambda text: tuple(parse_duration(part) for part in text.split(",")))]
Size = Annotated[int, _from_text(parse_size)]
SparkProperties = Annotated[dict[str, str], NoDecode, _from_text(parse_spark_conf)]
CatalogProperties = Annotated[dict[str, str], NoDecode, _from_text(lambda text: parse_pairs(text, "rest.sigv4-enabled=true"))]


class Settings(BaseSettings):
    """The settings of one rollup table; immutable.

    Durations are milliseconds, sizes bytes, locations absolute paths or URIs.
    """

    model_config = SettingsConfigDict(env_prefix="ROLLUP_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Field(default=Path(".rollups"), description="root of the embedded default")
    raw: str = Field(default="", description="landing zone, path or URI; <home>/raw_datapoints unless set")
    stage: str = Field(default="", description="staged assets, path or URI; <home>/stage unless set")
    warehouse: str = Field(default="", description="Iceberg warehouse, path or URI; <home>/warehouse unless set")
    s3_endpoint: str = Field(default="", description="URL of the S3 server; Amazon's unless set")
    s3_region: str = Field(
        default_factory=lambda: os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "",
        description="S3 region; AWS_REGION or the AWS profile's unless set",
    )
    s3_path_style: bool = Field(
        default_factory=lambda valid: bool(valid["s3_endpoint"]),
        description="endpoint/bucket instead of bucket.endpoint; true if ROLLUP_S3_ENDPOINT is set",
    )
    s3_ca_bundle: str = Field(
        default_factory=lambda: os.environ.get("AWS_CA_BUNDLE") or "",
        description="PEM file with the authorities to trust for S3 over TLS; AWS_CA_BUNDLE or the system's unless set",
    )
    catalog: str = Field(default="", description="catalog URI; sqlite:///<home>/catalog.db unless set")
    catalog_password: SecretStr | None = Field(default=None, description="password of the catalog's user, or token of a REST catalog")
    catalog_password_file: Path | None = Field(default=None, description="file with that password instead, read at each connection")
    catalog_admin_password: SecretStr | None = Field(default=None, description="password of the admin role of rollups catalog init")
    catalog_admin_password_file: Path | None = Field(default=None, description="file with that password instead")
    catalog_properties: CatalogProperties = Field(
        default={}, description="further properties for PyIceberg's catalog: key=value pairs with spaces between them, or a JSON object"
    )
    catalog_name: str = Field(
        default="rollups", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="name of the catalog, the same for every engine"
    )
    table: str = Field(
        default="metrics.rollups", pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$", description="namespace.table"
    )
    start: Start = Field(default=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), description="start of the first partition, UTC")
    batch: Duration = Field(default=HOUR_MS, description="batch length in ms; divides a day")
    resolutions: Durations = Field(default=(MINUTE_MS, 5 * MINUTE_MS, HOUR_MS), description="window lengths in ms, finest first")
    lookback: Duration = Field(
        default_factory=lambda valid: int(valid["batch"]), description="longest gap in ms that a step may span; the batch length unless set"
    )
    shards: int = Field(default=16, ge=1, le=4096, description="metric_shard_id = Iceberg bucket(shards, id)")
    value_type: Literal["long", "double"] = Field(default="long", description="long (long_value, int64) or double (double_value, float64)")
    quarantine_limit: float = Field(default=0.01, ge=0.0, le=1.0, description="share of rows above which a batch fails")
    quarantine_files: int = Field(default=0, ge=0, description="bad files tolerated in a batch")
    sensor_settle: Duration = Field(
        default=2 * MINUTE_MS, ge=0, description="how long in ms raw files must stay unchanged before the sensor requests a run"
    )
    raw_layout: str = Field(
        default="year=%Y/month=%m/day=%d/hour=%H", description="folder of a batch in the landing zone, strftime of its start"
    )
    raw_file_rows: int = Field(default=DEFAULT_LIMITS.rows, ge=1, description="most rows of a raw file")
    raw_group_size: Size = Field(
        default=DEFAULT_LIMITS.group_bytes, ge=2**20, description="most bytes of a row group of a raw file, uncompressed"
    )
    raw_name_size: Size = Field(default=DEFAULT_LIMITS.name_bytes, ge=1, description="most bytes of a metric name in UTF-8")
    raw_lateness: int = Field(
        default=0, ge=0, le=_MOST_FOLDERS, description="arrival-time layout: folders after its own that a batch reads as well"
    )
    raw_future: Duration | None = Field(
        default=None, description="how far in ms a point may be ahead of the end of its folder's batch; beyond that it is in_future"
    )
    raw_copies: Literal["once", "report"] = Field(
        default="once", description="a raw file with the content of another one: read once, or report the copy as a bad file"
    )
    parquet_encoding: Literal["fast", "compatible"] = Field(
        default="fast", description="encodings of the table's data files: fast, or compatible with older Parquet readers"
    )
    keep_snapshots: int = Field(
        default=100, ge=1, description="most Iceberg snapshots kept; publishing expires the oldest, a tenth more than it must"
    )
    threads: int = Field(default_factory=machine_cores, ge=1, le=1024, description="threads of the local engine")
    memory: Size = Field(default_factory=_half_of_memory, description="bytes that the local engine may use for its data")
    engine: Literal["local", "spark"] = Field(default="local", description="what runs a step's tasks")
    spark_master: str = Field(default="local[*]", description="master of the Spark engine's own session")
    spark_remote: str = Field(default="", description="Spark Connect server to use instead, sc://host:port")
    spark_conf: SparkProperties = Field(
        default={}, description="any spark.* of the session: key=value pairs with spaces between them, or a JSON object"
    )
    spark_task_memory: Size = Field(default=2**30, description="bytes that one running task may use for its data on an executor")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: Any,
        env_settings: Any,
        dotenv_settings: Any,
        file_secret_settings: Any,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments take precedence over the environment, and that over ``.env``."""
        return init_settings, env_settings, dotenv_settings

    @field_validator("s3_endpoint")
    @classmethod
    def _check_s3_endpoint(cls, value: str) -> str:
        return _checked_endpoint(value) if value else value

    @field_validator("s3_ca_bundle")
    @classmethod
    def _check_s3_ca_bundle(cls, value: str) -> str:
        path = (project_root() / Path(value).expanduser()).resolve() if value else None
        if path is not None and not path.is_file():
            raise ValueError(f"{path} is not a file; name a PEM file with the certificates of the authorities to trust")
        return str(path or "")

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in values.items() if value is not None}
        root = project_root()
        remedy = "a local folder; make it one, and ROLLUP_RAW, ROLLUP_STAGE and ROLLUP_WAREHOUSE URIs"
        home = values["home"] = Path(_absolute("ROLLUP_HOME", str(values.get("home") or ".rollups"), root, local=remedy))
        for name, default in (("raw", home / "raw_datapoints"), ("stage", home / "stage"), ("warehouse", home / "warehouse")):
            values[name] = _absolute(f"ROLLUP_{name.upper()}", str(values.get(name) or default), root)
        for name in _PASSWORDS:
            if values.get(name) and values.get(f"{name}_file"):
                raise ValueError(f"ROLLUP_{name.upper()} and ROLLUP_{name.upper()}_FILE are both set; drop one of them")
            if file := values.get(f"{name}_file"):
                values[f"{name}_file"] = Path(_absolute(f"ROLLUP_{name.upper()}_FILE", str(file), root, local=_LOCAL_PATH))
        values["catalog"] = _absolute_catalog(str(values.get("catalog") or f"sqlite:///{home / 'catalog.db'}"), root)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_batch(self.batch, self.start)
        _check_resolutions(self.resolutions, self.batch)
        if self.lookback <= 0:
            raise ValueError(f"ROLLUP_LOOKBACK={self.lookback} is not positive; leave it out, or write a duration such as 30m")
        if self.lookback > self.batch:
            raise ValueError(
                f"ROLLUP_LOOKBACK={format_duration(self.lookback)} is longer than ROLLUP_BATCH={format_duration(self.batch)}; "
                "shorten the lookback or lengthen the batch"
            )
        if self.memory < MINIMUM_MEMORY:
            raise ValueError(
                f"ROLLUP_MEMORY={self.memory} is below {MINIMUM_MEMORY // 2**20}MiB, the least the local engine works with; raise it"
            )
        if self.spark_task_memory < MINIMUM_MEMORY:
            raise ValueError(f"ROLLUP_SPARK_TASK_MEMORY={self.spark_task_memory} is below {MINIMUM_MEMORY // 2**20}MiB; raise it")
        if self.spark_remote:
            _check_spark_remote(self.spark_remote)
        _check_layout(self.raw_layout, self.calendar)
        if self.raw_future is not None and not 0 < self.raw_future <= _MOST_FOLDERS * self.batch:
            raise ValueError(
                f"ROLLUP_RAW_FUTURE={format_duration(self.raw_future)} is not between 1ms and {_MOST_FOLDERS} batches of "
                f"{format_duration(self.batch)}; write a duration such as 5m"
            )
        _check_catalog_properties(self.catalog_properties)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out the passwords: a process that gets the settings by pickle has an environment of its own."""
        state = super().__getstate__()
        return state | {"__dict__": state["__dict__"] | dict.fromkeys(_PASSWORDS)}

    def read_catalog_password(self, *, admin: bool = False) -> str | None:
        """The current password of the catalog's user, or of the admin role; None if there is none.

        Raises:
            SettingsError: its file cannot be read.
        """
        name = "catalog_admin_password" if admin else "catalog_password"
        given: SecretStr | None = getattr(self, name)
        path: Path | None = getattr(self, f"{name}_file")
        if path is None:
            return None if given is None else given.get_secret_value()
        try:
            return path.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SettingsError(
                f"ROLLUP_{name.upper()}_FILE={path} cannot be read ({reason}); name a file that this user may read"
            ) from None

    @property
    def s3(self) -> S3Options:
        """How raw data, stage and warehouse are reached if they are on S3."""
        # For self-hosted servers the region is only a name, but without one the SDKs would ask the cloud's metadata service.
        region = self.s3_region or ("us-east-1" if self.s3_endpoint else "")
        return S3Options(self.s3_endpoint, region, self.s3_path_style, self.s3_ca_bundle)

    @property
    def raw_limits(self) -> RawLimits:
        """How large a raw file may be."""
        return RawLimits(self.raw_file_rows, self.raw_group_size, self.raw_name_size)

    @property
    def catalog_password_variable(self) -> str | None:
        """Name of the environment variable that holds the catalog's password; None if it comes from elsewhere, or there is none."""
        name = "ROLLUP_CATALOG_PASSWORD"
        given = None if self.catalog_password is None else self.catalog_password.get_secret_value()
        return name if given and os.environ.get(name) == given else None

    @property
    def calendar(self) -> BatchCalendar:
        """All batches of the table."""
        return BatchCalendar(to_milliseconds(self.start), self.batch)

    @property
    def value_column(self) -> str:
        """Name of the raw value column, ``long_value`` or ``double_value``."""
        return f"{self.value_type}_value"

    @property
    def reach(self) -> int:
        """How many earlier batches ``rollups`` reads: ``ceil((coarsest resolution + lookback) / batch)``, 1 or 2."""
        return -(-(self.resolutions[-1] + self.lookback) // self.batch)

    @property
    def dagster_home(self) -> Path:
        """Where Dagster records runs: ``DAGSTER_HOME``, or if that is not set ``dagster`` in the home."""
        return Path(os.environ.get("DAGSTER_HOME") or self.home / "dagster")


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and ``.env``; keyword arguments take precedence over both.

    Raises:
        SettingsError: a sentence that names the setting and says what to change; also raised for a name that only resembles a setting's,
            and for a ``.env`` that cannot be read as a whole.
    """
    dotenv = project_root() / ".env"
    check_env_file(dotenv)
    in_file = DotEnvSettingsSource(Settings, dotenv).env_vars
    misspelt = [*_misspelt(os.environ, "the environment"), *_misspelt(in_file, str(dotenv))]
    if misspelt:
        raise SettingsError("; ".join(misspelt))
    if any(name.upper() == failpoints.VARIABLE for name in in_file):
        raise SettingsError(f"{failpoints.VARIABLE} in {dotenv} has no effect; set it in the environment of the process that is to fail")
    failpoints.check_environment()
    try:
        return Settings(_env_file=dotenv, **overrides)
    except ValidationError as error:
        # If a default that derives from another setting is missing, that setting is wrong: do not report it twice.
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        raise SettingsError("; ".join(_sentence(problem) for problem in problems)) from None


def _misspelt(variables: Mapping[str, str | None], where: str) -> Iterator[str]:
    """A sentence for each name that resembles a setting's.

    Other names are ignored: clusters put their services' addresses into variables that begin with the service's name.
    """
    known = {f"ROLLUP_{field.upper()}" for field in Settings.model_fields} | {failpoints.VARIABLE}
    for name, value in sorted((name.upper(), value) for name, value in variables.items()):
        if value and name.startswith("ROLLUP_") and name not in known:
            meant = difflib.get_close_matches(name, known, n=1, cutoff=_RESEMBLES)
            if meant:
                yield f"{name} in {where} is not a setting; write {meant[0]}, or remove it"


def _sentence(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    field = str(problem["loc"][0])
    name = f"ROLLUP_{field.upper()}"
    if problem["type"] == "value_error":
        return f"{name}: {message}"
    if field in _PASSWORDS:
        return f"{name} is not text"
    wanted = _FORMS.get(field) or message.removeprefix("Input should be ")
    return f"{name}={problem['input']}: should be {wanted}"


def _absolute(name: str, location: str, root: Path, *, local: str = "") -> str:
    """An absolute path, or the URI of a place on S3, unchanged; ``file://`` URIs become paths.

    ``local``: how the message about a URI ends, after "is not", if only a local path will do.

    Raises:
        ValueError: the location is neither, or cannot be resolved.
    """
    if location.startswith("file:"):
        path = location.removeprefix("file:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"{name}={location} names a host or a relative path; write file:///path, or just the path")
        location = unquote(path)
    elif "://" in location:
        if local:
            # Not shown: it may hold a secret.
            raise ValueError(f"{name} is not {local}")
        scheme, _, rest = location.partition("://")
        # Not shown if it may hold a secret.
        shown = "" if "@" in rest else f"={location}"
        if scheme in ("s3a", "s3n"):
            raise ValueError(f"{name}{shown} has Hadoop's name for S3; write s3://{rest.rpartition('@')[2]}")
        if scheme != "s3":
            # Writes are atomic on local disks and on S3; other stores may show part of a file, or lose its earlier content.
            raise ValueError(f"{name} is neither a path, file:///path nor s3://bucket/folder; write one of these")
        if not re.fullmatch(r"[A-Za-z0-9._-]+(/[^/?#]+)*/?", rest):
            raise ValueError(f"{name}{shown} is not a bucket and a folder in it; write s3://bucket/folder")
        return location.rstrip("/")
    try:
        return str((root / Path(location).expanduser()).resolve())
    except RuntimeError as error:  # an unknown user's home, or links that go round
        raise ValueError(f"{name}={location} cannot be resolved ({error}); write an absolute path") from error


def _checked_endpoint(value: str) -> str:
    """Check that the URL of an S3 server has only scheme, host and port; returns it without a slash at the end."""
    parts = urlsplit(value)
    try:
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    # The value is not shown if it may hold a password.
    if "@" in parts.netloc:
        raise ValueError(
            "it has credentials in it; write scheme, host and port, and give the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not known or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{value} is not the URL of a server; write scheme, host and port, such as https://s3.example.org:8333")
    return f"{parts.scheme}://{parts.netloc}"


def _absolute_catalog(uri: str, root: Path) -> str:
    """The catalog's URI; an embedded database's with an absolute path.

    Raises:
        ValueError: it is not a URI, holds a password, asks for a driver that is not used here, or has an invalid host or port.
    """
    prefix = "sqlite:///"
    if uri.startswith(prefix):
        return uri if ":memory:" in uri else prefix + _absolute("ROLLUP_CATALOG", uri.removeprefix(prefix), root, local=_LOCAL_DATABASE)
    scheme, separator, _ = uri.partition("://")
    if _has_password(uri) or any(_SECRET.search(name.lower()) for name, _ in parse_qsl(uri.partition("?")[2])):
        raise ValueError(
            "ROLLUP_CATALOG holds a password; take it out of the URI, and set ROLLUP_CATALOG_PASSWORD or ROLLUP_CATALOG_PASSWORD_FILE"
        )
    if not separator:
        raise ValueError(f"ROLLUP_CATALOG={uri} is not a URI; write sqlite:///{uri} for a file, or the URI of a database or REST catalog")
    if scheme != "postgresql+psycopg" and "postgres" in scheme:
        raise ValueError(
            f"ROLLUP_CATALOG begins with {scheme}://, but PostgreSQL is reached through psycopg 3; write postgresql+psycopg://"
        )
    # Not checked for other kinds of catalogs, which PyIceberg handles alone: some have several hosts.
    if scheme in _CATALOG_SERVERS:
        try:
            _ = urlsplit(uri).port
        except ValueError:
            # The URI is not shown: text after a colon that is not a port may be a password.
            raise ValueError(
                f"ROLLUP_CATALOG has an invalid host or port; write {scheme}://host:PORT/..., the port as a number, or leave it out"
            ) from None
    return uri


def _has_password(uri: str) -> bool:
    """Whether a URI, even a malformed one, has a password in front of its host."""
    _, separator, rest = uri.partition("://")
    # Look only for the first @, since a password may hold any other character that ends this part of a URI.
    user, at, _ = (rest if separator else uri).partition("@")
    return bool(at) and ":" in user


def _check_spark_remote(uri: str) -> None:
    parameters = (part.partition("=") for part in re.split("[;?&]", uri))
    named = any(equals and _SECRET.search(name.strip().lower()) for name, equals, _ in parameters)
    if named or (_has_password(uri) and not _CONNECT_SERVER.match(uri)):
        raise ValueError(
            "ROLLUP_SPARK_REMOTE holds a password; take it out of the URI, and set SPARK_CONNECT_AUTHENTICATE_TOKEN to the token"
        )
    if not re.fullmatch(r"sc://[^/;?]+(/.*)?", uri):
        raise ValueError(
            f"ROLLUP_SPARK_REMOTE={uri} is not a Spark Connect server; write sc://host:15002, with parameters sc://host:15002/;name=value"
        )


def _check_catalog_properties(properties: dict[str, str]) -> None:
    for name in properties:
        if name == "uri":
            raise ValueError("ROLLUP_CATALOG_PROPERTIES names a uri; set ROLLUP_CATALOG")
        if _SECRET.search(name.lower()):
            raise ValueError(
                f"ROLLUP_CATALOG_PROPERTIES holds a secret, {name}; take it out: a catalog's password or token belongs in "
                "ROLLUP_CATALOG_PASSWORD or ROLLUP_CATALOG_PASSWORD_FILE, AWS credentials in the AWS environment or profile"
            )


def _check_batch(batch: int, start: dt.datetime) -> None:
    text = f"ROLLUP_BATCH={format_duration(batch)}"
    if batch <= 0 or DAY_MS % batch:
        raise ValueError(f"{text} does not divide a day; choose one that does, such as 15m, 1h, 6h or 1d")
    if batch % MINUTE_MS or (HOUR_MS % batch and batch % HOUR_MS):
        raise ValueError(
            f"{text} neither divides an hour nor is a whole number of hours, and Dagster has no such partitions; "
            "choose 15m, 30m, 1h, 2h, 6h, 12h or 1d"
        )
    if not EARLIEST <= start < LATEST:
        raise ValueError(f"ROLLUP_START={start.date()} is out of range; choose a day between {EARLIEST.date()} and {LATEST.date()}")
    if (to_milliseconds(start)) % batch:
        raise ValueError(f"ROLLUP_START={start:%Y-%m-%d-%H:%M} is not on a boundary of {text}; move it to one, such as midnight")


def _check_resolutions(resolutions: tuple[int, ...], batch: int) -> None:
    if not resolutions:
        raise ValueError("ROLLUP_RESOLUTIONS is empty; name at least one, such as 1m")
    names = ",".join(format_duration(resolution) for resolution in resolutions)
    if resolutions[0] <= 0:
        raise ValueError(f"ROLLUP_RESOLUTIONS={names}: {resolutions[0]} is not positive; write durations such as 1m")
    for finer, coarser in itertools.pairwise(resolutions):
        if coarser <= finer or coarser % finer:
            raise ValueError(
                f"ROLLUP_RESOLUTIONS={names}: {format_duration(coarser)} is not a multiple of {format_duration(finer)}; "
                "list them finest first, each a multiple of the one before"
            )
    if batch % resolutions[-1]:
        raise ValueError(
            f"ROLLUP_RESOLUTIONS={names}: {format_duration(resolutions[-1])} does not divide ROLLUP_BATCH={format_duration(batch)}; "
            "lengthen the batch or drop that resolution"
        )


# Formatting the times of two years of batches takes milliseconds, and a command reads its settings more than once.
@functools.lru_cache(maxsize=16)
def _check_layout(layout: str, calendar: BatchCalendar) -> None:
    """Check that each batch has exactly one folder of its own, named after its start and no finer than batch starts are."""
    text = f"ROLLUP_RAW_LAYOUT={layout}"
    if any(part in ("", ".", "..") for part in layout.split("/")):
        raise ValueError(f"{text} is not a plain path; write folders below ROLLUP_RAW, with one / between them")
    unknown = set(re.findall(r"%(.)", layout)) - _LAYOUT_FIELDS
    if unknown:
        raise ValueError(f"{text} has %{sorted(unknown)[0]}, which is not part of a UTC time; use %Y %m %d %H %M %j")
    first = calendar.first
    of_a_day = list(calendar.between(first, Batch(first.start + DAY_MS, first.end + DAY_MS)))
    # The first batches of 800 days catch layouts without year or month; a day of batches catches those without hour or minute.
    folders: dict[str, Batch] = {}
    for batch in (*of_a_day, *(Batch(first.start + day * DAY_MS, first.end + day * DAY_MS) for day in range(800))):
        folder = batch.start_time.strftime(layout)
        other = folders.setdefault(folder, batch)
        if other != batch:
            raise ValueError(f"{text} puts the batches {other} and {batch} into one folder; add the missing part of the time")
    unit = calendar.folder_unit
    for batch in of_a_day:
        if len({to_datetime(ms).strftime(layout) for ms in range(batch.start, batch.start + unit, MINUTE_MS)}) > 1:
            raise ValueError(
                f"{text} has several folders inside the batch {batch}; drop the finest part of the time, or set "
                f"ROLLUP_BATCH={format_duration(calendar.length)} to the length of a folder: 1h if it ends in %H, 1d if in %d"
            )
