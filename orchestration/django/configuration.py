"""The settings of Longshore from those of Django."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from longshore.orchestration.errors import ConfigError
from longshore.orchestration.settings import Settings, get_settings

#: The module that a worker imports before its operations.
WORKER = "longshore.orchestration.django.worker"
#: The URLs that name a Redis, as a broker URL may.
_REDIS = ("redis://", "rediss://", "sentinel://", "unix://", "redis+socket://")


def configure(given: Mapping[str, Any], broker_url: str = "") -> None:
    """Set the variables of the environment that this process and its workers read their settings from.

    Variables that are set already take precedence. Raises ConfigError for an unknown name.
    """
    for name in given:
        if name not in Settings.model_fields:
            near = get_close_matches(str(name).lower(), Settings.model_fields, n=1)
            raise ConfigError(
                f"LONGSHORE in the settings of Django: unknown setting {name!r}",
                remedy=f"did you mean {near[0]!r}?" if near else "use the names of the settings table, in lower case",
            )
    values = dict(given)
    if broker_url.startswith(_REDIS):
        values.setdefault("redis_url", broker_url)
    imports = os.environ.get("LONGSHORE_IMPORTS", "") or str(values.pop("imports", ""))
    modules = [name for name in (part.strip() for part in imports.split(",")) if name]
    # First, since the other modules may import models.
    os.environ["LONGSHORE_IMPORTS"] = ",".join(dict.fromkeys([WORKER, *modules]))
    for name, value in values.items():
        if value is not None:
            os.environ.setdefault(f"LONGSHORE_{name.upper()}", _text(value))
    get_settings.cache_clear()


def _text(value: Any) -> str:
    """A setting as the text of a variable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float | Path) else json.dumps(value)
