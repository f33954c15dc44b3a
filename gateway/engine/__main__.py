"""Runs an engine as long as its parent lives; light to import, since a crashed engine must be back soon.

`python -m gateway.engine ORDER` takes an `EngineOrder` as JSON; `python -m gateway.engine MODEL.onnx SOCKET THREADS
[MAX_RESIDENT_BYTES]` serves a file as it is, for looking at it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import setproctitle

from gateway.engine.approved import run_approved
from gateway.engine.errors import EngineStartFailed
from gateway.engine.loading import WARM_UP_SECONDS, hold_memory, load_session, warm_up
from gateway.engine.notes import EngineNote, write_note
from gateway.engine.order import EngineOrder
from gateway.engine.process import run_engine
from gateway.engine.wire import Hello
from gateway.parent import PARENT_VARIABLE, die_with_parent, follow
from gateway.repository.errors import RepositoryError
from gateway.repository.policy import PolicyError
from gateway.telemetry.log import ProcessLog


def main(arguments: list[str]) -> int:
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        die_with_parent(os.getppid())  # but Ctrl-C is for it
    else:
        follow(int(parent))
    order = None
    say: Callable[[str], None] = partial(print, file=sys.stderr)
    try:
        if len(arguments) == 1:
            order = msgspec.json.decode(arguments[0], type=EngineOrder)
            setproctitle.setproctitle(f"gateway: engine {order.model}/{order.version}")
            name = f"engine {order.model}/{order.version}"
            log = ProcessLog(name, json=order.json_lines, stream=sys.stderr)
            say = log.warn
            run_approved(order, log=log)
        elif len(arguments) in (3, 4):
            limit = int(arguments[3]) if len(arguments) == 4 else None
            session = load_session(Path(arguments[0]), threads=int(arguments[2]), max_resident_bytes=limit)
            warm_up(session, profile=None, max_rows=1, max_seconds=WARM_UP_SECONDS)
            if limit is not None:
                hold_memory(limit)
            hello = Hello(signature=session.signature, omitted=session.omitted)
            run_engine(session, Path(arguments[1]), hello=hello)
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (EngineStartFailed, RepositoryError, PolicyError) as error:
        say(str(error))
        if order is not None:
            write_note(Path(order.failure), EngineNote("failed", str(error)))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
