"""One ONNX model loaded in onnxruntime: the only module that imports it."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# It would note ids of this machine and a database in the home directory, beginning with the import, on a thread of its
# own; nothing of ours is to be reported anywhere.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from gateway.engine.errors import EngineStartFailed, RunFailed, RunStopped
from gateway.engine.providers import CPU, Provider
from gateway.engine.watch import RunWatch
from gateway.protocol.datatypes import FREE, NUMPY_OF, ONNX_OF, Signature, TensorSpec

__all__ = ("ModelSession",)

_ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16

Array = np.ndarray[Any, np.dtype[Any]]


class ModelSession:
    """A model ready to run.

    Parameters
    ----------
    model_file : Path
        An ONNX file; its external weights lie beside it.
    threads : int
        Intra-op threads, never the host's count: an engine shares the machine with fronts and other engines.
    providers : sequence of Provider
        In the order of preference, all of them installed.

    Raises
    ------
    EngineStartFailed
        onnxruntime refuses the file, no output is a tensor, or none of the providers could be started.
    """

    def __init__(
        self, model_file: Path, *, threads: int = 1, providers: Sequence[Provider] = (Provider(CPU, {}),)
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        ort.disable_telemetry_events()
        # The path must not change what is loaded: weights are looked for beside the file, in its private folder.
        threads_before = _threads()
        try:
            self._session = ort.InferenceSession(
                os.fspath(model_file), sess_options=options, providers=[tuple(provider) for provider in providers]
            )
        except Exception as error:  # onnxruntime has no exception base of its own
            raise EngineStartFailed(f"onnxruntime cannot load {model_file.name}: {error}") from None
        self.has_threads = threads > 1 or _threads() > threads_before
        self.providers: list[str] = self._session.get_providers()
        self.provider = _started(self.providers, providers)
        self.signature = Signature(
            inputs=tuple(_spec(node) for node in self._session.get_inputs()),
            outputs=tuple(_spec(node) for node in self._session.get_outputs() if node.type in ONNX_OF),
        )
        if not self.signature.outputs:
            raise EngineStartFailed(f"{model_file.name} has no output that is a tensor")
        self.omitted = {node.name: node.type for node in self._session.get_outputs() if node.type not in ONNX_OF}
        # Unasked it would go on with another provider when one fails in a run.
        self._session.disable_fallback()
        self._run = self._session.run
        if self.provider == CPU:
            # The package looks at names and owners of inputs before it asks its own session. They are checked long
            # before, and a small model pays a tenth of its frame for it (`python -m benchmarks.engine_cost`).
            self._run = getattr(self._session, "_sess", self._session).run
        self._options = ort.RunOptions()
        self._watch = RunWatch(self._stop_run)
        self._output_names = [spec.name for spec in self.signature.outputs]
        self._bfloat16 = any(spec.datatype == "BF16" for spec in (*self.signature.inputs, *self.signature.outputs))
        if self._bfloat16 and any(spec.datatype == "BYTES" for spec in self.signature.inputs):
            raise EngineStartFailed(
                f"{model_file.name} has bfloat16 tensors and string inputs, which onnxruntime's Python API "
                "cannot carry in one run"
            )

    def __repr__(self) -> str:
        names = ", ".join(self._output_names)
        return f"<ModelSession {len(self.signature.inputs)} inputs, outputs {names} on {self.provider}>"

    @staticmethod
    def installed_providers() -> list[str]:
        """The execution providers onnxruntime was built with, best first."""
        names: list[str] = ort.get_available_providers()
        return names

    def run(self, inputs: dict[str, Array], *, until: float = math.inf) -> list[Array]:
        """Run the model once.

        Parameters
        ----------
        inputs : dict of name to array
            Dtypes as in `NUMPY_OF`, shapes as in the signature.
        until : float
            In seconds of `time.monotonic`: a run that lasts longer is stopped between two of its nodes.

        Returns
        -------
        list of arrays
            In the order of `signature.outputs`.

        Raises
        ------
        RunFailed
            With onnxruntime's text, which names nodes and source files: for the log, not for callers.
        RunStopped
            It was past `until`.
        """
        while True:
            self._watch.begin(until)
            try:
                if self._bfloat16:
                    return self._run_values(inputs)
                outputs: list[Array] = self._run(self._output_names, inputs, self._options)
            except Exception as error:
                if not self._options.terminate:
                    raise RunFailed(str(error)) from None
                self._options = ort.RunOptions()
                if time.monotonic() >= until:
                    raise RunStopped("the run was stopped at its deadline") from None
                # Else the stop was meant for the run before this one, and came too late for it.
            else:
                return outputs
            finally:
                self._watch.end()

    def shrink(self, inputs: dict[str, Array], *, until: float) -> None:
        """Run once and let onnxruntime's arena give back whatever is free at the end of the run.

        Raises
        ------
        RunFailed, RunStopped
        """
        plain, self._options = self._options, ort.RunOptions()
        # Source: onnxruntime_run_options_config_keys.h
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            self.run(inputs, until=until)
        finally:
            self._options = plain

    def watch_again(self) -> None:
        """Call in a fork: the thread that stops runs is not there."""
        self._watch = RunWatch(self._stop_run)

    def _stop_run(self) -> None:
        self._options.terminate = True

    def _run_values(self, inputs: dict[str, Array]) -> list[Array]:
        # onnxruntime hands out no numpy array of bfloat16 and takes none, but its values can be made of the bits.
        values = {name: _value(array) for name, array in inputs.items()}
        return [_array(value) for value in self._session.run_with_ort_values(self._output_names, values, self._options)]


def _threads() -> int:
    """Of this process, onnxruntime's and numpy's too; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def _value(array: Array) -> Any:
    if array.dtype.kind != "V":
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.require(array.view("<u2"), requirements=["C", "A"])
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        numbers: Array = value.numpy()
        return numbers
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
    return np.frombuffer(bits, NUMPY_OF["BF16"]).reshape(shape)


def _started(active: list[str], wanted: Sequence[Provider]) -> str:
    """The first provider that is at work; onnxruntime goes on without one that it cannot start, and always has CPU."""
    for provider in wanted:
        if provider.name in active:
            return provider.name
    names = ", ".join(provider.name for provider in wanted)
    raise EngineStartFailed(f"onnxruntime has {names} installed, but could not start it")


def _spec(node: Any) -> TensorSpec:
    if node.type not in ONNX_OF:
        raise EngineStartFailed(
            f"input {node.name!r} is {node.type}, which is no tensor of the Open Inference Protocol"
        )
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else FREE for axis in node.shape)
    return TensorSpec(node.name, ONNX_OF[node.type], shape)
