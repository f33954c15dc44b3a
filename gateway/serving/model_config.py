"""The model configuration extension: a version as Triton's ModelConfig would put it.

Source: Triton's `model_config.proto`, of which the fields that have a meaning here are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.engine.job import DEFAULT_PRIORITY, LOWEST_PRIORITY
from gateway.engine.wire import Hello
from gateway.protocol.datatypes import FREE, TensorSpec

__all__ = ("model_config",)


def model_config(model: str, versions: Sequence[int], hello: Hello) -> dict[str, Any]:
    """The configuration of a model.

    Parameters
    ----------
    versions : sequence of int
        Those that may be served.
    hello : Hello
        The greeting of the engine that runs the version asked for.

    >>> from gateway.protocol.datatypes import Signature
    >>> signature = Signature((TensorSpec("text", "BYTES", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))
    >>> config = model_config("m", [1], Hello(signature=signature, pid=1, batchable=True, max_rows=256))
    >>> config["max_batch_size"], config["input"][0]["data_type"], config["input"][0]["dims"]
    (256, 'TYPE_STRING', [2])
    >>> alone = model_config("m", [1], Hello(signature=signature, pid=1, batching="dependent: output 'y' changes"))
    >>> alone["max_batch_size"], alone["parameters"]["batching"]["string_value"]
    (0, "requests are run one by one; dependent: output 'y' changes")
    """
    signature = hello.signature
    specs = (*signature.inputs, *signature.outputs)
    # A first axis that is no batch is an axis like any other: Triton says so by max_batch_size 0.
    batched = hello.batchable and all(spec.shape[:1] == (FREE,) for spec in specs)
    config: dict[str, Any] = {
        "name": model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": hello.max_rows if batched else 0,
        "input": [_tensor(spec, batched) for spec in signature.inputs],
        "output": [_tensor(spec, batched) for spec in signature.outputs],
        "instance_group": [{"name": f"{model}_0", "kind": "KIND_CPU", "count": 1, "gpus": []}],
        "default_model_filename": "model.onnx",
        "parameters": {},
    }
    if hello.batching:
        how = "put together" if hello.batchable else "run one by one"
        config["parameters"] = {"batching": {"string_value": f"requests are {how}; {hello.batching}"}}
    if batched:
        config["dynamic_batching"] = {
            "max_queue_delay_microseconds": hello.max_delay_us,
            "priority_levels": LOWEST_PRIORITY,
            "default_priority_level": DEFAULT_PRIORITY,
        }
    return config


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    dims = spec.shape[1:] if batched else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(dims)}
