from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conformance.cases import AREAS, CASES, Case
from tests.conformance.exchange import infer, tensor


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
@pytest.mark.usefixtures("scored")
def test_the_specification_holds(server: Any, case: Case, request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("binary", None)
    if case.binary and wanted is False:
        pytest.skip("--no-binary")
    if case.binary and wanted is None and not server.offers("binary_tensor_data"):
        pytest.skip("the server does not list binary_tensor_data")
    if not case.binary and not server.offers(AREAS[case.area]):
        pytest.skip(f"the server does not list {AREAS[case.area]}")
    case.check(case.request.send(server.url))


def _entry(server: Any) -> dict[str, Any]:
    from tests.conformance.exchange import Request

    [entry] = Request("GET", "/v2/models/scores/stats").send(server.url).json["model_stats"]
    return dict(entry)


COUNTS = Case("statistics", "inference_count counts rows, execution_count runs", infer("scores"), lambda answer: None)
OWN = Case("batching", "each of many requests at once has its own answer", infer("scores"), lambda answer: None)


@pytest.mark.parametrize("case", [COUNTS], ids=lambda case: case.says)
@pytest.mark.usefixtures("scored")
def test_statistics_count_rows_and_runs(server: Any, case: Case) -> None:
    if not server.offers("statistics"):
        pytest.skip("the server does not list statistics")
    before = _entry(server)
    for rows in (1, 3, 1, 5):
        answer = infer("scores", tensor("INPUT0", "FP32", [rows, 4], [0.0] * 4 * rows)).send(server.url)
        assert answer.status == 200, answer
    assert infer("scores").send(server.url).status == 400
    after = _entry(server)
    assert after["inference_count"] - before["inference_count"] == 10
    assert after["execution_count"] - before["execution_count"] == 4  # one at a time, so nothing shares a run
    succeeded = [entry["inference_stats"]["success"] for entry in (before, after)]
    assert succeeded[1]["count"] - succeeded[0]["count"] == 4 and succeeded[1]["ns"] > succeeded[0]["ns"]
    assert after["last_inference"] > 1_500_000_000_000, "milliseconds since 1970"
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}
    assert {1, 3, 5} <= set(sizes) and sum(sizes.values()) == after["execution_count"]


@pytest.mark.parametrize("case", [OWN], ids=lambda case: case.says)
@pytest.mark.usefixtures("scored")
def test_each_of_many_requests_at_once_has_its_own_answer(server: Any, case: Case) -> None:
    def ask(number: int) -> bool:
        rows = number % 3 + 1
        sent = [float(number)] * 4 * rows
        answer = infer("scores", tensor("INPUT0", "FP32", [rows, 4], sent)).send(server.url)
        return bool(answer.status == 200 and answer.output("OUTPUT0")["data"] == sent)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_no_two_cases_say_the_same() -> None:
    said = [(case.area, case.says) for case in CASES]
    assert len(said) == len(set(said))
    assert {case.area for case in CASES} == set(AREAS)
