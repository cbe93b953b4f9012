"""The servers, workers and peers that the measures of one run share, and the number of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from benchmarks import (
    operations,  # noqa: F401 - registers the operations for the client
    plans,
)
from benchmarks.celery_app import CeleryPeer
from benchmarks.dbos_peer import DbosPeer
from benchmarks.postgres import Postgres
from benchmarks.site import Site
from longshore.orchestration import Client, Settings
from tests.servers import MissingError

#: The most runs that wait for admission in any measure.
MAX_QUEUED = 200_000


class Bench:
    """Starts each server at its first use. `close` ends all servers."""

    def __init__(self, folder: Path, rounds: int, *, large: bool) -> None:
        self.folder, self.rounds, self.large = folder, rounds, large
        self.versions: dict[str, str] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    # --- Longshore ----------------------------------------------------------------------------------

    @cached_property
    def site(self) -> Site:
        """Longshore's Redis and worker."""
        site = Site(
            self.folder,
            "longshore",
            "longshore.workers",
            {
                "LONGSHORE_REDIS_URL": "{url}",
                "LONGSHORE_STATE_DIR": str(self.folder / "state"),
                "LONGSHORE_IMPORTS": "benchmarks.operations,benchmarks.sweep_times",
                "BENCH_SWEEPS": str(self.sweeps),
            },
        )
        self._stack.callback(site.close)
        self.versions["Redis"] = str(site.redis.info("server")["redis_version"])
        site.start()
        plans.execute(self._client(site.server.url), plans.grid(2, 4))  # every process has imported its modules
        return site

    @cached_property
    def client(self) -> Client:
        """A client of the site."""
        return self._client(self.site.server.url)

    @cached_property
    def quiet(self) -> Client:
        """A client of a Redis server without workers, which would compete for the processors."""
        site = Site(self.folder, "quiet", "longshore.workers", {})
        self._stack.callback(site.close)
        return self._client(site.server.url)

    @property
    def sweeps(self) -> Path:
        """The file with the seconds of each sweep, a line each."""
        return self.folder / "sweeps"

    def _client(self, url: str) -> Client:
        client = Client(Settings(redis_url=url, state_dir=self.folder / "state", max_queued=MAX_QUEUED))
        self._stack.callback(client.close)
        return client

    # --- peers --------------------------------------------------------------------------------------

    @cached_property
    def celery_site(self) -> Site:
        """Redis and worker of plain Celery."""
        # The benchmark reads the length of the queue with these commands. Celery itself sends none of them.
        polls = ("llen", "hlen")
        site = Site(self.folder, "native", "benchmarks.celery_app", {"BENCH_URL": "{url}"}, polls)
        self._stack.callback(site.close)
        site.start()
        return site

    @cached_property
    def celery(self) -> CeleryPeer:
        peer = CeleryPeer(self.celery_site.server.url, self.celery_site.redis)
        peer.canvas(2, 4)
        return peer

    @cached_property
    def dbos(self) -> dict[str, DbosPeer | str]:
        """The DBOS peer of each database, or the reason for its absence."""
        found: dict[str, DbosPeer | str] = {}
        for name, url in (("DBOS SQLite", self._sqlite), ("DBOS PostgreSQL", self._postgres)):
            try:
                found[name] = peer = DbosPeer(self.folder, name.replace(" ", "-"), url())
                self._stack.callback(peer.close)
                peer.workflows(4, 2)
            except MissingError as error:
                found[name] = str(error)
        return found

    def _sqlite(self) -> str:
        return f"sqlite:///{self.folder / 'dbos.sqlite'}"

    def _postgres(self) -> str:
        postgres = Postgres()
        self._stack.callback(postgres.close)
        self.versions["PostgreSQL"] = postgres.version()
        return postgres.url

    # --- measuring ----------------------------------------------------------------------------------

    def medians(self, measures: Mapping[str, Callable[[], float]]) -> dict[str, float]:
        """The median of each measure over all rounds. Each round takes all measures in turn."""
        found: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(self.rounds):
            for name, measure in measures.items():
                found[name].append(measure())
        return {name: statistics.median(values) for name, values in found.items()}


def quantile(values: list[float], share: float) -> float:
    """The quantile of the values for a share."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
