"""Results of functions, and conversion of data to types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from longshore.orchestration import DecodeError, HostResult, Result
from longshore.orchestration.errors import OperationError
from longshore.orchestration.operations.results import as_mapping, decode


class Image(BaseModel):
    name: str
    size: int


@dataclass
class Copy:
    name: str
    size: int


@pytest.mark.parametrize("value", [Image(name="shop", size=1), Copy("shop", 1), {"name": "shop", "size": 1}])
def test_data_is_always_a_mapping(value: Any) -> None:
    assert as_mapping(value) == {"name": "shop", "size": 1}


def test_scalar_result_is_wrapped_and_non_json_fails() -> None:
    assert as_mapping([1, 2]) == {"result": [1, 2]}
    with pytest.raises(OperationError, match="cannot be represented as JSON"):
        as_mapping({"socket": object()})


@pytest.mark.parametrize("model", [Image, Copy])
def test_data_is_converted_to_the_requested_type(model: Any) -> None:
    assert as_mapping(decode(model, {"name": "shop", "size": 1}, "step 'x'")) == {"name": "shop", "size": 1}


def test_missing_or_mismatched_data_is_a_clear_error() -> None:
    with pytest.raises(DecodeError, match="no result data for step 'x'"):
        decode(Image, {}, "step 'x'")
    with pytest.raises(DecodeError, match="the data of step 'x' does not match Image: size"):
        decode(Image, {"name": "shop"}, "step 'x'")


def test_results_of_hosts_are_collected_with_failures() -> None:
    answers = {"a": "changed", "b": "broken", "c": ""}

    def mapped(item: tuple[str, str]) -> HostResult:
        host, status = item
        return HostResult(
            host, changed=status == "changed", error="no" if status == "broken" else None, data=Copy(host, 1)
        )

    result = Result.from_hosts(answers.items(), mapped, data={"all": 3})

    assert result.changed is True
    assert [host.as_record()["status"] for host in result.hosts] == ["changed", "failed", "unchanged"]
    assert result.hosts[0].as_record()["data"] == {"name": "a", "size": 1}
    assert HostResult("d", error="unsupported", status="skipped").as_record()["status"] == "skipped"
