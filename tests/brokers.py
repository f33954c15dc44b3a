"""The test kit's Apache Kafka: one KRaft node on loopback, from Maven artifacts, to be killed, frozen and restarted.

Needs Java 17 and Maven; the jars (54 MB) are fetched once, into `.cache/kafka` or below `$XDG_CACHE_HOME`.
`GATEWAY_TEST_KAFKA` wins: a folder of jars to use, or the `host:port` of a broker that runs already, which then serves
the tests that do not stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

__all__ = ("KafkaBroker", "consume", "free_port", "kafka_jars", "maven_jars")

KAFKA_VERSION = "4.3.1"

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kit</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{}</dependencies>
</project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"
_FETCH_SECONDS = 240
_START_SECONDS = 60


def kafka_jars() -> Path:
    """Return the folder with the broker's jars, fetching them when missing; skips the test where that cannot be.

    On a build server (`CI=true`) nothing is skipped: there it fails.
    """
    given = os.environ.get("GATEWAY_TEST_KAFKA", "")
    if given and Path(given).is_dir():
        return Path(given)
    return maven_jars(KAFKA_VERSION, (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",), prepare=_add_logging)


def maven_jars(name: str, artifacts: Iterable[str], *, prepare: Callable[[Path], None] | None = None) -> Path:
    """Return a folder of the cache with some artifacts (group:artifact:version) and all they need; as `kafka_jars`."""
    lacking = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if lacking:
        _give_up(f"{name} needs {' and '.join(lacking)}, which is not installed")
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    jars = cache / name
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as place:
                folder = Path(place)
                dependencies = "".join(_DEPENDENCY.format(*artifact.split(":")) for artifact in artifacts)
                (folder / "pom.xml").write_text(_POM.format(dependencies))
                _maven(folder, "copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars")
                if prepare is not None:
                    prepare(folder)
                (folder / "jars").rename(jars)
    return jars


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class KafkaBroker:
    """One broker with its own data folder; `start` after `kill` goes on with what it had acknowledged.

    Parameters
    ----------
    folder : Path
    settings : mapping, optional
        Lines of server.properties.
    listeners : mapping of name to protocol, optional
        More listeners, such as `{"TLS": "SSL"}`, beside the plain one that this kit uses itself.
    advertised : mapping of name to port, optional
        Where clients of a listener are sent on to, such as a proxy in front of it.
    users : mapping of name to password, optional
        Who may log in by SCRAM.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: dict[str, str] | None = None,
        listeners: dict[str, str] | None = None,
        advertised: dict[str, int] | None = None,
        users: dict[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings or {}
        self._protocols = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        self._advertised = advertised or {}
        self._users = users or {}
        self._jars = kafka_jars()
        self._ports = {name: free_port() for name in self._protocols}
        self._port = self._ports["PLAINTEXT"]
        self._process: subprocess.Popen[bytes] | None = None
        self._folder.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<KafkaBroker {self.bootstrap_servers} {'running' if self._process else 'not running'}>"

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def port(self, listener: str) -> int:
        """The port that a listener listens on, whatever it advertises."""
        return self._ports[listener]

    def advertise(self, listener: str, port: int) -> None:
        """Send the clients of a listener on to this port; before the first start."""
        self._advertised[listener] = port

    def start(self) -> None:
        """Start the broker and wait until it answers."""
        if not (self._folder / "server.properties").exists():
            self._format()
        log = open(self._folder / "broker.log", "ab")
        with log:
            self._process = subprocess.Popen(
                [
                    *self._java("-Xms256m", "-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
                    "kafka.Kafka",
                    "server.properties",
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self._folder / "broker.log").read_text(errors="replace")[-2000:]
                self.kill()
                pytest.fail(f"Apache Kafka did not start:\n{tail}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=30)

    def freeze(self) -> None:
        """Stop the broker's process; its connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _java(self, *options: str) -> list[str]:
        return ["java", *options, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self._jars}/*"]

    def _format(self) -> None:
        controller = free_port()
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": _listeners(self._ports | {"CONTROLLER": controller}),
            "advertised.listeners": _listeners(self._ports | self._advertised),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in {"CONTROLLER": "PLAINTEXT", **self._protocols}.items()
            ),
            "log.dirs": str(self._folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "log.cleaner.dedupe.buffer.size": "33554432",
            # Records of tests are years old: what looks for the outdated every five minutes would take them away.
            "log.retention.check.interval.ms": "86400000",
        } | self._settings
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self._folder / "server.properties").write_text(text)
        tool = [*self._java("-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool"]
        made = subprocess.run([*tool, "random-uuid"], capture_output=True, text=True, timeout=60, check=True)
        scram = [
            f"--add-scram={mechanism}=[name={user},password={password}]"
            for user, password in self._users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        subprocess.run(
            [*tool, "format", "-t", made.stdout.split()[-1], "-c", "server.properties", *scram],
            cwd=self._folder,
            capture_output=True,
            timeout=60,
            check=True,
        )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as door:
            # ApiVersions v0, correlation 1, client "kit": answered only when the broker is ready.
            door.sendall(bytes.fromhex("0000000d 0012 0000 00000001 0003 6b6974"))
            door.settimeout(2)
            return len(door.recv(8)) == 8
        return False


def _listeners(ports: dict[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


def _add_logging(folder: Path) -> None:
    names = " ".join(path.name for path in (folder / "jars").iterdir())
    match = re.search(r"slf4j-api-([0-9.]+)\.jar", names)
    if match is None:
        _give_up(f"no slf4j-api among the jars of Apache Kafka: {names}")
    else:
        _maven(folder, "copy", f"-Dartifact=org.slf4j:slf4j-simple:{match[1]}", "-DoutputDirectory=jars")


def _maven(folder: Path, goal: str, *options: str) -> None:
    try:
        subprocess.run(
            ["mvn", "-B", "-q", f"{_PLUGIN}:{goal}", *options],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        _give_up(f"Maven could not fetch what is needed: {(error.stdout + error.stderr)[-500:]}")
    except subprocess.TimeoutExpired:
        _give_up(f"Maven did not fetch what is needed within {_FETCH_SECONDS} s")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "inference-gateway" / "kafka" if base else Path(__file__).parents[1] / ".cache" / "kafka"


def _give_up(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def consume(bootstrap_servers: str, topic: str, *, seconds: float = 30.0) -> list[Any]:
    """Every message that is in a topic now, by partition and offset; none when there is no such topic."""

    async def read() -> list[Any]:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, enable_auto_commit=False)
        await consumer.start()
        try:
            if topic not in await consumer.topics():
                return []
            await consumer._client._wait_on_metadata(topic)
            places = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            ends = await consumer.end_offsets(places)
            messages = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    messages += batch
            return sorted(messages, key=lambda message: (message.partition, message.offset))
        finally:
            await consumer.stop()

    async def bounded() -> list[Any]:
        async with asyncio.timeout(seconds):
            return await read()

    return asyncio.run(bounded())
