"""One database behind one URL: connections, transactions, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from gateway.control.errors import StoreAway, StoreError

__all__ = ("Database",)

LOCK_WAIT_SECONDS = 5
CONNECT_WAIT_SECONDS = 3
STATEMENT_WAIT_SECONDS = 10

_POSTGRES_ARGUMENTS = {
    "connect_timeout": CONNECT_WAIT_SECONDS,
    "tcp_user_timeout": STATEMENT_WAIT_SECONDS * 1000,
    "application_name": "gateway",
    "options": f"-c lock_timeout={LOCK_WAIT_SECONDS}s -c statement_timeout={STATEMENT_WAIT_SECONDS}s",
}


class Database:
    """Short transactions on SQLite or PostgreSQL.

    SQLite runs in WAL, so that readers never wait for a writer, and with synchronous=FULL, since decisions must
    outlive a power failure and are few. Every wait is bounded.

    Parameters
    ----------
    url : str
        `sqlite:///path` or `postgresql+psycopg://user:password@host/name`.

    Raises
    ------
    StoreError
        The URL is neither.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self.dialect = self._url.get_backend_name()
        self._engine = _sqlite(self._url) if self.dialect == "sqlite" else _postgres(self._url)

    def __repr__(self) -> str:
        return f"<Database {self._url.render_as_string(hide_password=True)}>"

    def prepare(self) -> None:
        """Make what must be there before the first transaction: the folder of the file, and WAL."""
        if self.dialect != "sqlite" or not self._url.database:
            return
        try:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder of the store {self._url.database}: {error.strerror}") from None
        with self._translated(), self._engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.close()

    @contextmanager
    def reading(self, *, any_text: bool = False) -> Iterator[sa.Connection]:
        """A transaction that sees one moment of the store.

        Parameters
        ----------
        any_text : bool
            Read texts that are no UTF-8 too, with surrogates for their bytes. PostgreSQL holds none.
        """
        with self._translated(), self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin(), _any_text(connection) if any_text else nullcontext():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that commits at the end and leaves nothing behind when an error passes through it."""
        with self._translated(), self._engine.connect() as connection:
            with connection.execution_options(gateway_writes=True).begin():
                yield connection

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
            raise StoreAway(f"the store {self!r} does not answer: {_first_line(error)}") from error
        except exc.SQLAlchemyError as error:
            raise StoreError(f"the store {self!r} failed: {_first_line(error)}") from error


@contextmanager
def _any_text(connection: sa.Connection) -> Iterator[None]:
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name != "sqlite":
        yield
        return
    driver.text_factory = _text_of
    try:
        yield
    finally:
        driver.text_factory = str


def _text_of(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):  # the latter of a port that is no number
        raise StoreError("store.url is no database URL; expected sqlite:///path or postgresql+psycopg://...") from None
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise StoreError(f"store.url names {parsed.drivername!r}; expected sqlite:///path or postgresql+psycopg://...")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("store.url names a database in memory, which other processes cannot see; give it a file")
    return parsed


def _sqlite(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url, connect_args={"timeout": LOCK_WAIT_SECONDS}, pool_size=4, max_overflow=4, pool_timeout=LOCK_WAIT_SECONDS
    )

    @sa.event.listens_for(engine, "connect")
    def opened(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not start transactions of its own; `begin` below does
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={LOCK_WAIT_SECONDS * 1000}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("gateway_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url,
        connect_args=_POSTGRES_ARGUMENTS,
        pool_pre_ping=True,
        pool_size=4,
        max_overflow=4,
        pool_timeout=LOCK_WAIT_SECONDS,
    )


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().split("\n", 1)[0]
