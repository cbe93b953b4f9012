"""Every key in Redis: its name, its type, who writes it.

    {ns}:{run}:request   string  the plan, its parameters and files; written once, by the client
    {ns}:{run}:commands  stream  cancel, undo, …: what people ask of the run; by clients
    {ns}:{run}:run       hash    the run's state; by control workers and step workers, as all below
    {ns}:{run}:steps     hash    per step `<field>:<index>`, see `Field`
    {ns}:{run}:leases    zset    attempt → when its lease ends, ms of Redis's clock
    {ns}:{run}:events    stream  everything that happened, in order
    {ns}:{run}:log:<i>   stream  what step i printed, capped
    {ns}:inbox           zset    runs with a request that no worker has seen yet; by clients
    {ns}:live            zset    live runs → when to look at them next, ms
    {ns}:runs            zset    all runs → when they were created, ms
    {ns}:tick            string  when a sweeper last was at work, ms
    {ns}:pause           string  until when no lease is judged, ms
    {ns}:probe:<id>      string  a dry run's plan; a minute, deleted by its reader
    {ns}:answers:<id>    list    what workers found for it; likewise

All keys of one run lie in one hash slot; `inbox`, `live` and `runs` are hints that the sweeper
mends from the runs themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Field(StrEnum):
    """Fields of the steps' hash, each followed by `:<index>`; an undo's own have a `u` before them."""

    STATUS = "s"
    #: Token of the latest attempt; grows with every claim, and never repeats.
    FENCE = "f"
    ATTEMPTS = "a"
    #: Celery task id and node of the attempt that holds the lease.
    OWNER = "w"
    #: When a message for it was first sent, and until when that message counts as under way; ms.
    SENT = "q"
    SENT_UNTIL = "d"
    #: Not before; ms.
    NOT_BEFORE = "n"
    #: How often its message was sent again, and how often its worker was lost.
    RESENT = "x"
    LOST = "l"
    STARTED = "b"
    ENDED = "e"
    TASK_IDS = "t"
    #: JSON: the parameters as rendered, what undo needs, what the attempt recorded.
    RENDERED = "r"
    BEFORE = "j"
    OUTCOME = "o"
    #: Why it was skipped, cancelled, or cannot be undone.
    REASON = "y"
    #: Set where the outcome proves that there was no effect.
    NO_EFFECT = "z"


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run."""

    namespace: str
    run_id: str

    def _key(self, name: str) -> str:
        return f"{self.namespace}:{{{self.run_id}}}:{name}"

    @property
    def request(self) -> str:
        return self._key("request")

    @property
    def commands(self) -> str:
        return self._key("commands")

    @property
    def run(self) -> str:
        return self._key("run")

    @property
    def steps(self) -> str:
        return self._key("steps")

    @property
    def leases(self) -> str:
        return self._key("leases")

    @property
    def events(self) -> str:
        return self._key("events")

    def log(self, index: int) -> str:
        return self._key(f"log:{index}")

    def record(self) -> list[str]:
        """What every transition script is given, in the order that they expect."""
        return [self.run, self.steps, self.leases, self.events]


@dataclass(frozen=True)
class Keys:
    """The keys of an installation."""

    namespace: str

    def of(self, run_id: str) -> RunKeys:
        return RunKeys(self.namespace, run_id)

    @property
    def inbox(self) -> str:
        return f"{self.namespace}:inbox"

    @property
    def live(self) -> str:
        return f"{self.namespace}:live"

    @property
    def runs(self) -> str:
        return f"{self.namespace}:runs"

    @property
    def tick(self) -> str:
        return f"{self.namespace}:tick"

    @property
    def pause(self) -> str:
        return f"{self.namespace}:pause"

    def probe(self, probe_id: str) -> str:
        return f"{self.namespace}:probe:{probe_id}"

    def answers(self, probe_id: str) -> str:
        return f"{self.namespace}:answers:{probe_id}"
