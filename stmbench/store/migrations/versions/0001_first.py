"""The first schema: run, stage, measurement, artifact."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "run",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("updated", sa.DateTime, nullable=False),
        sa.Column("heartbeat", sa.DateTime, nullable=False),
        sa.Column("mixer", sa.String(64), nullable=False),
        sa.Column("scale", sa.String(64), nullable=False),
        sa.Column("stages", sa.JSON, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("recipe_name", sa.String(255), nullable=False),
        sa.Column("recipe_digest", sa.String(64), nullable=False),
        sa.Column("recipe_values", sa.JSON, nullable=False),
        sa.Column("overrides", sa.JSON, nullable=False),
        sa.Column("data_source", sa.Text, nullable=False),
        sa.Column("data_name", sa.String(255), nullable=False),
        sa.Column("data_fingerprint", sa.String(64), nullable=False),
        sa.Column("weights", sa.Text, nullable=False),
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("device", sa.String(16), nullable=False),
        sa.Column("hardware", sa.String(255), nullable=False),
        sa.Column("precision", sa.String(16), nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("argv", sa.JSON, nullable=False),
        sa.Column("git_commit", sa.String(64), nullable=False),
        sa.Column("git_dirty", sa.Boolean, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("process_started", sa.Double, nullable=False),
    )
    op.create_table(
        "stage",
        _run_key(),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started", sa.DateTime, nullable=False),
        sa.Column("ended", sa.DateTime),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "measurement",
        _run_key(),
        sa.Column("stage", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("condition", sa.String(255), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Double),  # NULL for not-a-number, which SQLite cannot hold
        sa.Column("unit", sa.String(32), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "artifact",
        _run_key(),
        sa.Column("path", sa.String(255), primary_key=True),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("condition", sa.String(255), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )


def _run_key() -> sa.Column[str]:
    return sa.Column("run", sa.String(80), sa.ForeignKey("run.id"), primary_key=True)
