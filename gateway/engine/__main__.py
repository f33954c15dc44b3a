"""`python -m gateway.engine MODEL.onnx SOCKET THREADS`: an engine for one model file, as long as its parent lives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gateway.engine.errors import EngineStartFailed
from gateway.engine.process import run_engine
from gateway.engine.session import ModelSession
from gateway.engine.wire import Hello
from gateway.parent import die_with_parent


def main() -> int:
    if len(sys.argv) != 4:
        print("usage: python -m gateway.engine MODEL.onnx SOCKET THREADS", file=sys.stderr)
        return 2
    die_with_parent(os.getppid())
    try:
        session = ModelSession(Path(sys.argv[1]), threads=int(sys.argv[3]))
    except EngineStartFailed as error:
        print(error, file=sys.stderr)
        return 1
    run_engine(session, Path(sys.argv[2]), hello=Hello(signature=session.signature, pid=os.getpid()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
