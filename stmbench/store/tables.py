"""The tables, as the newest migration leaves them; a test holds the two equal.

The measurement table is narrow: a new metric needs no migration. Its primary key starts with
(run, stage, name), which is how a run's numbers are looked up; in SQLite the rows themselves are kept in
that order. What a leaderboard reads of every run is kept a second time, in `summary`: see `store.summary`.

Beside the tables there are views for others to query, an interface with stable names (docs/database.md).
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

SCHEMA = "0004"  # the newest revision in migrations/versions; revisions sort by their names
VERSION_TABLE = "stmbench_version"


class UTCDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC without its zone, which not every database can store."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()


def _run_key() -> Column[str]:
    return Column("run", String(80), ForeignKey("run.id"), primary_key=True)


version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True))

run = Table(
    "run",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", UTCDateTime, nullable=False),
    Column("updated", UTCDateTime, nullable=False),
    Column("heartbeat", UTCDateTime, nullable=False),
    Column("mixer", String(64), nullable=False),
    Column("scale", String(64), nullable=False),
    Column("stages", JSON, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("recipe_name", String(255), nullable=False),
    Column("recipe_digest", String(64), nullable=False),
    Column("recipe_values", JSON, nullable=False),
    Column("overrides", JSON, nullable=False),
    Column("data_source", Text, nullable=False),
    Column("data_name", String(255), nullable=False),
    Column("data_fingerprint", String(64), nullable=False),
    Column("weights", Text, nullable=False),
    Column("weights_sha256", String(64), nullable=False),
    Column("device", String(16), nullable=False),
    Column("hardware", String(255), nullable=False),
    Column("preprocessing", JSON, nullable=False, server_default="{}"),
    Column("backend", Text, nullable=False, server_default=""),
    Column("precision", String(16), nullable=False),
    Column("threads", Integer, nullable=False),
    Column("argv", JSON, nullable=False),
    Column("git_commit", String(64), nullable=False),
    Column("git_dirty", Boolean, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("folder", Text, nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("process_started", Double, nullable=False),
    Column("design", String(64), nullable=False, server_default="unified"),
    Column("fingerprint", String(64), nullable=False, server_default=""),
    Index("run_fingerprint", "fingerprint"),
    Index("run_state_created", "state", "created"),
    Index("run_created", "created"),
)

stage = Table(
    "stage",
    metadata,
    _run_key(),
    Column("name", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("started", UTCDateTime, nullable=False),
    Column("ended", UTCDateTime),
    Column("reason", Text, nullable=False),
)

measurement = Table(
    "measurement",
    metadata,
    _run_key(),
    Column("stage", String(64), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("condition", String(255), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Double),  # NULL for not-a-number, which SQLite cannot hold
    Column("unit", String(32), nullable=False),
    Column("reason", Text, nullable=False, server_default=""),  # why there is no value
    sqlite_with_rowid=False,
)

artifact = Table(
    "artifact",
    metadata,
    _run_key(),
    Column("path", String(255), primary_key=True),
    Column("stage", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("condition", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Index("artifact_stage_kind", "stage", "kind"),
)

summary = Table(
    "summary",
    metadata,
    _run_key(),
    Column("way", Integer, primary_key=True, autoincrement=False),  # in which it was timed, from 0
    Column("created", UTCDateTime, nullable=False),  # of the run
    Column("network", String(16), nullable=False),
    Column("protocol", String(16), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("latency_condition", String(255), nullable=False),
    Column("throughput_condition", String(255), nullable=False),
    Column("parameters", Double),
    Column("macs", Double),
    Column("latency", Double),
    Column("throughput", Double),
    Column("disturbed", Double),
    Column("top1", Double),
    Column("images", Double),
    sqlite_with_rowid=False,
)
