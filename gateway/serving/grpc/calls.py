"""The calls beside inference: health, metadata, configuration, statistics, repository, log settings.

What they answer is made by the functions that answer over HTTP, as JSON objects, whose members have the names of the
messages' fields.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict

from gateway import __version__
from gateway.engine.wire import Hello
from gateway.protocol.errors import EngineUnavailable, UnknownModel
from gateway.serving.front import Front
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.call import Handler
from gateway.serving.grpc.head import CallHead
from gateway.serving.grpc.inference import shown_name
from gateway.serving.inference import path_pin
from gateway.serving.logging_settings import LOGGING, keep_logging
from gateway.serving.model_config import model_config
from gateway.serving.repository_calls import RepositoryCalls, authorize
from gateway.serving.statistics import read_statistics
from gateway.serving.version import ServedVersion
from gateway.serving.web import SERVER_EXTENSIONS

__all__ = ("OtherCalls",)


class OtherCalls:
    """Every call of the service that is no inference.

    Parameters
    ----------
    front : Front
    repository : RepositoryCalls
    """

    def __init__(self, front: Front, repository: RepositoryCalls) -> None:
        self._front = front
        self._repository = repository

    def table(self) -> dict[str, tuple[Any, Handler]]:
        """Name of each call to the message it takes and what answers it."""
        return {
            "ServerLive": (messages.ServerLiveRequest, self._server_live),
            "ServerReady": (messages.ServerReadyRequest, self._server_ready),
            "ModelReady": (messages.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (messages.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (messages.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (messages.ModelConfigRequest, self._model_config),
            "ModelStatistics": (messages.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (messages.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": (messages.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (messages.RepositoryModelUnloadRequest, self._unload),
            "LogSettings": (messages.LogSettingsRequest, self._log_settings),
        }

    async def _server_live(self, message: Any, head: CallHead) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def _server_ready(self, message: Any, head: CallHead) -> Any:
        return messages.ServerReadyResponse(ready=self._front.not_ready is None)

    async def _model_ready(self, message: Any, head: CallHead) -> Any:
        try:
            ready = self._version(message).lane.ready
        except UnknownModel:
            ready = False  # as with Triton: the question has an answer
        return messages.ModelReadyResponse(ready=ready)

    async def _server_metadata(self, message: Any, head: CallHead) -> Any:
        return messages.ServerMetadataResponse(
            name=self._front.settings.server.name, version=__version__, extensions=SERVER_EXTENSIONS
        )

    async def _model_metadata(self, message: Any, head: CallHead) -> Any:
        served = self._version(message)
        _hello(served)
        versions = [str(version) for version in self._versions(served.model)]
        metadata = served.metadata(versions)
        return ParseDict(metadata, messages.ModelMetadataResponse(), ignore_unknown_fields=True)

    async def _model_config(self, message: Any, head: CallHead) -> Any:
        served = self._version(message)
        config = model_config(served.model, self._versions(served.model), _hello(served))
        return ParseDict({"config": config}, messages.ModelConfigResponse())

    async def _model_statistics(self, message: Any, head: CallHead) -> Any:
        versions = list(self._front.versions)
        if message.name:
            served = self._version(message)
            wanted = [served.version] if message.version else self._versions(served.model)
            versions = [(served.model, version) for version in wanted]
        statistics = await asyncio.to_thread(read_statistics, self._front.cells.path.parent, versions)
        return ParseDict(statistics, messages.ModelStatisticsResponse())

    async def _index(self, message: Any, head: CallHead) -> Any:
        body = json.dumps({"ready": message.ready}).encode()
        models = await self._repository.index(body, repository=message.repository_name)
        return ParseDict({"models": models}, messages.RepositoryIndexResponse())

    async def _load(self, message: Any, head: CallHead) -> Any:
        self._authorize(head)
        body = _parameters_body(message.parameters)
        await self._repository.load(shown_name(message.model_name), body, repository=message.repository_name)
        return messages.RepositoryModelLoadResponse()

    async def _unload(self, message: Any, head: CallHead) -> Any:
        self._authorize(head)
        body = _parameters_body(message.parameters)
        await self._repository.unload(shown_name(message.model_name), body, repository=message.repository_name)
        return messages.RepositoryModelUnloadResponse()

    async def _log_settings(self, message: Any, head: CallHead) -> Any:
        settings = LOGGING
        if message.settings:
            self._authorize(head)
            settings = keep_logging(json.dumps(_values(message.settings)).encode())
        response = messages.LogSettingsResponse()
        for name, value in settings.items():
            kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
            setattr(response.settings[name], kind, value)
        return response

    def _authorize(self, head: CallHead) -> None:
        given = [value.decode("latin-1") for name, value in head.metadata if name == b"authorization"]
        authorize(given, self._front.settings.admin.token)

    def _version(self, message: Any) -> ServedVersion:
        name = shown_name(message.name)
        return self._front.version(name, path_pin(name, message.version.encode()) if message.version else None)

    def _versions(self, model: str) -> list[int]:
        return sorted(version for name, version in self._front.versions if name == model)


def _hello(served: ServedVersion) -> Hello:
    hello = served.lane.hello
    if hello is None:
        raise EngineUnavailable(served.unready)
    return hello


def _parameters_body(parameters: Mapping[str, Any]) -> bytes:
    return json.dumps({"parameters": _values(parameters)}).encode()


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, choice) if choice else ""
        # The content of a file is refused by its name, so it need not be passed on.
        values[name] = f"{len(value)} bytes" if isinstance(value, bytes) else value
    return values
