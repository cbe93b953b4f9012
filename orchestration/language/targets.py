"""The grammar of targets and labels, and conditions on hosts.

A target is `_any` (any worker), `_all` (all hosts), a host name, or `key:value` (each host with the label). Values of
labels are hierarchical: `group:web` selects `web`, `web.dev` and `web.dev.eu`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_serializer

#: Pattern of host names, which are part of queue names.
HOST = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LABEL_KEY = r"[A-Za-z0-9_-]{1,63}"
_LABEL_VALUE = r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*"
ANY, ALL = "_any", "_all"


def is_host_name(text: str) -> bool:
    """Whether the text is a valid host name; `.undo` is the suffix of undo queues."""
    return re.fullmatch(HOST, text) is not None and not text.endswith(".undo")


_TARGET = re.compile(rf"_any|_all|{HOST}|{_LABEL_KEY}:{_LABEL_VALUE}")


def is_target(text: str) -> bool:
    """Whether the text is a valid target. A template is only checked when rendered."""
    if "{{" in text:
        return "}}" in text and "\n" not in text
    return _TARGET.fullmatch(text) is not None


#: Aliases of processor architectures.
_ARCH = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


def is_label(target: str) -> bool:
    """Whether a target selects by label. Host names contain no colon."""
    return re.fullmatch(rf"{_LABEL_KEY}:{_LABEL_VALUE}", target) is not None


def is_several(target: str) -> bool:
    """Whether a target can select several hosts."""
    return target == ALL or is_label(target)


def has_label(labels: Mapping[str, str], selector: str) -> bool:
    """Whether `key:value` selects a host with these labels, by the whole value or a prefix of whole words."""
    key, _, wanted = selector.partition(":")
    value = labels.get(key)
    return value is not None and (value == wanted or value.startswith(f"{wanted}."))


def parse_labels(text: str) -> dict[str, str]:
    """Parse labels such as `role=web,group=web.dev.eu`. Raises ValueError."""
    found = _pairs(text)
    for key, value in found.items():
        if not re.fullmatch(_LABEL_KEY, key) or not re.fullmatch(_LABEL_VALUE, value):
            raise ValueError(f"{key}={value} is not a label: write name=value with dotted words, such as group=web.eu")
    return found


def parse_facts(text: str) -> dict[str, str]:
    """Parse facts such as `rack=12,zone=eu-1`. Raises ValueError."""
    return _pairs(text)


def _pairs(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise ValueError(f"{part!r} is not name=value")
        found[key.strip()] = value.strip()
    return found


class HostDescription(Protocol):
    """The host data that a condition reads."""

    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def healthy(self) -> bool: ...


def _as_labels(value: Any) -> Any:
    """Normalise a label, a list or a mapping; `role=web`, the form of the worker's setting, is also accepted."""
    given = [f"{key}:{each}" for key, each in value.items()] if isinstance(value, Mapping) else value
    given = [given] if isinstance(given, str) else given
    return [each.replace("=", ":", 1) if isinstance(each, str) else each for each in given]


def _is_label(value: str) -> str:
    if not is_label(value):
        raise ValueError(f"{value!r} is not a label: write key:value, such as role:web")
    return value


_Label = Annotated[str, AfterValidator(_is_label)]


def _as_facts(value: Any) -> Any:
    return _pairs(value) if isinstance(value, str) else value


class HostFilter(BaseModel):
    """Conditions on a host, all of which must hold. A condition on an unknown fact does not hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    os: str | None = Field(None, description="Distribution: debian, alpine, …")
    version: str | None = Field(None, description="Version of the distribution")
    arch: str | None = Field(None, description="Processor: x86_64 (amd64), aarch64 (arm64), …")
    min_cpu: float | None = Field(None, ge=0, description="Minimum number of processors")
    min_memory: ByteSize | None = Field(None, description="Minimum memory: a number of bytes, or a text such as 2GiB")
    label: Annotated[list[_Label], BeforeValidator(_as_labels)] = Field(
        default_factory=list, description="Labels that the host must have, each as key:value"
    )
    fact: Annotated[dict[str, Any], BeforeValidator(_as_facts)] = Field(
        default_factory=dict, description="Facts that the host must have, with their values"
    )
    healthy: bool | None = Field(
        None,
        description="true: the host accepts new steps, and its Docker engine, if any, answers. false: one of these is "
        "not true",
    )

    @model_serializer(mode="plain")
    def _only_what_is_given(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        return {name: int(value) if isinstance(value, ByteSize) else value for name, value in given.items()}

    def matches(self, host: HostDescription) -> bool:
        """Whether a host fulfils all conditions."""
        facts = host.facts
        return (
            self._is("os", facts)
            and self._is("version", facts)
            and self._is("arch", facts)
            and (self.min_cpu is None or _number(facts.get("cpus")) >= self.min_cpu)
            and (self.min_memory is None or _number(facts.get("memory")) >= self.min_memory)
            and all(has_label(host.labels, label) for label in self.label)
            and all(name in facts and str(facts[name]) == str(value) for name, value in self.fact.items())
            and (self.healthy is None or host.healthy == self.healthy)
        )

    def _is(self, name: str, facts: Mapping[str, Any]) -> bool:
        wanted = getattr(self, name)
        return wanted is None or _plain(facts.get(name)) == _plain(wanted)


def _plain(value: Any) -> str:
    text = str(value or "").lower()
    return _ARCH.get(text, text)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else -1.0


def listed(names: Iterable[str], at_most: int = 8) -> str:
    """Format names for a message, at most the first ones."""
    known = list(names)
    shown = ", ".join(known[:at_most]) or "none"
    return f"{shown} and {len(known) - at_most} more" if len(known) > at_most else shown
