"""Alembic's entry: runs the migrations on the connection that `migrations.run` put into the configuration."""

from __future__ import annotations

from collections.abc import MutableMapping

from alembic import context
from sqlalchemy import Connection, text

from models.tables import metadata


def _partitions(connection: Connection) -> frozenset[str]:
    rows = connection.execute(text("select relname from pg_catalog.pg_class where relispartition"))
    return frozenset(rows.scalars())


def _run(connection: Connection) -> None:
    # Partitions come and go with the months: they belong to no migration, and a comparison must not see them.
    partitions = _partitions(connection)

    def included(name: str | None, kind: str, parents: MutableMapping[str, str | None]) -> bool:
        return not (kind == "table" and name in partitions)

    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_name=included,  # type: ignore[arg-type]
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


_run(context.config.attributes["connection"])
