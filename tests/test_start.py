from __future__ import annotations

import asyncio
import io
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.settings import Settings
from gateway.start import modelless, start_faults, unserved
from gateway.supervisor import StartFailed, Supervisor
from gateway.telemetry.log import ProcessLog
from tests.worlds import World


def settings_with(tmp_path: Path, **sections: Any) -> Settings:
    return Settings.model_validate({"models": tmp_path, "state_dir": tmp_path / "state", **sections})


def test_the_defaults_start(tmp_path: Path) -> None:
    assert list(start_faults(settings_with(tmp_path))) == []
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port", "admin_port"), 0)
    assert list(start_faults(settings_with(tmp_path, server=ports))) == [], "0 is a free port for each of them"


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"models": "/nope"}, "there is no folder of models at /nope; name one with --models"),
        ({"store": {"url": "nonsense"}}, "store.url is no database URL; expected sqlite:///path or postgresql+psycopg"),
        ({"store": {"url": "postgresql+psycopg://a@b:c/d"}}, "store.url is no database URL; expected sqlite:///path"),
        ({"store": {"url": "postgresql://nobody@127.0.0.1:1/x"}}, "store.url names 'postgresql'; expected sqlite"),
        ({"store": {"url": "mysql://a/b"}}, "store.url names 'mysql'; expected sqlite:///path or postgresql+psycopg"),
        ({"admin": {"host": "0.0.0.0"}}, "admin.host = '0.0.0.0' is not loopback and admin.token is empty"),
        ({"server": {"host": "no address"}}, "server.host = 'no address' is no address, and no name of one"),
        ({"server": {"host": "a..b"}}, "server.host = 'a..b' is no address, and no name of one"),
        ({"server": {"admin_port": 8000}}, "server.http_port and server.admin_port are both 8000"),
        ({"server": {"admin_port": 8002, "host": "::1"}}, "server.metrics_port and server.admin_port are both 8002"),
        ({"server": {"http_port": 8003, "host": "0.0.0.0"}}, "server.http_port and server.admin_port are both 8003"),
        ({"spool": {"archive_url": "nowhere://x"}}, "spool.archive_url = 'nowhere://x': "),
    ],
)
def test_what_serve_refuses_for_its_settings_check_tells_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], fault: str
) -> None:
    settings = settings_with(tmp_path, **sections)
    with pytest.raises(StartFailed) as refused:
        asyncio.run(Supervisor(settings, log=ProcessLog("gateway", json=False, stream=io.StringIO())).run())
    assert fault in str(refused.value)
    monkeypatch.setattr("gateway.cli.serve.load_settings", lambda *_, **__: settings)
    told = CliRunner().invoke(app, ["check"])
    assert (told.exit_code, told.stdout) == (1, f"{refused.value}\n")
    assert told.stderr == "gateway: 1 fault(s) found\n"
    assert list(tmp_path.iterdir()) == []


def refused(settings: Settings) -> str:
    with pytest.raises(StartFailed) as raised:
        asyncio.run(Supervisor(settings, log=ProcessLog("gateway", json=False, stream=io.StringIO())).run())
    return str(raised.value)


