"""The tables of the store, the same on SQLite and PostgreSQL.

`head` holds one row. Every writer locks it first, so all changes stand in one line: it carries the revision that
fronts follow, and the length and last hash of the decision chain.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ("SCHEMA_VERSION", "append_only", "decisions", "head", "metadata", "rollouts", "routes", "versions")

SCHEMA_VERSION = 1

metadata = sa.MetaData()

head = sa.Table(
    "head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("store", sa.String(14), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("last_hash", sa.String(64), nullable=False),
    sa.CheckConstraint("id = 1", name="head_is_one_row"),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("status", sa.String(12), nullable=False),
    sa.CheckConstraint("status IN ('registered', 'approved', 'rejected')", name="version_status"),
)

routes = sa.Table(
    "routes",
    metadata,
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("stable", sa.BigInteger, nullable=False),
    sa.Column("canary", sa.BigInteger),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("salt", sa.String(64), nullable=False),
    sa.Column("previous", sa.BigInteger),
    sa.Column("trial", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.CheckConstraint("weight >= 0 AND weight <= 100", name="route_weight"),
    sa.CheckConstraint("canary IS NOT NULL OR weight = 0", name="route_weight_needs_canary"),
    sa.CheckConstraint("canary IS NULL OR canary <> stable", name="route_two_versions"),
    sa.ForeignKeyConstraint(("model", "stable"), ("versions.model", "versions.version")),
    sa.ForeignKeyConstraint(("model", "canary"), ("versions.model", "versions.version")),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("started_seq", sa.BigInteger, nullable=False),
    sa.Column("is_open", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Index(
        "one_open_rollout",
        "model",
        unique=True,
        sqlite_where=sa.text("is_open"),
        postgresql_where=sa.text("is_open"),
    ),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(25), nullable=False),
    sa.Column("time", sa.String(32), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.CheckConstraint("seq > 0", name="decision_seq"),
    sa.Index("decisions_of_model", "model", "seq"),
)


def append_only(dialect: str) -> tuple[str, ...]:
    """The statements that make the database itself refuse to change or remove a decision.

    Parameters
    ----------
    dialect : str
        "sqlite" or "postgresql".
    """
    if dialect == "sqlite":
        return tuple(
            f"CREATE TRIGGER decisions_refuse_{verb.lower()} BEFORE {verb} ON decisions "
            "BEGIN SELECT RAISE(ABORT, 'decisions are append only'); END"
            for verb in ("UPDATE", "DELETE")
        )
    return (
        "CREATE FUNCTION refuse_decision_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'decisions are append only'; END $$",
        "CREATE TRIGGER decisions_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_decision_change()",
    )
