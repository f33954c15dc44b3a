"""The proof: two books that agree, and every way in which they may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.demo.ledger import Answers, Book, Proof, prove
from gateway.demo.traffic import Answer
from gateway.events.encoding import encode
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION, FeedbackRecord, PredictionRecord
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings

Make = Callable[..., Answer]
Record = Callable[[Answer], PredictionRecord]


@pytest.fixture
def compare(tmp_path: Path, make_record: Record) -> Callable[[list[Answer], list[Answer]], Proof]:
    """Prove with what callers got and what was logged, through a real spool."""

    def compare(got: list[Answer], logged: list[Answer]) -> Proof:
        writer = SpoolWriter(tmp_path / "spool" / "front-0", slot=0, settings=SpoolSettings())
        writer.append([(KIND_PREDICTION, encode(make_record(answer))) for answer in logged])
        writer.close()
        answers, book = Answers(80.0), Book(tmp_path / "spool")
        answers.add(got)
        while book.read():
            pass
        book.close()
        return prove(answers, book)

    return compare


def test_equal_books_are_a_proof(compare: Callable[..., Proof], make_answer: Make) -> None:
    answers = [make_answer(number) for number in range(30)]
    proof = compare(answers, answers)
    assert proof.holds and (proof.answered, proof.logged) == (30, 30)


def test_refused_requests_are_records_too(compare: Callable[..., Proof], make_answer: Make) -> None:
    answers = [make_answer(1), make_answer(2, status=400, value=None)]
    proof = compare(answers, answers)
    assert proof.holds and (proof.answered, proof.refused, proof.refused_logged) == (1, 1, 1)


def test_nothing_answered_proves_nothing(compare: Callable[..., Proof]) -> None:
    assert not compare([], []).holds


def test_an_answer_that_is_not_in_the_log_is_missed(compare: Callable[..., Proof], make_answer: Make) -> None:
    proof = compare([make_answer(1), make_answer(2)], [make_answer(1)])
    assert not proof.holds and proof.missing == 1


def test_a_record_that_nobody_was_answered_is_found(compare: Callable[..., Proof], make_answer: Make) -> None:
    proof = compare([make_answer(1)], [make_answer(1), make_answer(2)])
    assert not proof.holds and proof.unknown == 1


@pytest.mark.parametrize("change", [{"value": 90.5}, {"version": 2}, {"arm": "canary"}, {"status": 500}])
def test_a_record_that_says_otherwise_is_found(
    compare: Callable[..., Proof], make_answer: Make, change: dict[str, object]
) -> None:
    proof = compare([make_answer(1), make_answer(2)], [make_answer(1), make_answer(2, **change)])
    assert not proof.holds and proof.differing == 1


def test_an_id_that_is_given_twice_is_found(compare: Callable[..., Proof], make_answer: Make) -> None:
    assert compare([make_answer(1), make_answer(1)], [make_answer(1)]).repeated == 1


def test_labels_are_counted_in_both_books(tmp_path: Path, make_answer: Make, make_record: Record) -> None:
    answer = make_answer(1)
    label = FeedbackRecord("01a2074f382400-0000000002", "2027-01-15T08:00:00Z", "g", 2, "m", answer.prediction_id, 0, 1)
    writer = SpoolWriter(tmp_path / "spool" / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(KIND_PREDICTION, encode(make_record(answer))), (KIND_FEEDBACK, encode(label))])
    writer.close()
    answers, book = Answers(80.0), Book(tmp_path / "spool")
    answers.add([answer])
    book.read()
    assert not prove(answers, book).holds
    answers.labels = 1
    assert prove(answers, book).holds
    book.close()


def test_a_weeks_misses_are_told_by_version(make_answer: Make) -> None:
    answers = Answers(80.0)
    answers.add([make_answer(number, version=1, value=200.0 if number < 6 else 100.0) for number in range(24)])
    answers.add([make_answer(30, version=2)])
    assert answers.weeks.rate("2012-01-02", 1) == 0.25
    assert answers.weeks.rate("2012-01-02", 2) is None, "a single hour tells nothing of a week"
