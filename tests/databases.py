"""A real PostgreSQL for tests: its own cluster on a free port of loopback, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

START_SECONDS = 30


def postgres_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, or None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


class PostgresServer:
    """One cluster; `fresh` makes an empty database in it."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
        self._port = _free_port()
        self._user = _plain_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        if self._user:
            shutil.chown(self._folder, self._user)

    def start(self) -> None:
        cluster = self._folder / "cluster"
        if not cluster.exists():
            self._run("initdb", "-D", str(cluster), "-U", "gateway", "--auth=trust", "-N", "-E", "UTF8")
        arguments = [str(self._programs / "postgres"), "-D", str(cluster), "-p", str(self._port)]
        arguments += ["-k", str(self._folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(arguments, stdout=log, stderr=log, user=self._user, cwd=self._folder)
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self._url("postgres", driver=""), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_SECONDS)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def fresh(self) -> str:
        """The SQLAlchemy URL of a new database."""
        self._made += 1
        name = f"test{self._made}"
        with psycopg.connect(self._url("postgres", driver=""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name, driver="+psycopg")

    def _url(self, database: str, *, driver: str) -> str:
        return f"postgresql{driver}://gateway@127.0.0.1:{self._port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self._folder,
            timeout=START_SECONDS,
        )


def _plain_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
