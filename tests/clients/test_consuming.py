"""The programs and statements of docs/consuming.md, run as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import KafkaBroker, maven_jars
from tests.checker import topic
from tests.clients.environments import client_python
from tests.gateways import RunningGateway, call, eventually, running_gateway
from tests.load import Load

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs" / "consuming.md").read_text(encoding="utf-8")
PACKAGES = ("confluent-kafka==2.16.1", "kafka-python[zstd]==3.0.12", "sqlglot==30.30.0")


@pytest.fixture(scope="module")
def python() -> Path:
    return client_python("consumers", *PACKAGES)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, str]]:
    """A gateway that ships to a broker, with predictions and a label for every one."""
    broker = KafkaBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    servers = broker.bootstrap_servers
    try:
        with running_gateway(tmp_path_factory.mktemp("gateway"), kafka=servers) as gateway:
            yield gateway, servers
    finally:
        broker.kill()


def program(name: str, folder: Path) -> Path:
    """Write one of the page's programs to a file."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if block.startswith(f"# {name}")]
    path = folder / name
    path.write_text(found)
    return path


def statements(kind: str) -> str:
    (found,) = [block for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL) if block.startswith(f"-- {kind}\n")]
    return str(found)


def label_all(gateway: RunningGateway, ids: list[str], *, start: int = 0) -> None:
    for number, prediction in enumerate(ids, start=start):
        label = {"prediction_id": prediction, "row": 0, "label": float(number)}
        status, answer = call(f"{gateway.http_url}/v2/models/bike-demand/feedback", label)
        assert (status, answer) == (200, {"accepted": 1})


def test_predictions_and_labels_are_kept_once_and_joined_though_the_program_is_killed(
    gateway: tuple[RunningGateway, str], python: Path, tmp_path: Path
) -> None:
    running, servers = gateway
    with Load(running.http_port, connections=2, pause_seconds=0.01) as load:
        load.wait(60)
    eventually(lambda: len(topic(servers, "gateway.predictions")) >= len(load.answers), seconds=60, what="predictions")
    file, keep_log = tmp_path / "log.db", program("keep_log.py", tmp_path)
    expected = {answer.prediction_id: answer.body["outputs"][0]["data"][0] for answer in load.answers}
    said = tmp_path / "said.txt"

    def rows(query: str) -> list[tuple[object, ...]]:
        assert process.poll() is None, said.read_text()
        if not file.exists():
            return []
        database = sqlite3.connect(file)
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            database.close()

    with said.open("wb") as output:
        process = subprocess.Popen([python, keep_log, servers, file], stdout=output, stderr=output)
        try:
            eventually(lambda: rows("SELECT 1 FROM predictions LIMIT 1"), seconds=60, what="a first prediction")
        finally:
            process.kill()
            process.wait()
        label_all(running, list(expected), start=1000)
        label_all(running, list(expected))
        process = subprocess.Popen([python, keep_log, servers, file], stdout=output, stderr=output)
        try:
            eventually(
                lambda: len(rows("SELECT 1 FROM labels WHERE label < 1000")) == len(expected),
                seconds=90,
                what="the last label of each prediction",
            )
            assert {row[0] for row in rows("SELECT id FROM predictions")} == set(expected)
            pairs = rows("SELECT prediction_id, label FROM labels")
            assert dict(pairs) == {prediction: float(number) for number, prediction in enumerate(expected)}
            summary = {str(version): (arm, count, error) for version, arm, count, error in rows(statements("sqlite"))}
        finally:
            process.kill()
            process.wait()
    differences: dict[str, list[float]] = {}
    for number, answer in enumerate(load.answers):
        differences.setdefault(answer.version, []).append(abs(number - expected[answer.prediction_id]))
    assert summary == {
        version: (
            next(answer.arm for answer in load.answers if answer.version == version),
            len(found),
            pytest.approx(sum(found) / len(found)),
        )
        for version, found in differences.items()
    }


