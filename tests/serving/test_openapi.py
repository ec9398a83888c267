"""The API's own description: valid, with examples that fit it, and true under fuzzing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.serving.conftest import Running

from groundglass.serving import schemas

OPERATIONS = {
    "createPredictions", "getResult", "deleteResult", "exportResult", "getLayer",
    "getModel", "getHealth", "getReadiness", "getMetrics",
}  # fmt: skip
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(service: Running) -> dict[str, Any]:
    document: dict[str, Any] = service.get("/openapi.json").json()
    return document


def test_every_address_says_what_it_answers(described: dict[str, Any]) -> None:
    operations = [
        (path, method, each)
        for path, methods in described["paths"].items()
        for method, each in methods.items()
    ]
    assert {operation["operationId"] for _, _, operation in operations} == OPERATIONS
    for path, method, operation in operations:
        assert operation["description"], (path, method)
        problems = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
        assert {"401", "500"} <= set(problems)
        for answer in problems.values():
            assert set(answer["content"]) == {"application/problem+json"}
    assert {"408", "413", "415", "422", "429", "503"} <= set(
        described["paths"]["/v2/predictions"]["post"]["responses"]
    )


def test_examples_fit_their_schemas(described: dict[str, Any]) -> None:
    content = described["paths"]["/v2/predictions"]["post"]["responses"]["200"]["content"]["application/json"]
    assert set(content["examples"]) == {"none", "link", "inline"}
    for example in content["examples"].values():
        schemas.Predictions.model_validate(example["value"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_fuzzing_from_the_description(service: Running, mode: GenerationMode) -> None:
    """What fits the description, and what does not, is answered as it says and never by a 5xx."""
    description = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) == len(OPERATIONS)
    asked = 0
    for operation in operations:

        @settings(
            max_examples=10,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(mode))
        def check(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # an address without parameters has nothing that does not fit
            check()
    assert asked > len(OPERATIONS)
    assert service.get("/healthz").status_code == 200