def test_all_ports_that_are_taken_are_told_at_once_each_with_its_option(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        http, admin = (taken.getsockname()[1] for taken in (one, other))
        ports = {"http_port": http, "admin_port": admin, "grpc_port": 0, "metrics_port": 0}
        why = "cannot listen on 127.0.0.1: Address already in use"
        assert refused(settings_with(tmp_path, server=ports)) == (
            f"server.http_port = {http}: {why}; --http-port takes another; "
            f"server.admin_port = {admin}: {why}; --admin-port takes another"
        )
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_another_machine_is_told_as_that(tmp_path: Path) -> None:
    assert refused(settings_with(tmp_path, server={"host": "192.0.2.1", "metrics_port": 0, "admin_port": 0})) == (
        "server.host = '192.0.2.1' is no address of this machine"
    )


@pytest.mark.parametrize("part", ["front", "monitor", "admin-process"])
def test_a_part_that_is_run_alone_refuses_a_store_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    settings = settings_with(tmp_path, store={"url": "nonsense"})
    monkeypatch.setattr("gateway.cli.serve.load_settings", lambda *_, **__: settings)
    told = CliRunner().invoke(app, [part])
    assert (told.exit_code, told.stdout) == (1, "")
    assert told.stderr.startswith("gateway: the store cannot be used: store.url is no database URL")


def test_the_admin_side_alone_does_not_listen_beyond_loopback_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with(tmp_path, admin={"host": "0.0.0.0"})
    monkeypatch.setattr("gateway.cli.serve.load_settings", lambda *_, **__: settings)
    told = CliRunner().invoke(app, ["admin-process"])
    assert told.exit_code == 1
    assert "admin.host = '0.0.0.0' is not loopback and admin.token is empty" in told.stderr


def test_the_port_of_grpc_counts_where_grpc_is_served(tmp_path: Path) -> None:
    assert list(start_faults(settings_with(tmp_path, server={"http_port": 8001}))) == [
        "server.http_port and server.grpc_port are both 8001; give each a port of its own"
    ]
    assert list(start_faults(settings_with(tmp_path, server={"http_port": 8001, "grpc": False}))) == []


def test_the_same_port_of_two_addresses_is_no_fault(tmp_path: Path) -> None:
    server = {"host": "127.0.0.2", "http_port": 8003, "grpc_port": 8002}
    assert list(start_faults(settings_with(tmp_path, server=server))) == []


def test_an_archive_without_the_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    [fault] = start_faults(settings_with(tmp_path, spool={"archive_url": "s3://bucket/log"}))
    assert fault.startswith("spool.archive_url = 's3://bucket/log': ")


def test_check_tells_an_approval_that_is_of_no_version(tmp_path: Path) -> None:
    world = World(tmp_path)
    digest, other = world.add_version(1), "sha256:" + 64 * "0"
    world.close()
    policy = world.settings.models / "m" / "model.toml"
    arguments = ["check", "--models", str(world.settings.models)]
    policy.write_text(f'[approvals]\n1 = "{digest}"\n')
    assert CliRunner().invoke(app, arguments).exit_code == 0
    policy.write_text(f'[approvals]\n1 = "{other}"\n2 = "{digest}"\n')
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 1
    assert f"{policy}: approvals.1 = '{other}': version 1 has {digest}\n" in told.stdout
    assert f"{policy}: approvals.2 = '{digest}': there is no such version\n" in told.stdout


def test_a_folder_without_any_model_is_told_and_is_no_fault(tmp_path: Path) -> None:
    world = World(tmp_path)
    models = world.settings.models
    told = f"there is no model in {models}: a model is a folder with folders 1, 2, ..., which `models add` makes"
    assert list(modelless(models)) == [told]
    checked = CliRunner().invoke(app, ["check", "--models", str(models)])
    assert (checked.exit_code, checked.stdout.splitlines()[0]) == (0, told)
    world.add_version(1)
    world.close()
    assert list(modelless(models)) == []
    [told] = modelless(models / "m")
    assert told.startswith(f"there is no model in {models / 'm'}: ") and told.endswith(
        f"; this is one itself, and --models names the folder it is in, {models}"
    )
    (models / "m" / "1" / "manifest.json").unlink()
    assert list(modelless(models)) == [], "there is one, of which something else is told"


def test_what_is_not_served_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    for model in ("approved", "retired", "routed"):
        world.serve(1, 2, model=model)
    world.store.register("new", 1, "sha256:" + 64 * "0")
    for version in (1, 2):
        world.store.reject("retired", version, actor="ada", reason="a test")
    world.store.set_route("routed", stable=1, canary=2, weight=0, actor="ada", reason="a test")
    away = {("routed", 1): "its circuit is open", ("routed", 2): "it cannot be loaded"}
    assert list(unserved(world.store.snapshot(), lambda *key: away.get(key))) == [
        "routed is not served: its stable version 1 is out of service: its circuit is open",
        "routed: its canary version 2 is out of service: it cannot be loaded",
        "approved is not served: it has no route; `gateway route set approved --stable 2` sets one",
        "new is not served: none of its versions is approved; "
        "`gateway models approve new VERSION --reason TEXT` approves one",
    ]
    world.close()
