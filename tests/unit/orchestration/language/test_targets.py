"""Host selection: targets, labels and conditions on hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from longshore.orchestration.language.targets import (
    HostFilter,
    has_label,
    is_host_name,
    is_label,
    is_several,
    is_target,
    listed,
    parse_facts,
    parse_labels,
)

WORD = st.text("abcXYZ019_-", min_size=1, max_size=8)
VALUE = st.lists(WORD, min_size=1, max_size=4).map(".".join)


@dataclass
class Machine:
    labels: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    healthy: bool = True


@given(WORD, VALUE)
def test_label_prefix_of_whole_words_matches(key: str, value: str) -> None:
    words = value.split(".")
    for n in range(1, len(words) + 1):
        selector = f"{key}:{'.'.join(words[:n])}"
        assert is_label(selector)
        assert is_target(selector)
        assert has_label({key: value}, selector)
    assert not has_label({key: value}, f"{key}:{value}.more")
    assert not has_label({key: f"{value}x"}, f"{key}:{value}")
    assert not has_label({f"{key}x": value}, f"{key}:{value}")


@given(st.dictionaries(WORD, VALUE))
def test_labels_are_parsed(labels: dict[str, str]) -> None:
    assert parse_labels(",".join(f"{key}={value}" for key, value in labels.items())) == labels


@pytest.mark.parametrize(
    "text", ["role", "role=", "ro le=web", "role=we b", "role=web..eu", "role=.web", "=web", "a:b=c"]
)
def test_invalid_label_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_labels(text)


def test_fact_values_are_arbitrary() -> None:
    assert parse_facts(" rack = 12 ,note=a=b, ") == {"rack": "12", "note": "a=b"}


@pytest.mark.parametrize("target", ["_all", "role:web", "role:web.dev.eu"])
def test_label_targets_select_several_hosts(target: str) -> None:
    assert is_several(target)


@pytest.mark.parametrize("target", ["_any", "web1", "web1.example.com"])
def test_host_targets_select_one_host(target: str) -> None:
    assert not is_several(target)
    assert is_target(target)


@pytest.mark.parametrize(
    ("name", "good"), [("web1", True), ("a.b", True), ("web1.undo", False), ("a:b", False), ("", False)]
)
def test_host_name_cannot_form_another_hosts_queue(name: str, good: bool) -> None:
    assert is_host_name(name) is good


@pytest.mark.parametrize("target", ["", "role:", ":web", "a b", "role:we b", "role:web:eu", "_other", "a" * 65])
def test_invalid_targets_are_refused(target: str) -> None:
    assert not is_target(target)


MACHINE = Machine(
    {"role": "web.dev"},
    {"os": "debian", "version": "12", "arch": "x86_64", "cpus": 4, "memory": 8 * 2**30, "rack": "7"},
)


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"os": "Debian", "version": "12", "arch": "amd64"},
        {"min_cpu": 4, "min_memory": "8GiB"},
        {"label": "role:web", "fact": {"rack": 7}},
        {"label": "role=web"},
        {"label": {"role": "web"}},
        {"label": ["role:web", "role:web.dev"], "fact": "rack=7,cpus=4"},
        {"healthy": True},
    ],
)
def test_host_filter_matches(conditions: dict[str, Any]) -> None:
    assert HostFilter.model_validate(conditions).matches(MACHINE)


@pytest.mark.parametrize(
    "conditions",
    [
        {"os": "alpine"},
        {"version": "1"},
        {"arch": "arm64"},
        {"min_cpu": 5},
        {"min_memory": "9GiB"},
        {"label": ["role:web", "role:db"]},
        {"fact": {"rack": "8"}},
        {"fact": {"zone": "eu"}},
        {"healthy": False},
    ],
)
def test_host_filter_rejects(conditions: dict[str, Any]) -> None:
    condition = HostFilter.model_validate(conditions)
    assert not condition.matches(MACHINE)
    if "healthy" not in conditions:
        assert not condition.matches(Machine()), "a host without facts matched"


def test_host_filter_keeps_only_given_conditions() -> None:
    condition = HostFilter.model_validate({"min_memory": "2GiB", "fact": "rack=7"})
    assert condition.model_dump() == {"fact": {"rack": "7"}, "min_memory": 2 * 2**30}
    assert HostFilter.model_validate(condition.model_dump()) == condition
    for wrong in ({"colour": "red"}, {"label": ""}, {"label": "role"}, {"label": "role:web."}):
        with pytest.raises(ValidationError):
            HostFilter.model_validate(wrong)


def test_long_name_lists_are_abbreviated() -> None:
    assert listed([]) == "none"
    assert listed("abc") == "a, b, c"
    assert listed(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
