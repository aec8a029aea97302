"""Run by Alembic: migrate over the connection, and within the transaction, that `database.upgrade` gives.

To write the next migration, add ``versions/NNNN_what_changes.py`` by hand, set `tables.SCHEMA` to NNNN, and
add a database of the new schema to tests/golden.
"""

from alembic import context

from stmbench.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
