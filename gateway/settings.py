"""One settings tree: `gateway.toml`, then the environment (`GATEWAY_KAFKA__BOOTSTRAP_SERVERS`), read once.

An unknown key or a wrong value stops the start with the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

__all__ = (
    "AdminSettings",
    "EngineSettings",
    "KafkaSettings",
    "LimitSettings",
    "LogSettings",
    "MonitorSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "SpoolSettings",
    "StoreSettings",
    "load_settings",
)


class SettingsError(Exception):
    """Raised when a setting is unknown or has a value that is not allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Section):
    name: str = Field("gateway", description="Server name in `GET /v2`; records have it with six hex digits.")
    host: str = Field("127.0.0.1", description="Address the inference port listens on.")
    http_port: int = Field(8000, ge=0, le=65535, description="Inference over HTTP; 0 picks a free port.")
    grpc: bool = Field(True, description="Inference over gRPC too.")
    grpc_port: int = Field(8001, ge=0, le=65535, description="Inference over gRPC; 0 picks a free port.")
    metrics_port: int = Field(8002, ge=0, le=65535, description="`/metrics` of all processes.")
    admin_port: int = Field(8003, ge=0, le=65535, description="Admin API.")
    fronts: int = Field(2, ge=1, le=64, description="Front processes that share the inference port.")
    drain_timeout_seconds: float = Field(30.0, gt=0, description="Budget of a clean stop after SIGTERM.")
    drain_delay_seconds: float = Field(0.0, ge=0, description="Wait after turning not ready, for load balancers.")


class LimitSettings(_Section):
    max_head_bytes: int = Field(
        16 * 2**10, ge=1024, le=2**20, description="Request line and headers. node, h11: 16 KiB."
    )
    max_head_fields: int = Field(100, ge=8, le=10_000, description="Headers of one request. Apache: 100.")
    max_target_bytes: int = Field(4096, ge=256, description="Path and query. nginx: 8 KiB with the whole line.")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body. Triton: 64 MiB.")
    max_held_body_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="Bodies above 64 KiB that one front holds at a time: coming in, or unanswered.",
    )
    max_held_answer_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="Answers that one front holds at a time: large ones being written, and what clients do not take.",
    )
    max_chunks: int = Field(65_536, ge=1, description="Chunks of one request body. Triton: 65 536.")
    max_chunk_overhead_bytes: int = Field(
        16 * 2**10, ge=1024, description="Chunk extensions and trailers of one body. Go, node: 16 KiB."
    )
    max_json_depth: int = Field(100, ge=8, le=1000, description="Nesting of a request in JSON. Triton: 100.")
    max_json_elements: int = Field(4_000_000, ge=1, description="Elements of one input in JSON.")
    max_tensors: int = Field(64, ge=1, description="Inputs, and requested outputs, of one request.")
    max_rank: int = Field(8, ge=1, le=32, description="Axes of a tensor.")
    max_dimension: int = Field(2**31 - 1, ge=1, le=2**31 - 1, description="Length of one axis of a tensor.")
    max_elements: int = Field(2**26, ge=1, le=2**31 - 1, description="Elements of a tensor; empty axes count as one.")
    max_id_length: int = Field(128, ge=1, le=1024, description="Characters of a request's `id`.")
    max_pipelined: int = Field(64, ge=1, description="Requests one connection may send before it is answered.")
    max_queue_requests: int = Field(4096, ge=1, description="Requests waiting for one version in one front.")
    max_queue_bytes: int = Field(
        64 * 2**20, ge=1024, description="Bodies of the requests waiting for one version in one front."
    )
    max_queue_wait_ms: int = Field(
        2000,
        ge=1,
        description="A request is refused when what waits before it, for its version or to be read beside the loop, "
        "takes longer than this.",
    )
    max_connections: int = Field(1024, ge=1, description="Open connections of one front.")
    request_timeout_ms: int = Field(10_000, ge=1, description="Deadline of a request; a client may ask for less.")
    head_timeout_seconds: float = Field(5.0, gt=0, description="Time to send a request's head.")
    body_timeout_seconds: float = Field(30.0, gt=0, description="Time to send a request's body.")
    body_grace_seconds: float = Field(5.0, ge=0, description="From then on a body must keep `min_bytes_per_second`.")
    min_bytes_per_second: int = Field(
        1024, ge=0, description="Slowest client, on average: its body sent, its answers taken. Apache: 500."
    )
    write_timeout_seconds: float = Field(30.0, gt=0, description="Over which a client must take its answers.")
    keep_alive_seconds: float = Field(75.0, gt=0, description="Idle time before a connection is closed. nginx: 75.")


