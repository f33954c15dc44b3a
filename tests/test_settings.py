from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsError, load_settings


def test_without_anything_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert (settings.server.http_port, settings.server.fronts) == (8000, 2)
    assert settings.store_url == "sqlite:///.gateway/store.db"


def test_file_environment_and_flags_win_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[server]\nhttp_port = 1111\nfronts = 3\nname = 'file'\n[kafka]\nbootstrap_servers = 'file:1'\n")
    monkeypatch.setenv("GATEWAY_SERVER__FRONTS", "4")
    monkeypatch.setenv("GATEWAY_SERVER__HTTP_PORT", "2222")
    settings = load_settings(file, overrides={"server": {"http_port": 3333}})
    assert (settings.server.name, settings.server.fronts, settings.server.http_port) == ("file", 4, 3333)
    assert settings.kafka.bootstrap_servers == "file:1"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[server]\nfrontz = 2\n", r"server\.frontz: no such setting"),
        ("[server]\nfronts = 0\n", r"server\.fronts = 0: .*greater than or equal to 1"),
        ("[spool]\nfsync = 'sometimes'\n", r"spool\.fsync = 'sometimes': .*'always', 'interval' or 'never'"),
        ("[server]\nhttp_port = 'x'\n", r"server\.http_port = 'x'"),
        ("nonsense", "cannot read"),
        ("[nothing]\na = 1\n", "nothing: no such setting"),
        ("[kafka]\nbootstrap_servers = 'a:1, b'\n", r"^kafka\.bootstrap_servers = 'a:1, b': 'b' is no host:port$"),
        ("[kafka]\nbootstrap_servers = 'a:x'\n", r"'a:x' is no host:port$"),
        ("[kafka]\nbootstrap_servers = 'a:1,'\n", r"'' is no host:port$"),
        ("[monitor]\nsource = 'kafka'\n", r"^monitor\.source = 'kafka', but kafka\.bootstrap_servers is empty$"),
    ],
)
def test_a_wrong_file_names_the_key_the_value_and_what_is_allowed(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=match):
        load_settings(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nfrontz = 2\n", "server.frontz: no such setting (in {file}); nearest: server.fronts"),
        ("[kafka]\nack = 1\n", "kafka.ack: no such setting (in {file}); nearest: kafka.acks"),
        ("http_port = 1\n", "http_port: no such setting (in {file}); nearest: server.http_port"),
        ("[serve]\nhost = 'x'\n", "serve: no such setting (in {file}); nearest: server"),
        ("[server]\nqqq = false\n", "server.qqq: no such setting (in {file})"),
    ],
)
def test_a_setting_that_is_none_tells_where_it_stands_and_what_is_near(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(file)
    assert str(raised.value).startswith(said.format(file=file))


def test_a_variable_that_is_none_of_its_section_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_SERVER__FRONTZ", "2")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value) == (
        "server.frontz: no such setting (in the environment: GATEWAY_SERVER__FRONTZ); nearest: server.fronts"
    )


def test_a_variable_that_is_no_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KAFFKA__BOOTSTRAP_SERVERS", "x:1")
    with pytest.raises(SettingsError, match="GATEWAY_KAFFKA__BOOTSTRAP_SERVERS is no setting"):
        load_settings()


def test_a_variable_with_one_underscore_too_few_is_told_the_right_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SERVER_FRONTS", "2")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value) == (
        "environment variable GATEWAY_SERVER_FRONTS is no setting; nearest: GATEWAY_SERVER__FRONTS"
    )


def test_a_variable_with_a_wrong_value_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SERVER__FRONTS", "many")
    with pytest.raises(SettingsError, match=r"server\.fronts = 'many'"):
        load_settings()


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(tmp_path / "none.toml")
    assert str(raised.value) == f"cannot read {tmp_path / 'none.toml'}: No such file or directory"


def test_children_read_back_exactly_what_the_supervisor_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(overrides={"server": {"http_port": 4444}, "state_dir": Path("/tmp/x")})
    monkeypatch.setenv("GATEWAY_SERVER__HTTP_PORT", "5555")
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_login_that_is_not_whole_is_refused_without_telling_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("GATEWAY_KAFKA__SASL_PASSWORD", "kept-to-itself")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value) == (
        'kafka: security_protocol = "SASL_SSL" logs in: sasl_username and sasl_password are needed'
    )
