"""The parameters of a run as reports, lists and pages show them: secrets as references, long values shortened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from longshore.orchestration.language.secrets import HIDDEN
from longshore.orchestration.plans.policy import names_secret

#: Characters of a value, as JSON; the whole value is in the request of the run.
_LONGEST = 200


def shown_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that people may see. A plaintext value that is named like a secret is hidden."""
    return {name: _shortened(_shown(name, value)) for name, value in params.items()}


def one_line(params: Mapping[str, Any]) -> str:
    """Parameters as `version=1.2 env=prod`; '' for none."""
    return " ".join(f"{name}={value if isinstance(value, str) else _as_json(value)}" for name, value in params.items())


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(str(key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(name, item) for item in value]
    if value is not None and names_secret(name) and not str(value).startswith("{{"):
        return HIDDEN
    return value


def _shortened(value: Any) -> Any:
    text = value if isinstance(value, str) else _as_json(value)
    return value if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
