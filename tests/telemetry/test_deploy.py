"""The deployment files have the shape their readers expect. They are not run here: that needs a container engine."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings
from tests.prometheus import missing

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"


def yaml_file(path: Path) -> Any:
    if importlib.util.find_spec("yaml") is None:
        missing("PyYAML is not installed (dependency group test)")
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_compose_names_its_services_and_every_one_has_a_health_check():
    services = yaml_file(COMPOSE)["services"]
    assert set(services) == {"gateway", "kafka", "prometheus", "grafana"}
    for name, service in services.items():
        assert name == "gateway" or service["healthcheck"]["test"][0] == "CMD", name
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_every_file_that_compose_mounts_is_there():
    for service in yaml_file(COMPOSE)["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), mount


def test_every_volume_is_declared():
    compose = yaml_file(COMPOSE)
    used = {mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", [])}
    assert {source for source in used if not source.startswith(".")} == set(compose["volumes"])


def test_the_admin_token_must_be_set_and_is_not_in_the_file():
    token = yaml_file(COMPOSE)["services"]["gateway"]["environment"]["GATEWAY_ADMIN__TOKEN"]
    assert re.fullmatch(r"\$\{GATEWAY_ADMIN__TOKEN:\?[^}]+\}", token)


def test_only_inference_listens_beyond_loopback():
    for name, service in yaml_file(COMPOSE)["services"].items():
        for port in service.get("ports", []):
            inference = name == "gateway" and port in ("8000:8000", "8001:8001")
            assert inference or port.startswith("127.0.0.1:"), (name, port)


@pytest.mark.parametrize("path", [COMPOSE, ROOT / "Dockerfile"], ids=lambda path: path.name)
def test_every_setting_that_is_passed_exists(path, monkeypatch):
    found = re.findall(r"\b(GATEWAY_[A-Z_]+[A-Z])\b", path.read_text())
    assert found
    for variable in found:
        section, _, name = variable.removeprefix("GATEWAY_").lower().partition("__")
        field = Settings.model_fields[section]
        assert not name or name in field.annotation.model_fields, variable


def test_prometheus_scrapes_the_metrics_port_of_the_gateway_and_reads_the_mounted_rules():
    config = yaml_file(ROOT / "grafana" / "prometheus.yml")
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["gateway:8002"]}]
    mounts = yaml_file(COMPOSE)["services"]["prometheus"]["volumes"]
    assert f"../grafana/{config['rule_files'][0]}:/etc/prometheus/{config['rule_files'][0]}:ro" in mounts


def test_grafana_finds_its_datasource_and_its_dashboards():
    (datasource,) = yaml_file(ROOT / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert datasource["url"] == "http://prometheus:9090"
    (provider,) = yaml_file(ROOT / "grafana" / "provisioning" / "dashboards" / "gateway.yml")["providers"]
    mounts = yaml_file(COMPOSE)["services"]["grafana"]["volumes"]
    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_image_runs_as_a_user_of_its_own_and_installs_by_hash():
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER gateway$", dockerfile, re.M)
    assert "--require-hashes -r requirements.lock" in dockerfile
    last = dockerfile.rsplit("\nFROM ", 1)[1]
    assert "pip install" not in last and "curl" not in last


def test_everything_the_image_copies_is_let_into_the_build():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {name.removeprefix("./") for line in copied for name in line.split()} == allowed
