"""What a run is recognised by, its design, what leaderboards read, indices for many runs, views to query."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("run", sa.Column("design", sa.String(64), nullable=False, server_default="unified"))
    op.execute("UPDATE run SET design = '' WHERE mixer LIKE 'timm:%'")
    op.add_column("run", sa.Column("fingerprint", sa.String(64), nullable=False, server_default=""))
    op.create_index("run_fingerprint", "run", ["fingerprint"])
    op.create_index("run_state_created", "run", ["state", "created"])
    op.create_index("run_created", "run", ["created"])
    op.create_index("artifact_stage_kind", "artifact", ["stage", "kind"])
    op.create_table(
        "summary",
        sa.Column("run", sa.String(80), sa.ForeignKey("run.id"), primary_key=True),
        sa.Column("way", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created", sa.DateTime, nullable=False),
        sa.Column("network", sa.String(16), nullable=False),
        sa.Column("protocol", sa.String(16), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("latency_condition", sa.String(255), nullable=False),
        sa.Column("throughput_condition", sa.String(255), nullable=False),
        sa.Column("parameters", sa.Double),
        sa.Column("macs", sa.Double),
        sa.Column("latency", sa.Double),
        sa.Column("throughput", sa.Double),
        sa.Column("disturbed", sa.Double),
        sa.Column("top1", sa.Double),
        sa.Column("images", sa.Double),
        sqlite_with_rowid=False,
    )
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


# An interface: what reads them goes on working. A later schema adds columns at their ends, or a view `_v2`.
_VIEWS = {
    "runs_v1": """
        SELECT id AS run, state, reason, created, updated, mixer, scale, design, seed, recipe_name AS recipe,
            recipe_digest, data_name AS data, data_fingerprint, weights, weights_sha256, backend, device,
            hardware, precision, threads, host, git_commit, git_dirty, fingerprint, folder, overrides,
            recipe_values, versions
        FROM run
    """,
    "stages_v1": "SELECT run, name AS stage, state, started, ended, reason FROM stage",
    "measurements_v1": "SELECT run, stage, name, condition, step, value, unit, reason FROM measurement",
    "files_v1": "SELECT run, stage, kind, condition, path, bytes, sha256 FROM artifact",
}