class EngineSettings(_Section):
    threads: int = Field(
        1,
        ge=0,
        le=256,
        description="onnxruntime's intra-op threads of one engine; 0: as many as there are cores by affinity and by "
        "the quota of the control groups, beyond which it never goes.",
    )
    instances: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes of one engine, among which fronts are divided; the model's weights are in memory once. "
        "0: as many as cores may be used. There are no more than fronts, and a model on several threads or on another "
        "provider than the CPU has one.",
    )
    start_timeout_seconds: float = Field(30.0, gt=0, description="Time to load and warm up a version.")
    hang_seconds: float = Field(
        10.0,
        gt=0,
        description="A run is stopped at its deadline, and after this at the latest; an engine that has not moved "
        "for a second more is killed and replaced.",
    )
    max_resident_bytes: int = Field(
        2**30,
        ge=2**27,
        description="Memory of an engine, or of each of its instances: a run that would take it beyond fails, a model "
        "that needs more to be loaded is not served, and an engine that got beyond all the same is replaced.",
    )
    max_output_bytes: int = Field(
        2**26,
        ge=2**16,
        le=2**31,
        description="Tensors that one run may give; a request whose outputs take more fails.",
    )
    crash_limit: int = Field(5, ge=1, description="Crashes within `crash_window_seconds` that open the circuit.")
    crash_window_seconds: float = Field(60.0, gt=0)
    frames_in_flight: int = Field(2, ge=1, le=16, description="Batches one front may have in one engine.")
    max_batch_bytes: int = Field(
        4 * 2**20, ge=1024, description="Requests go together up to this size; a larger one goes alone."
    )
    max_batch_ms: int = Field(
        100, ge=1, description="Requests go together as long as their run is expected to take no longer."
    )
    shared_memory_bytes: int = Field(
        2**26,
        ge=0,
        le=2**40,
        description="Shared memory of one front, in which large tensors lie while they are asked about; 0 for none. By "
        "default it holds a hundred images of 600 KB; what finds no room in it is received and sent as before.",
    )


class SpoolSettings(_Section):
    segment_bytes: int = Field(
        16 * 2**20, ge=4096, description="A segment file is closed at this size, or at 1/32 of `max_bytes`."
    )
    max_bytes: int = Field(4 * 2**30, ge=2**20, description="Size of the whole spool.")
    max_age_hours: float = Field(24.0 * 7, gt=0, description="Older segments are removed (after shipping, with Kafka).")
    fsync: Literal["always", "interval", "never"] = Field("never", description="kill -9 loses nothing in any mode.")
    fsync_interval_seconds: float = Field(
        1.0, gt=0, description='Between two syncs with "interval"; a disk that refused is tried again so often.'
    )
    max_waiting_answers: int = Field(
        4096, ge=1, description='Answers of one front that may wait for the disk with fsync = "always"; then 503.'
    )
    full: Literal["block", "drop"] = Field("block", description="When no space is left: refuse predictions, or drop.")
    archive_url: str = Field(
        "", description="Folder or fsspec URL; segments go there as Parquet before they are removed. Empty: nowhere."
    )
    archive_max_age_days: float = Field(0.0, ge=0, description="Older archives are removed; 0: never.")


class LogSettings(_Section):
    json_lines: bool = Field(False, description="Process log as JSON lines instead of text.")
    max_tensor_bytes: int = Field(65_536, ge=0, description="Larger tensors become digest and summary.")
    tensor_digests: bool = Field(
        True,
        description="Larger tensors have a digest (BLAKE3), which tells later whether given bytes are those that were "
        "sent; false: only a summary, and more requests with large tensors in binary.",
    )


