"""The API's own description: valid, with examples that fit it, and true under fuzzing."""

from __future__ import annotations

from contextlib import suppress

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

OPERATIONS = {
    "createPredictions", "getResult", "deleteResult", "exportResult", "getLayer", "getPlane",
    "getSynthetic", "getModel", "getHealth", "getReadiness", "getMetrics",
}  # fmt: skip
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_the_description_names_every_operation(service: Running) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    operations = [each for methods in paths.values() for each in methods.values()]
    assert {each["operationId"] for each in operations} == OPERATIONS
    assert all(each["description"] for each in operations)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_fuzzing_from_the_description(service: Running, mode: GenerationMode) -> None:
    """What fits the description, and what does not, is answered as it says and never by a 5xx."""
    description = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) == len(OPERATIONS)
    assert service.get("/v2/synthetic.zip").status_code == 200, "made once, and kept"
    asked = 0
    for operation in operations:

        @FEW
        @given(operation.as_strategy(mode))
        def check(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # an address without parameters has nothing that does not fit
            check()
    assert asked > len(OPERATIONS)
    assert service.get("/healthz").status_code == 200
