"""`model.toml`: what it may say, and what is said when it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.repository.policy import ModelPolicy, PolicyError, load_policy


def test_a_model_without_the_file_has_the_default_policy(tmp_path: Path) -> None:
    assert load_policy(tmp_path) == ModelPolicy()


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('[quality]\noutput = "count"\n[route]\nstable = 2\n')
    policy = load_policy(tmp_path)
    assert (policy.quality.output, policy.quality.loss, policy.route.stable) == ("count", "absolute_error", 2)
    assert policy.drift == ModelPolicy().drift


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[route", "model.toml"),
        ("[rout]\n", "rout: no such key; expected one of description, approvals, route, "),
        ("[route]\nweight = 101\n", "route.weight: expected a number from 0 to 100"),
        ("[drift]\ninputs = 'page'\n", "drift.inputs = 'page': expected one of alert, pause, retrain, rollback"),
        ("[quality]\nmiss_above = 'few'\n", "quality.miss_above: expected a number"),
        ("[rollout]\nsteps = [50, 10]\n", "weights that rise"),
        ("[rollout]\nsteps = [10, 50, 100]\n", "below 100"),
        ("[rollout]\nsteps = [0, 50]\n", "above 0"),
        ("[rollout]\nsteps = []\n", "there are 0 steps"),
        (f"[rollout]\nsteps = {list(range(1, 34))}\n", "there are 33 steps"),
        ("[rollout]\nrequire = []\n", "at least one of"),
        ("[rollout]\nharm_ratio = inf\n", "harm_ratio = inf: expected a finite number"),
        ("[rollout]\nmax_hours = inf\n", "max_hours = inf"),
        ("[drift]\nfalse_alarm_days = inf\n", "false_alarm_days"),
        ("[drift]\nfalse_alarm_days = 1e308\n", "false_alarm_days"),
        ("[drift]\ntolerance = inf\n", "drift.tolerance = inf: expected a finite number"),
        ("[quality]\nmiss_above = nan\n", "quality.miss_above = nan: expected a finite number"),
        ("[[detectors]]\nname = 'ADWIN'\nparameters = {delta = inf}\n", r"detectors\[0\].parameters.delta = inf"),
        ("[[detectors]]\nname = 'ADVIN'\n", r"detectors\[0\]: 'ADVIN' is no drift detector here; expected one"),
        ("[[detectors]]\nname = 'DDM'\n[[detectors]]\nname = ''\n", r"detectors\[1\]: '' is no drift detector"),
        ("[[detectors]]\nname = 'ADWIN'\nparameters = {clock = 0}\n", "cannot take clock = 0.0; expected a whole"),
        ("[[detectors]]\nname = 'ADWIN'\nparameters = {speed = 1}\n", "no parameter 'speed'; expected one of: delta, "),
        ("[approvals]\n01 = 'sha256:0'\n", "expected a version"),
        ("[approvals]\n1 = 'sha256:0'\n", "expected a version and 'sha256:<64 hex>'"),
    ],
)
def test_a_key_or_value_that_is_not_allowed_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(PolicyError, match=reason):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    "content", [b"\xff", b"description = '\xff'", b"a = " + b"[" * 5000, b"[quality]\nmiss_above = " + b"9" * 5000]
)
def test_a_file_that_is_no_toml_at_all_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.toml").write_bytes(content)
    with pytest.raises(PolicyError, match=r"model\.toml: "):
        load_policy(tmp_path)