class KafkaSettings(_Section):
    bootstrap_servers: str = Field("", description="host:port,... ; empty: the spool is the log.")
    topic_prefix: str = Field("gateway", pattern=r"^[A-Za-z0-9._-]+$")
    acks: Literal["all", "1"] = "all"
    idempotence: bool = True
    compression: Literal["zstd", "lz4", "gzip", "none"] = "zstd"
    request_timeout_ms: int = Field(10_000, ge=100)
    batch_bytes: int = Field(256 * 1024, ge=1024, le=900 * 1024)
    create_topics: bool = Field(True, description="Create missing topics at start.")
    partitions: int = Field(3, ge=1, description="Of a topic created here; a model stays in one of them.")
    replication_factor: int = Field(1, ge=1, description="Of a topic created here; from 3 on, two must acknowledge.")
    retention_hours: float = Field(
        24.0 * 7, gt=0, description="Of topics created here; decisions stay for ever. Kafka: 168 hours."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str = Field("", description="Needed with SASL_PLAINTEXT and SASL_SSL.")
    sasl_password: str = ""
    ssl_cafile: str = Field("", description="PEM file of who signed the brokers' certificates; empty: the system's.")
    ssl_check_hostname: bool = Field(True, description="The brokers' certificates must name their hosts.")
    ssl_certfile: str = Field("", description="PEM file of our own certificate, for brokers that ask for one.")
    ssl_keyfile: str = Field("", description="PEM file of its key; empty: the key is in `ssl_certfile`.")
    ssl_key_password: str = Field("", description="Where the key is encrypted.")

    @field_validator("bootstrap_servers")
    @classmethod
    def _are_addresses(cls, servers: str) -> str:
        for server in map(str.strip, servers.split(",") if servers else ()):
            host, _, port = server.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                raise ValueError(f"{server!r} is no host:port")
        return servers

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f'security_protocol = "{self.security_protocol}" logs in: sasl_username and sasl_password are needed'
            )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile is the key of ssl_certfile, which is not set")
        return self


class MonitorSettings(_Section):
    source: Literal["auto", "spool", "kafka"] = Field("auto", description="auto: Kafka where it is configured.")
    group: str = Field("gateway-monitor", description="Kafka consumer group.")
    flush_seconds: float = Field(0.25, gt=0, description="Time between two looks at the evidence.")
    checkpoint_seconds: float = Field(5.0, gt=0)
    join_predictions: int = Field(200_000, ge=1, description="Predictions kept in memory for labels to come.")


class StoreSettings(_Section):
    url: str = Field("", description="SQLAlchemy URL; empty: SQLite under the state directory.")
    poll_seconds: float = Field(0.2, gt=0, le=0.5, description="How often fronts ask for a new revision.")


class AdminSettings(_Section):
    host: str = Field("127.0.0.1", description="Address of the admin and metrics ports.")
    token: str = Field("", description="Bearer token; needed to listen beyond loopback.")


class Settings(BaseSettings):
    """Everything that can be set, by section."""

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    models: Path = Field(Path("models"), description="Model folders.")
    state_dir: Path = Field(Path(".gateway"), description="Spool, store, sockets.")
    server: ServerSettings = ServerSettings()  # type: ignore[call-arg]
    limits: LimitSettings = LimitSettings()  # type: ignore[call-arg]
    engine: EngineSettings = EngineSettings()  # type: ignore[call-arg]
    spool: SpoolSettings = SpoolSettings()  # type: ignore[call-arg]
    log: LogSettings = LogSettings()  # type: ignore[call-arg]
    kafka: KafkaSettings = KafkaSettings()  # type: ignore[call-arg]
    monitor: MonitorSettings = MonitorSettings()  # type: ignore[call-arg]
    store: StoreSettings = StoreSettings()  # type: ignore[call-arg]
    admin: AdminSettings = AdminSettings()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _has_its_log(self) -> Self:
        if self.monitor.source == "kafka" and not self.kafka.bootstrap_servers:
            raise ValueError("monitor.source = 'kafka', but kafka.bootstrap_servers is empty")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment is read once, by `load_settings`; a tree that was resolved is never changed again by it.
        return (init_settings,)

    @property
    def run_dir(self) -> Path:
        """Sockets, metric files and notes of the running processes."""
        return self.state_dir / "run"

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    @property
    def store_url(self) -> str:
        return self.store.url or f"sqlite:///{self.state_dir / 'store.db'}"


