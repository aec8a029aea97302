"""Why a measurement failed, and the preprocessing that came with a model instead of the recipe."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("measurement", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.add_column("run", sa.Column("preprocessing", sa.JSON, nullable=False, server_default="{}"))
