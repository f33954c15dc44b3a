"""Answers held against onnxruntime."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.answers import check_answers
from benchmarks.errors import WrongAnswer
from benchmarks.models import model_file
from benchmarks.workloads import IMAGE_BINARY, IMAGE_JSON, expected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file("image", tmp_path_factory.mktemp("models"))


@contextlib.contextmanager
def server(model: Path, *, factor: float = 1.0, status: int = 200) -> Iterator[str]:
    """Answers with the model's numbers times `factor`."""

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            length = int(self.headers["inference-header-content-length"])
            inputs = np.frombuffer(body, np.float32, offset=length).reshape(-1, 3, 224, 224)
            numbers = expected(model, inputs).ravel() * np.float32(factor)
            content = json.dumps({"outputs": [{"data": numbers.tolist()}]}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}/infer"
        finally:
            listening.shutdown()
            thread.join()


def test_right_answers_are_counted(model: Path) -> None:
    with server(model) as url:
        done = check_answers(url, IMAGE_BINARY, model, requests=3, connections=2)
    assert (done.answers, done.equal, done.difference) == (3, 3, 0.0)


def test_an_answer_that_differs_is_found(model: Path) -> None:
    with server(model, factor=1.001) as url, pytest.raises(WrongAnswer, match="onnxruntime"):
        check_answers(url, IMAGE_BINARY, model, requests=1, connections=1)


def test_an_answer_that_is_no_success_is_found(model: Path) -> None:
    with server(model, status=503) as url, pytest.raises(WrongAnswer, match="503"):
        check_answers(url, IMAGE_BINARY, model, requests=1, connections=1)


def test_json_and_binary_carry_the_same_numbers() -> None:
    binary, length = IMAGE_BINARY.body(7)
    text, none = IMAGE_JSON.body(7)
    assert none is None
    numbers = np.array(json.loads(text)["inputs"][0]["data"], np.float32)
    assert np.array_equal(numbers, np.frombuffer(binary, np.float32, offset=length or 0))
    assert len(binary) - (length or 0) == 602_112