_NOT_SETTINGS = ("GATEWAY_URL", "GATEWAY_TOKEN", "GATEWAY_TEST_")
"""What these begin belongs to the command line and to the tests."""


def load_settings(config: Path | None = None, *, overrides: dict[str, Any] | None = None) -> Settings:
    """Read the settings: defaults, then `config` (or `gateway.toml` here, if there is one), environment, `overrides`.

    Parameters
    ----------
    config : Path, optional
        A TOML file that must exist when given.
    overrides : dict, optional
        Sections to merge on top of all, as the command line's flags give them.

    Raises
    ------
    SettingsError
        With the key, the value and what is allowed.
    """
    path = config or Path("gateway.toml")
    file = _read_toml(path) if config is not None or path.exists() else {}
    known = {f"GATEWAY_{name.upper()}" for name in Settings.model_fields}
    for name in os.environ:
        if name.startswith("GATEWAY_") and not name.startswith(_NOT_SETTINGS) and name.split("__")[0] not in known:
            near = difflib.get_close_matches(name, map(_variable, _every_key()), n=1, cutoff=0.8)
            allowed = f"nearest: {near[0]}" if near else f"sections are {', '.join(sorted(known))}"
            raise SettingsError(f"environment variable {name} is no setting; {allowed}")
    try:
        tree = _merge(file, EnvSettingsSource(Settings)())
        return Settings(**_merge(tree, overrides or {}))
    except ValidationError as error:
        raise SettingsError(_explain(error, file, path)) from None
    except PydanticSettingsError as error:
        raise SettingsError(f"the environment cannot be read: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def _explain(error: ValidationError, file: dict[str, Any], path: Path) -> str:
    lines = []
    for fault in error.errors():
        key, text = ".".join(str(part) for part in fault["loc"]), fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            whence, near = _whence(key, file, path), ", ".join(_nearest(key))
            lines.append(f"{key}: no such setting{whence}" + (f"; nearest: {near}" if near else ""))
        elif isinstance(fault["input"], dict | BaseModel):
            # A whole section, which may hold secrets.
            lines.append(f"{key}: {text}" if key else text)
        else:
            lines.append(f"{key} = {fault['input']!r}: {text}")
    return "; ".join(lines)


def _whence(key: str, file: Any, path: Path) -> str:
    for part in key.split("."):
        file = file.get(part) if isinstance(file, dict) else None
    if file is not None:
        return f" (in {path})"
    variable = _variable(key)
    for name in os.environ:
        if f"{name.upper()}__".startswith(f"{variable}__"):
            return f" (in the environment: {name})"
    return ""


def _variable(key: str) -> str:
    return f"GATEWAY_{key.upper().replace('.', '__')}"


def _every_key() -> list[str]:
    """All sections, then all settings."""
    keys = list(Settings.model_fields)
    for top, field in Settings.model_fields.items():
        keys += [f"{top}.{each}" for each in getattr(field.annotation, "model_fields", ())]
    return keys


def _nearest(key: str) -> list[str]:
    """Settings with a name like this one: of its section, or else of any."""
    section, _, name = key.rpartition(".")
    every = [(full, full.rpartition(".")[2]) for full in _every_key()]
    own = {each: full for full, each in every if full.rpartition(".")[0] == section}
    for known in (own, {each: full for full, each in reversed(every)}):
        if near := difflib.get_close_matches(name, known):
            return [known[each] for each in near]
    return []