def test_each_prediction_is_printed_once_though_the_topic_holds_it_twice(
    gateway: tuple[RunningGateway, str], python: Path, tmp_path: Path
) -> None:
    running, servers = gateway
    with Load(running.http_port, connections=2, pause_seconds=0.01) as load:
        load.wait(30)
    wanted = {answer.prediction_id for answer in load.answers}
    eventually(
        lambda: wanted <= {entry.id for entry in topic(servers, "gateway.predictions")}, seconds=60, what="predictions"
    )
    again = subprocess.run([python, "-c", REPEAT, servers], capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    held = topic(servers, "gateway.predictions")
    ids = {entry.id for entry in held}
    assert len(held) >= 2 * len(ids)
    printed = tmp_path / "printed.txt"
    with printed.open("wb") as output:
        follower = subprocess.Popen([python, program("follow.py", tmp_path), servers], stdout=output, stderr=output)
        try:
            eventually(lambda: len(printed.read_text().splitlines()) >= len(ids), seconds=60, what="every prediction")
            time.sleep(2)
            assert follower.poll() is None, printed.read_text()
        finally:
            follower.kill()
            follower.wait()
    lines = [line.split(" ", 3) for line in printed.read_text().splitlines()]
    assert sorted(line[0] for line in lines) == sorted(ids)
    assert all(json.loads(outputs)[0]["name"] for _, _, _, outputs in lines)


@pytest.mark.parametrize("kind", ["sqlite", "clickhouse"])
def test_the_statements_are_read_by_a_parser_of_their_dialect(kind: str, python: Path) -> None:
    ran = subprocess.run(
        [python, "-c", PARSE, kind], input=statements(kind), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == statements(kind).count(";")


def test_the_statements_for_flink_are_read_by_flinks_own_parser(tmp_path: Path) -> None:
    jars = maven_jars("flink-sql-parser-1.20.0", FLINK)
    if shutil.which("javac") is None:
        pytest.skip("javac is not installed")
    source = tmp_path / "Statements.java"
    source.write_text(FLINK_PARSE)
    ran = subprocess.run(
        ["java", "-cp", f"{jars}/*", str(source)],
        input=statements("flink"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == statements("flink").count(";")


FLINK = ("org.apache.flink:flink-sql-parser:1.20.0", "org.apache.calcite:calcite-linq4j:1.32.0")
FLINK_PARSE = """
import java.nio.charset.StandardCharsets;
import org.apache.calcite.config.Lex;
import org.apache.calcite.sql.parser.SqlParser;
import org.apache.flink.sql.parser.impl.FlinkSqlParserImpl;
import org.apache.flink.sql.parser.validate.FlinkSqlConformance;

public class Statements {
    public static void main(String[] arguments) throws Exception {
        String text = new String(System.in.readAllBytes(), StandardCharsets.UTF_8);
        SqlParser.Config config = SqlParser.config()
            .withParserFactory(FlinkSqlParserImpl.FACTORY)
            .withConformance(FlinkSqlConformance.DEFAULT)
            .withLex(Lex.JAVA);
        System.out.println(SqlParser.create(text, config).parseStmtList().size());
    }
}
"""
REPEAT = """
import sys
from kafka import KafkaConsumer, KafkaProducer
consumer = KafkaConsumer("gateway.predictions", bootstrap_servers=sys.argv[1], auto_offset_reset="earliest",
                         consumer_timeout_ms=3000)
producer = KafkaProducer(bootstrap_servers=sys.argv[1])
for message in list(consumer):
    producer.send(message.topic, message.value, key=message.key, headers=list(message.headers),
                  partition=message.partition)
producer.flush(30)
"""
PARSE = """
import sys
import sqlglot
found = sqlglot.parse(sys.stdin.read(), dialect=sys.argv[1], error_level=sqlglot.ErrorLevel.RAISE)
assert all(found) and not any(isinstance(each, sqlglot.exp.Command) for each in found), found
print(len(found))
"""
