"""A worker that imports this is of a version to come: its records are newer than this one's."""

from __future__ import annotations

from longshore.orchestration import request
from longshore.orchestration.store import SCHEMA_VERSION
from longshore.tasks import driver, plans

for module in (request, driver, plans):
    module.SCHEMA_VERSION = SCHEMA_VERSION + 1  # type: ignore[attr-defined]
