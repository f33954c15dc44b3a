"""The commands, over the real admin app without a network."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from gateway import __version__
from gateway.cli.client import AdminClient
from gateway.cli.main import COMMANDS, app
from gateway.cli.predictions import arm_text
from gateway.events.addresses import format_id
from gateway.events.records import Arm
from gateway.repository.lineage import Lineage
from gateway.rollout.judge import Judge
from gateway.rollout.plan import Plan
from tests.worlds import World

CHECKOUT = Path(__file__).parents[2]
HERE = "http://127.0.0.1:8003"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gateway, state directory or setting of this machine reaches a test."""
    monkeypatch.chdir(tmp_path)
    for name in ("GATEWAY_URL", "GATEWAY_TOKEN", "GATEWAY_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path / "world")
    with TestClient(world.app(), base_url=HERE) as server:

        def pass_on(request: httpx2.Request) -> httpx2.Response:
            answer = server.request(
                request.method, str(request.url), content=request.read(), headers=list(request.headers.raw)
            )
            return httpx2.Response(answer.status_code, content=answer.content, headers=answer.headers)

        def opened() -> AdminClient:
            return AdminClient(HERE, actor="ada", transport=httpx2.MockTransport(pass_on))

        for noun in ("audit", "drift", "models", "predictions", "rollback", "rollout", "route"):
            monkeypatch.setattr(f"gateway.cli.{noun}.open_client", opened)
        yield world
    world.close()


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def failed(*arguments: object) -> str:
    """One line on standard error, nothing on the other, exit code 1."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("gateway: ") and result.stderr.count("\n") == 1
    return result.stderr


def misused(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


def test_help_lists_every_command_that_is_not_hidden() -> None:
    text = done("--help")
    for name, line in COMMANDS.items():
        assert (f"│ {name} " in text) != line.hidden
    assert done("--version") == f"gateway {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name: str) -> None:
    assert f"gateway {name}" in done(name, "--help").replace("root ", "gateway ")


@pytest.mark.parametrize("command", [(), ("drift",), ("drift", "status"), ("serve",), ("predictions", "tail")])
def test_help_gives_flags_no_type(command: tuple[str, ...]) -> None:
    assert "bool" not in done(*command, "--help")


@pytest.mark.parametrize("command", [("route", "set"), ("rollout", "start")])
def test_help_names_every_option_whole_at_80_columns(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = done(*command, "--help")
    assert "--allow-signature-change " in text and "\N{HORIZONTAL ELLIPSIS}" not in text


def test_help_shows_defaults_that_settings_have() -> None:
    assert "[default: (8000)]" in done("serve", "--help")


def test_a_command_that_is_not_there_is_bad_usage() -> None:
    assert "No such command 'modles'. Did you mean 'models'?" in misused("modles")
    assert "Did you mean" not in misused("admin-proces")


def test_a_way_through_the_whole_life_of_a_version(world: World) -> None:
    for version in (1, 2):
        world.add_version(version)
        world.ready(version)
        said = done("models", "approve", "m", version, "--reason", "tests pass")
        assert "is approved and ready" in said
        assert said.endswith(f"next: gateway route set m --stable {version}\n"), "no version has traffic yet"
    assert done("route", "set", "m", "--stable", 1) == "m: version 1 is stable\n"
    text = done("route", "set", "m", "--stable", 1, "--canary", 2, "--weight", 10)
    assert text == "m: version 1 is stable, version 2 is the canary with 10 %\n"
    assert json.loads(done("route", "show", "m", "--json"))["weight"] == 10
    started = done("rollout", "start", "m", "--canary", 2, "--steps", "5,50")
    assert "running, step 1 of 2, weight 5 %" in started and "miss_above" in started
    assert "paused" in done("rollout", "pause", "m", "--reason", "lunch")
    assert "running" in done("rollout", "resume", "m")
    assert "promoted" in done("rollout", "promote", "m", "--reason", "I know")
    assert done("rollback", "m", "--reason", "I did not") == "version 2 was taken back; m: version 1 is stable\n"
    assert "version 2 is rejected" in done("models", "reject", "m", 2, "--reason", "bad")
    assert done("route", "remove", "m", "--reason", "retired") == (
        "m has no route any more\nnext, to end its engines: gateway models reject m VERSION --reason TEXT\n"
    )
    kinds = [one["kind"] for one in json.loads(done("audit", "list", "--json"))["decisions"]]
    assert kinds[-5:] == ["rollout_resumed", "rollout_promoted", "rollback", "version_rejected", "route_removed"]
    assert "none touched" in done("audit", "verify")
    assert {one.actor for one in world.store.decisions()} == {"ada", "gateway"}


def test_tables_show_what_json_shows(world: World) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, canary=2, weight=10, actor="eve\x0a", reason="[bold]why[/bold]")
    world.store.start_rollout("m", 2, plan={"steps": [5, 50]}, actor="ada", reason="")
    for arguments, expected in (
        (("models", "list"), ("approved", "ready", "canary", "95")),
        (("models", "show", "m"), ("approved", "stable")),
        (("models", "show", "m", 1), ("abc123", "x FP32 [-1, 2]", "answers were equal")),
        (("route", "show"), ("m", "5")),
        (("rollout", "status"), ("running", "1 of 2", "rollout-6")),
        (("audit", "list"), ("route_set", "[bold]why[/bold]")),
    ):
        table = done(*arguments)
        assert all(text in table for text in expected), table
        json.loads(done(*arguments, "--json"))


def test_a_version_is_shown_with_what_was_remarked_and_without_empty_rows(world: World) -> None:
    world.add_version(1, lineage=Lineage(author="ada"), remarks=("output 'z' is never answered",))
    lines = done("models", "show", "m", 1).splitlines()
    assert "remark    output 'z' is never answered" in lines
    assert not [line for line in lines if line.startswith(("data", "source"))], lines


def test_the_file_of_a_reference_and_the_profile_are_shown_each_by_its_name(world: World) -> None:
    shutil.copytree(CHECKOUT / "models" / "bike-demand" / "1", world.settings.models / "bike-demand" / "1")
    lines = done("models", "show", "bike-demand", 1).splitlines()
    [reference] = [line for line in lines if line.startswith("reference ")]
    [profile] = [line for line in lines if line.startswith("profile ")]
    assert "sha256" in reference and profile.endswith(" rows, 6 features")


def test_why_an_approved_version_has_no_engine_is_listed(world: World) -> None:
    for version in (1, 2, 3):
        world.serve(version)
        (world.settings.run_dir / f"engine-m-{version}.sock").unlink()
    world.add_version(4)
    world.store.register("m", 4, world.digest("m", 1))
    shutil.rmtree(world.settings.models / "m" / "1")
    (world.settings.models / "m" / "2" / "model.onnx").unlink()
    shutil.rmtree(world.settings.models / "m" / "3")
    digest = world.add_version(3, remarks=("another one",))
    listed = done("models", "list").splitlines()
    gone = world.settings.models / "m" / "1"
    assert f"m version 1: {gone} cannot be opened as a folder: No such file or directory" in listed
    assert "m version 2: model.onnx is missing" in listed
    assert f"m version 3: the folder has the digest {digest}, not the one that is approved" in listed
    assert not [line for line in listed if line.startswith("m version 4")], "nobody expects an engine of it"
    shown = done("models", "show", "m", 2)
    assert shown.count("model.onnx is missing") == 1, shown


def test_the_audit_list_says_what_each_decision_made_of_a_version_or_a_route(world: World) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    rollout = world.store.start_rollout("m", 2, plan={"steps": [5, 50]}, actor="ada", reason="")
    world.store.move_rollout(rollout.after["rollout"]["id"], "advance", actor="ada", reason="")
    world.store.rollback("m", actor="ada", reason="")
    world.store.remove_route("m", actor="ada", reason="")
    lines = [" ".join(line.split()) for line in done("audit", "list").splitlines()]
    for said in (
        "version_registered gateway version 1 registered the version's folder was found",
        "version_approved ada version 2 approved tests pass",
        "route_set ada stable 1",
        "rollout_started ada stable 1 -> stable 1, canary 2 at 5 %, step 1",
        "rollout_advanced ada stable 1, canary 2 at 5 %, step 1 -> stable 1, canary 2 at 50 %, step 2",
        "rollback ada stable 1, canary 2 at 50 %, step 2 -> stable 1",
        "route_removed ada stable 1 -> no route",
    ):
        assert any(line.endswith(said) for line in lines), lines


def test_the_list_says_why_a_version_is_out_of_service(world: World) -> None:
    world.serve(1, 2)
    (world.settings.run_dir / "engine-m-2.sock").unlink()
    world.note(2, "circuit_open", "its engine ended 5 times within 60 s, last by SIGSEGV")
    for arguments in (("models", "list"), ("models", "show", "m")):
        *table, why = done(*arguments).splitlines()
        assert why == "m version 2: its engine ended 5 times within 60 s, last by SIGSEGV"
        assert "circuit open" in "".join(table)


def test_the_list_of_versions_fits_into_80_columns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.screen._PIPE_WIDTH", 80)
    world.serve(1, 2, model="bike-demand")
    (world.settings.run_dir / "engine-bike-demand-2.sock").unlink()
    world.note(2, "circuit_open", model="bike-demand")
    world.store.set_route("bike-demand", stable=1, canary=2, weight=12.5, actor="ada", reason="")
    *_, one, two = (line.split() for line in done("models", "list").splitlines() if line.strip())
    assert one[:6] == ["bike-demand", "1", "approved", "ready", "stable", "87.5"]
    assert two[:7] == ["bike-demand", "2", "approved", "circuit", "open", "canary", "12.5"]
    assert f"sha256:{two[7]}" == world.store.snapshot().versions["bike-demand", 2].digest[:19]


def test_what_is_refused_is_one_line_and_exit_code_1(world: World) -> None:
    assert "there is no version 1 of model 'm'" in failed("route", "set", "m", "--stable", 1)
    assert "there is no model 'other'" in failed("models", "show", "other")
    assert "there is no rollout of m" in failed("rollout", "pause", "m")
    assert "no route" in failed("rollback", "m")
    assert "no route" in failed("route", "remove", "m")
    assert "has not written" in failed("drift", "status")
    assert "event id" in failed("predictions", "show", "x")


def test_what_others_worded_reaches_no_terminal_raw_in_an_error(world: World) -> None:
    world.serve(1, 2)
    (world.settings.run_dir / "engine-m-2.sock").unlink()
    world.note(2, "failed", "the model says \x1b]0;owned\x07")
    for arguments in (
        ("route", "set", "m", "--stable", 2),
        ("models", "approve", "m", 2, "--reason", "again"),
    ):
        assert r"the model says \x1b]0;owned\x07" in failed(*arguments)


def test_a_model_that_is_not_there_is_told_wherever_it_is_asked_for(world: World) -> None:
    world.serve(1)
    for known in (("rollout", "status", "m"), ("audit", "list", "--model", "m")):
        done(*known)
    for command in (
        ("rollout", "status", "n"),
        ("rollout", "status", "n", "--json"),
        ("audit", "list", "--model", "n"),
        ("models", "show", "n"),
        ("route", "show", "n"),
    ):
        assert "model 'n'" in failed(*command)


def test_a_route_by_hand_tells_of_the_rollout_that_it_ended(world: World) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    for command in (("set", "m", "--stable", 2), ("remove", "m")):
        world.store.start_rollout("m", 3 - world.store.snapshot().routes["m"].stable, plan={}, actor="ada", reason="")
        rollout = world.store.rollouts("m")[0]
        assert f"the rollout of version {rollout.canary} ({rollout.id}) ended by it\n" in done("route", *command)
    assert "ended" not in done("route", "set", "m", "--stable", 1)


def test_a_rollback_leaves_the_stable_version_alone_when_the_monitor_was_quicker(world: World) -> None:
    world.serve(1, 2, 3)
    for stable in (1, 2):
        world.store.set_route("m", stable=stable, actor="ada", reason="")
    world.store.set_route("m", stable=2, canary=3, weight=10, actor="ada", reason="")
    world.store.rollback("m", version=3, actor="gateway monitor", reason="worse")
    world.store.decide("m", kind="drift_alarm", actor="gateway monitor", reason="", before={}, after={}, evidence={})
    text = failed("rollback", "m", "--reason", "errors")
    assert "version 3 of m was taken back already, by gateway monitor at " in text
    assert "`gateway rollback m --version 2`" in text
    assert world.store.snapshot().routes["m"].stable == 2
    assert done("rollback", "m", "--version", 2) == "version 2 was taken back; m: version 1 is stable\n"


@pytest.mark.parametrize("said", [0, 100])
def test_a_rollback_with_nothing_to_go_back_to_names_the_way_on(world: World, said: int) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    assert "`gateway route set m --stable N`" in failed("rollback", "m")
    world.store.set_route("m", stable=1, canary=2, weight=10, actor="ada", reason="")
    done("rollback", "m")
    for _ in range(said):
        world.store.decide("m", kind="warning", actor="x", reason="", before={}, after={}, evidence={})
    text = failed("rollback", "m")
    assert "no stable version of before" in text and "`gateway route set m --stable N`" in text
    assert "--version" not in text


def test_a_rollback_asks_for_the_version_where_too_much_has_been_said_since_the_route_was_set(world: World) -> None:
    world.serve(1, 2, 3)
    for stable in (1, 2):
        world.store.set_route("m", stable=stable, actor="ada", reason="")
    world.store.set_route("m", stable=2, canary=3, weight=10, actor="ada", reason="")
    world.store.rollback("m", version=3, actor="gateway monitor", reason="worse")
    said: dict[str, Any] = {"actor": "gateway monitor", "reason": "", "before": {}, "after": {}, "evidence": {}}
    for _ in range(100):
        world.store.decide("m", kind="warning", **said)
    assert "`gateway rollback m --version 2`" in failed("rollback", "m")
    assert world.store.snapshot().routes["m"].stable == 2
    assert done("rollback", "m", "--version", 2) == "version 2 was taken back; m: version 1 is stable\n"


def test_a_rollback_takes_back_what_it_has_read_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.serve(1, 2, 3)
    for stable in (1, 2):
        world.store.set_route("m", stable=stable, actor="ada", reason="")
    world.store.set_route("m", stable=2, canary=3, weight=10, actor="ada", reason="")
    read = AdminClient.get

    def and_then_the_monitor(self: AdminClient, path: str, query: Any = None) -> Any:
        body = read(self, path, query)
        world.store.rollback("m", version=3, actor="gateway monitor", reason="worse")
        return body

    monkeypatch.setattr(AdminClient, "get", and_then_the_monitor)
    assert "version 3 carries no traffic" in failed("rollback", "m")
    assert world.store.snapshot().routes["m"].stable == 2


def test_a_rollback_of_a_route_that_was_seen_asks_for_its_revision(world: World) -> None:
    world.serve(1, 2, 3)
    for stable in (1, 2):
        world.store.set_route("m", stable=stable, actor="ada", reason="")
    seen = world.store.set_route("m", stable=2, canary=3, weight=10, actor="ada", reason="")
    revision = world.store.snapshot().routes["m"].revision
    world.store.rollback("m", actor="gateway monitor", reason="worse")
    assert f"is at revision {revision + 1}, not {revision}" in failed("rollback", "m", "--revision", revision)
    assert world.store.snapshot().routes["m"].stable == seen.after["stable"]
    assert "version 2 was taken back" in done("rollback", "m", "--revision", revision + 1)


def test_an_approval_whose_engine_is_not_ready_fails_and_says_why(world: World) -> None:
    world.add_version(1)
    world.note(1, "starting", "loading weights")
    text = failed("models", "approve", "m", 1, "--reason", "x")
    assert "is approved, but its engine is starting: loading weights" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("route", "set", "m"),
        ("route", "set", "m", "--stable", "0"),
        ("route", "set", "m", "--stable", "one"),
        ("route", "set", "m", "--stable", "1", "--weight", "10"),
        ("route", "set", "m", "--stable", "1", "--canary", "2"),
        ("route", "set", "m", "--stable", "1", "--canary", "2", "--weight", "101"),
        ("models", "approve", "m", "1"),
        ("rollout", "start", "m"),
        ("rollout", "start", "m", "--canary", "2", "--steps", "5;10"),
        ("feedback", "send", "m"),
        ("feedback", "send", "m", "id"),
        ("rollout", "start", "m", "--canary", "2", "--steps", "nan"),
        ("rollout", "start", "m", "--canary", "2", "--steps", "5,inf"),
        ("route", "set", "m", "--stable", "1", "--canary", "2", "--weight", "nan"),
        ("feedback", "send", "m", "id", "--label", "nan"),
        ("feedback", "send", "m", "id", "--label=-inf"),
        ("feedback", "send", "m", "id", "--label", "x"),
        ("feedback", "send", "m", "id", "--label", "1", "--file", "labels.csv"),
        ("audit", "list", "--limit", "0"),
    ],
)
def test_bad_usage_is_exit_code_2_and_calls_nobody(arguments: tuple[str, ...]) -> None:
    assert misused(*arguments)


def test_without_a_gateway_the_way_to_one_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_URL", "http://127.0.0.1:1")
    assert "no gateway answers at http://127.0.0.1:1; start one with `gateway serve`" in failed("models", "list")
    assert "holds no log either" in failed("predictions", "tail", "--no-follow")
    monkeypatch.setenv("GATEWAY_URL", "gopher://x")
    assert "expected a URL" in failed("models", "list")


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://h:x", "http://h:99999", "http://", "\udcff", "http://\udcff.x", "h"]
)
def test_what_is_no_url_is_one_line(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GATEWAY_URL", url)
    failed("models", "list")
    failed("predictions", "tail", "--no-follow")
    monkeypatch.delenv("GATEWAY_URL")
    failed("feedback", "send", "m", "p-1", "--label", "1", "--url", url)


@pytest.mark.parametrize("token", ["é", "\udcc3\udca9", "x\ny"])
def test_a_token_of_any_letters_is_one_line_at_worst(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("GATEWAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GATEWAY_TOKEN", token)
    assert "no gateway answers" in failed("models", "list")


def test_an_argument_that_is_no_text_is_one_line(world: World) -> None:
    for arguments in (("route", "show", "\udcff"), ("route", "remove", "m", "--reason", "\udcff")):
        failed(*arguments)


def test_the_tail_reads_the_spool_when_no_gateway_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.add_version(1, model="n")
    ids = world.predict("m", "n", "m")
    world.close()
    monkeypatch.setenv("GATEWAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GATEWAY_STATE_DIR", str(tmp_path / "state"))

    def found(*arguments: str) -> list[str]:
        return [json.loads(line)["id"] for line in done("predictions", "tail", "--json", *arguments).splitlines()]

    assert found("--no-follow") == ids
    assert found("--no-follow", "--from", "start", "--model", "n") == [ids[1]]
    assert found("--no-follow", "--state-dir", str(tmp_path / "state")) == ids
    assert found("--no-follow", "--from", "2012-03-02") == []
    assert found("--no-follow", "--arm", "stable") == ids and found("--no-follow", "--arm", "canary") == []
    assert "shadow" not in misused("predictions", "tail", "--no-follow", "--arm", "left")
    text = done("predictions", "tail", "--no-follow")
    assert f"{ids[0]}  m/1 stable  200  0.09 ms  y=[12.5]" in text
    assert "no start" in misused("predictions", "tail", "--no-follow", "--from", "monday")
    assert "holds no log" in failed("predictions", "tail", "--state-dir", str(tmp_path / "other"))


def test_a_time_that_is_none_is_bad_usage_where_a_gateway_runs_too(world: World) -> None:
    assert "no start" in misused("predictions", "tail", "--from", "yesterday")


def test_a_prediction_is_shown_when_no_gateway_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    (event_id,) = world.predict("m")
    world.close()
    monkeypatch.setenv("GATEWAY_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GATEWAY_STATE_DIR", str(tmp_path / "state"))
    assert "FP32 y=[12.5]" in done("predictions", "show", event_id)
    assert "is no event id" in failed("predictions", "show", "x")
    assert "holds no prediction" in failed("predictions", "show", "0196f0c5d2a100-0000000011")
    assert "holds no prediction" in failed("predictions", "show", event_id, "--state-dir", str(tmp_path))


def test_the_tail_warns_of_a_model_that_nobody_knows_and_goes_on(world: World, tmp_path: Path) -> None:
    world.serve(1)
    arguments = ("predictions", "tail", "--no-follow", "--json", "--model")
    assert done(*arguments, "m") == ""
    ids = world.predict("m", "nope")
    told = call(*arguments, "nope")
    assert (told.exit_code, json.loads(told.stdout)["id"]) == (0, ids[1])
    assert told.stderr == "gateway: there is no model 'nope' (yet); `gateway models list` shows those that there are\n"
    here = ("--state-dir", str(world.settings.state_dir))
    assert done(*arguments, "nope", *here) == told.stdout, "nobody can say where there are no models"
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert json.loads(done(*arguments, "m", *here))["id"] == ids[0]
    told_here = call(*arguments, "nope", *here)
    assert (told_here.exit_code, told_here.stdout) == (0, told.stdout)
    assert told_here.stderr == "gateway: there is no model 'nope' in models (yet)\n"


def test_the_tail_asks_the_gateway_that_runs(world: World) -> None:
    world.serve(1, model="n")
    ids = world.predict("m", "n")
    lines = done("predictions", "tail", "--no-follow", "--json", "--model", "n").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [ids[1]]


def test_a_prediction_is_shown_with_its_origin(world: World) -> None:
    world.serve(1)
    (event_id,) = world.predict("m", time="2999-01-01T00:00:00.000Z")
    text = done("predictions", "show", event_id)
    for expected in (event_id, "stable, canary at 10 %", "FP32 x=[1, 2.5]", "FP32 y=[12.5]", "abc123", "tests pass"):
        assert expected in text
    assert "{" not in text and "None" not in text and "null" not in text
    assert json.loads(done("predictions", "show", event_id, "--json"))["prediction"]["id"] == event_id


@pytest.mark.parametrize(
    ("arm", "reason", "told"),
    [
        ("stable", "stable", "stable, there was no canary"),
        ("pinned", "pinned", "pinned, the request named the version"),
        ("canary", "sticky", "canary, canary at 10 %, by its routing key"),
        ("stable", "weight", "stable, canary at 10 %, drawn"),
    ],
)
def test_a_prediction_tells_why_its_version_was_chosen(arm: Arm, reason: str, told: str) -> None:
    assert arm_text(arm, reason, weight=10.0 if "canary at" in told else 0.0) == told


def test_tampering_is_exit_code_1(world: World) -> None:
    world.serve(1)
    database = sqlite3.connect(world.settings.state_dir / "store.db")
    database.execute("DROP TRIGGER decisions_refuse_update")
    database.execute("UPDATE decisions SET actor = 'eve' WHERE seq = 2")
    database.commit()
    database.close()
    assert "decision 2 is not as it was written" in failed("audit", "verify")
    result = call("audit", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["first_bad"]) == (1, 2)


def test_a_version_that_no_decision_approved_is_exit_code_1(world: World) -> None:
    world.serve(1)
    database = sqlite3.connect(world.settings.state_dir / "store.db")
    database.execute("INSERT INTO versions VALUES ('m', 2, 'sha256:2', 'approved')")
    database.commit()
    database.close()
    assert "version m/2 is in the store, but no decision put it there" in failed("audit", "verify")
    assert call("audit", "verify", "--json").exit_code == 1


STATUS: dict[str, Any] = {
    "time": 1.0,
    "models": {
        "m": {
            "route": {"stable": 1, "canary": 2, "weight": 10.0},
            "rollout": None,
            "versions": {
                "1": {
                    "line": 12.0,
                    "evidence": {"inputs": 6.0, "quality": -1.0},
                    "features": {"temp": {"evidence": 6.0, "share": 0.5}, "hour": {"evidence": 0.0, "share": 0.0}},
                    "quality": {"rows": 100, "misses": 7, "miss_rate": 0.07, "mean_loss": 41.5, "miss_above": 90.0},
                    "profile": True,
                    "skipped_tensors": 0,
                }
            },
            "trial": {
                "number": 1,
                "stable": 1,
                "canary": 2,
                "began": "2012-03-01T00:00:00Z",
                "verdict": {
                    "kind": "hold",
                    "reason": "not enough has been seen",
                    "needs": "about 300 more misses on both arms together",
                },
                "readings": [
                    {
                        "metric": "quality",
                        "direction": "good",
                        "log_evidence": 1.5,
                        "threshold": 3.0,
                        "action": "promote",
                        "stable": 12,
                        "canary": 3,
                    }
                ],
            },
            "alarms": [
                {
                    "model": "m",
                    "version": 1,
                    "detector": "inputs",
                    "tier": "page",
                    "action": "alert",
                    "evidence": 13.0,
                    "threshold": 12.0,
                    "features": {"temp": 13.0},
                    "since": "2012-03-05T00:00:00Z",
                    "until": "2012-04-01T00:00:00Z",
                    "rows": 500,
                    "callers": 20,
                }
            ],
            "feedback": {"joined": 97, "repeated": 0, "corrected": 2, "orphan": 0, "invalid": 3},
            "notes": ["model.toml of m is [gone]"],
        }
    },
}


def test_drift_shows_evidence_trial_and_alarms(world: World) -> None:
    status = world.settings.state_dir / "monitor" / "status.json"
    status.parent.mkdir()
    status.write_text(json.dumps(STATUS))
    text = done("drift", "status")
    assert text == done("drift", "status", "m")
    for expected in (
        "inputs 50%, quality 0%",
        "temp",
        "0.07",
        "41.5",
        "promote",
        "hold: not enough has been seen; needs about 300 more misses",
        "2012-03-05",
        "[gone]",
        "labels: 97 joined, 2 corrected, 3 invalid",
        "versions: evidence of drift as a share of where it alarms",
        "trial of version 2: evidence in natural logarithms",
        "alarms, the newest first",
        "asks for",
    ):
        assert expected in text, text
    assert json.loads(done("drift", "status", "--json")) == STATUS


def test_evidence_fits_into_80_columns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.screen._PIPE_WIDTH", 80)
    status = copy.deepcopy(STATUS)
    seen = status["models"]["m"]
    for count, reading in enumerate(Judge(Plan()).readings()):
        seen["trial"]["readings"].append(msgspec.to_builtins(reading) | {"stable": 12_345 + count, "canary": 1_234})
    path = world.settings.state_dir / "monitor" / "status.json"
    path.parent.mkdir()
    path.write_text(json.dumps(status))
    lines = [" ".join(line.split()) for line in done("drift", "status").splitlines()]
    assert "inputs_out_of_range harm 0 4.605 12347 1234 rollback" in lines, lines
    assert "1 inputs page 2012-03-05T00:00:00Z temp alert" in lines, lines


def test_the_audit_list_puts_texts_below_each_decision_where_columns_are_few(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.screen._PIPE_WIDTH", 80)
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="eve\x0a", reason="[bold]why[/bold]")
    world.store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="a reason of many words " * 9)
    text = "\n".join(line.rstrip() for line in done("audit", "list").splitlines())
    assert "  route_set  eve\n    stable 1\n    [bold]why[/bold]\n" in text
    assert "\n    stable 1 -> stable 1, canary 2 at 5 %\n    a reason of many words" in text
    assert max(map(len, text.splitlines())) <= 80


def test_watch_follows_a_rollout_to_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    world.store.start_rollout("m", 2, plan={"steps": [5, 50]}, actor="ada", reason="")
    rollout = world.store.rollouts("m")[0].id
    moves: Iterator[Any] = iter(("advance", "rollback"))
    monkeypatch.setattr(
        "gateway.cli.rollout.time.sleep",
        lambda seconds: world.store.move_rollout(rollout, next(moves), actor="judge", reason="it errs"),
    )
    status = world.settings.state_dir / "monitor" / "status.json"
    status.parent.mkdir()
    status.write_text(json.dumps(STATUS))
    text = done("rollout", "watch", "m")
    assert "rolled back" in text and "\nrollback by judge, 20" in text and text.endswith(": it errs\n")
    assert "quality" not in text, "what the monitor wrote last need not be of this rollout"
    assert next(moves, None) is None


ID = "0196f0c5d2a100-0000000001"


class Taking(httpx2.BaseTransport):
    """An inference port that takes labels."""

    def __init__(self, status: int = 200) -> None:
        self.taken: list[Any] = []
        self.status = status

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.read())
        self.taken += body["feedback"] if "feedback" in body else [body]
        assert request.url.path == "/v2/models/m/feedback"
        return httpx2.Response(self.status, json={"accepted": 1} if self.status == 200 else {"error": "no such model"})


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Taking]:
    def listening(status: int) -> Taking:
        taking = Taking(status)
        real = httpx2.Client
        monkeypatch.setattr(httpx2, "Client", lambda **settings: real(transport=taking))
        return taking

    return listening


def test_a_label_is_sent(labels: Callable[[int], Taking]) -> None:
    taking = labels(200)
    assert done("feedback", "send", "m", ID, "--row", 2, "--label", 12.5) == "1 label taken\n"
    assert taking.taken == [{"prediction_id": ID, "row": 2, "label": 12.5}]


def test_the_labels_of_a_file_are_sent(labels: Callable[[int], Taking], tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prediction_id", "row", "label"])
        writer.writerows([format_id(ID[:14], number), number % 3, number / 2] for number in range(1203))
    taking = labels(200)
    assert done("feedback", "send", "m", "--file", path) == "1203 labels taken\n"
    assert len(taking.taken) == 1203
    assert taking.taken[7] == {"prediction_id": format_id(ID[:14], 7), "row": 1, "label": 3.5}


def test_the_labels_of_a_file_that_a_spreadsheet_wrote_are_sent(
    labels: Callable[[int], Taking], tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    prediction_id = format_id(ID[:14], 1)
    path.write_text(f"prediction_id,label\r\n{prediction_id},2.5\r\n", encoding="utf-8-sig")
    taking = labels(200)
    assert done("feedback", "send", "m", "--file", path) == "1 label taken\n"
    assert taking.taken == [{"prediction_id": prediction_id, "row": 0, "label": 2.5}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"prediction_id,row\n{ID},0\n", "expected prediction_id, row, label"),
        (f"prediction_id,row,label\n{ID},0,1\n{ID},x,1\n", "line 3: expected a whole row"),
        (f"prediction_id,row,label\n{ID},0,1\n\np-1,0,1\n", "line 4: 'p-1' is no event id"),
        (f"prediction_id,row,label\n{ID},0\n", "line 2: expected a whole row"),
        (f"prediction_id,row,label\n{ID},-1,1\n", "line 2: expected a whole row"),
        (f"prediction_id,row,label\n{ID},0,nan\n", "line 2: expected a whole row"),
        ("", "has the columns"),
    ],
)
def test_a_file_of_another_form_is_refused(
    labels: Callable[[int], Taking], tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    labels(200)
    assert why in failed("feedback", "send", "m", "--file", path)
    none = tmp_path / "none.csv"
    said = failed("feedback", "send", "m", "--file", none)
    assert said == f"gateway: cannot read {none}: No such file or directory\n"


def test_labels_that_are_refused_are_exit_code_1(labels: Callable[[int], Taking]) -> None:
    labels(404)
    said = failed("feedback", "send", "m", ID, "--label", 1)
    assert said == "gateway: 0 labels taken, then refused: no such model\n"
