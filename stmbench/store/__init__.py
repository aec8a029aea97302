"""The results database: runs, their stages, measurements and artifacts, in any SQL database.

`open_store` gives a `Store`; frozen dataclasses come out of it, never rows. It is written with SQLAlchemy
Core and Alembic; neither Alembic nor SQLAlchemy's ORM is imported to read results.
"""

from stmbench.store.records import ArtifactRecord, NewRun, RunRecord, StageRecord
from stmbench.store.store import Store, open_store

__all__ = ["ArtifactRecord", "NewRun", "RunRecord", "StageRecord", "Store", "open_store"]
