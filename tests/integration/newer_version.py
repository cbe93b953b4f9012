"""A worker that imports this module is of a newer version, with newer records."""

from __future__ import annotations

from longshore.orchestration.client import request
from longshore.orchestration.store.records import SCHEMA_VERSION
from longshore.tasks import loaded_runs
from longshore.tasks.control import coordinator

for module in (request, coordinator, loaded_runs):
    module.SCHEMA_VERSION = SCHEMA_VERSION + 1  # type: ignore[attr-defined]
