"""Every key in Redis: its name, its type and its writer.

    {ns}:{run}:request            string  the plan, its parameters and files; written once, by the client
    {ns}:{run}:commands           stream  cancel, undo and the other commands of a run; by clients
    {ns}:{run}:run                hash    the run's state; by control workers and step workers, as all below
    {ns}:{run}:steps              hash    for each step `<field>:<id>`, see `Field`
    {ns}:{run}:leases             zset    attempt → end of its lease, ms of Redis's clock
    {ns}:{run}:events             stream  the events of the run, in order
    {ns}:{run}:waits              zset    steps that wait for an external event → their time limit, ms
    {ns}:{run}:log:<id>           stream  output of a step or unit, capped
    {ns}:{run}:data:…             string  a result that is too large for the steps' hash
    {ns}:inbox                    zset    runs whose request no worker has read yet; by clients
    {ns}:queue                    zset    pending runs → their order of admission
    {ns}:admission-requests       hash    by run that is pending or live, its admission request, JSON
    {ns}:admission-order          string  counter of the order of admission
    {ns}:admitted                 zset    admitted runs that have not ended → time of admission, ms
    {ns}:plan:<name>              set     the admitted runs of one plan
    {ns}:slot:<key>               set     the admitted runs with one concurrency key
    {ns}:new                      zset    pending runs that no worker has read → their order of admission
    {ns}:waiting:<limit>          zset    pending runs that this limit has refused → their order of admission
    {ns}:waiting-queues           set     the keys of these queues
    {ns}:live                     zset    live runs → time of their next sweep, ms
    {ns}:runs                     zset    all runs → time of creation, ms
    {ns}:ended                    zset    ended runs → time of their end, ms
    {ns}:purged                   string  set after a purge of ended runs; expires when the next one may begin
    {ns}:clock                    hash    of Redis's clock: tick, last sweep, ms; pause, time until which no lease
                                          expires; jumps and jumped, their number and sum; by and at, the last of them;
                                          asked, number of receipt questions; sample:<boot>, a machine's last sample
    {ns}:asked:<host>             set     runs that wait for a host's receipts
    {ns}:lock:<name>              string  holder of a lock, JSON; expires with its lease
    {ns}:locks                    set     the names of locks that were held
    {ns}:object:<name>            hash    an entry of the object store: data (base64), sha256, size, content_type, by
    {ns}:kept-object:<run>.<step> hash    an entry as it was before that step; expires with the run
    {ns}:cache:<name>             hash    current and previous, a generation each, JSON; number, that of the last one
    {ns}:active-rollouts          hash    by host, the last run of a rollout
    {ns}:dead-letters             stream  messages and entries that no worker can process, with the reason; capped
    {ns}:audit                    stream  commands of people and refused requests, with actor and origin; capped
    {ns}:counters                 hash    totals over all runs, for metrics; by the process that is scraped
    {ns}:counted-runs             hash    by run, its part of the totals, JSON
    {ns}:client-reports           stream  requests that a client has refused, reported by itself; capped
    {ns}:signing-keys             string  ids of the keys that workers know, while there are any; expires by itself
    {ns}:notified:<notice>        set     notifiers that have delivered a notice; expires
    {ns}:accepted:<mac>           string  set once a signed message was carried out; expires by itself
    {ns}:hosts                    zset    known hosts → last heartbeat of one of their workers, ms
    {ns}:host:<name>              hash    node:<worker>, its registration, JSON; beat:<worker>, its last heartbeat,
                                          state and number of steps; drained, by whom and since when; last, the worker
                                          that ended last in order; had:<queue> and own:<operation>, ever served there
    {ns}:job-questions            string  number of the last question which jobs the engines of hosts show
    {ns}:job-snapshots            hash    by host, its last answer, JSON
    {ns}:schedule-marks           hash    by schedule, the time up to which its planned times are processed, ms
    {ns}:last-tick                string  time at which a worker last took a tick of a beat, ms; expires by itself
    {ns}:paused-schedules         hash    by schedule or job, who has paused it
    {ns}:job:<job@host>           zset    ends of its last runs, as `run result` → time, ms
    {ns}:breakers                 set     services that are down
    {ns}:breaker:<name>           hash    reason, time since when, and time until which it stays open
    {ns}:half-open:<name>         string  the run that may try the service; expires by itself
    {ns}:blocked:<name>           set     runs that wait for the service
    {ns}:dry-run:<id>             string  the plan of a dry run; lives a minute, deleted by its reader
    {ns}:dry-run-answers:<id>     list    answers of workers to it; likewise

All keys of one run lie in one hash slot; `inbox`, `live` and `runs` are indices that the sweeper
rebuilds from the runs themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

#: The type of each key of an installation, in the words of TYPE; a name that ends in a colon is a prefix of keys.
TYPES: Mapping[str, str] = {
    "inbox": "zset", "queue": "zset", "admission-requests": "hash", "admission-order": "string", "admitted": "zset",
    "plan:": "set", "slot:": "set", "waiting:": "zset", "waiting-queues": "set", "new": "zset", "live": "zset",
    "runs": "zset", "ended": "zset", "purged": "string",
    "clock": "hash", "asked:": "set", "lock:": "string", "locks": "set", "object:": "hash", "kept-object:": "hash",
    "cache:": "hash", "active-rollouts": "hash", "dead-letters": "stream", "audit": "stream", "counters": "hash",
    "counted-runs": "hash", "client-reports": "stream", "signing-keys": "string", "notified:": "set",
    "accepted:": "string", "hosts": "zset", "host:": "hash", "job-questions": "string", "job-snapshots": "hash",
    "schedule-marks": "hash", "last-tick": "string", "paused-schedules": "hash", "job:": "zset", "breakers": "set",
    "breaker:": "hash", "half-open:": "string", "blocked:": "set", "dry-run:": "string", "dry-run-answers:": "list",
}  # fmt: skip
#: The type of each key of one run.
RUN_TYPES: Mapping[str, str] = {
    "request": "string", "commands": "stream", "run": "hash", "steps": "hash", "leases": "zset", "events": "stream",
    "waits": "zset",
}  # fmt: skip


class Field(StrEnum):
    """The fields of the steps' hash, each followed by `:<id>`; fields of an undo have the prefix `u`.

    The id is the index of a step, or `<index>.<unit>` for a unit of a step that was fanned out.
    """

    STATUS = "status"
    #: The fencing token of the latest attempt; grows with every claim and never repeats.
    FENCE = "fence"
    ATTEMPTS = "attempts"
    #: Celery task id and node of the attempt that holds the lease.
    OWNER = "owner"
    #: When its message was first sent, by default as its level opened; and until when the message counts as under way,
    #: one lease by default; ms.
    SENT = "sent"
    SENT_UNTIL = "sent_until"
    #: The earliest time of the next attempt; and the length of that delay, or of the external wait; ms.
    NOT_BEFORE = "not_before"
    DELAY = "delay"
    #: The number of repeated messages, and of lost workers.
    RESENT = "resent"
    #: Of an application's task: the fence of the attempt, and the time until which its message counts as in flight.
    TASK_SENT_UNTIL = "task_sent_until"
    LOST = "lost"
    STARTED = "started"
    ENDED = "ended"
    TASK_IDS = "task_ids"
    #: The rendered parameters, the state recorded for the undo, and the outcome; JSON.
    RENDERED = "rendered"
    BEFORE = "before"
    OUTCOME = "outcome"
    #: Why the step was skipped or cancelled, or cannot be undone.
    REASON = "reason"
    #: Set where the outcome proves that the step had no effect.
    NO_EFFECT = "no_effect"
    #: Set where a failed dependency caused the skip.
    TAINTED = "tainted"
    #: The host that the step was dispatched to, and the item of a `foreach`, JSON.
    HOST = "host"
    ITEM = "item"
    #: The host of the first claim, and whether the state there was journalled.
    DONE_AT = "done_at"
    JOURNALLED = "journalled"
    #: The external wait of a parked step, JSON; and the decision on it, its actor, note and time.
    PARKED = "wait"
    #: Of an application's task: the fence and the number of the next delivery that may begin, and `ended` at its end;
    #: and the error of the task under a fence, JSON.
    BEGUN = "begun"
    TASK_ERROR = "task_error"
    DECISION = "decision"
    DECIDED_BY = "decided_by"
    NOTE = "note"
    DECIDED_AT = "decided_at"
    #: Part of the name of the key that holds the data of the step.
    DATA_KEY = "data_key"
    #: The service that the last attempt found down.
    SERVICE = "service"
    #: Of a step that was fanned out: the numbers of its units, of the dispatched and of the unfinished ones; below, the
    #: numbers by outcome, the number of tolerated failures, and the error of the first failure.
    UNITS = "fan_out"
    UNITS_SENT = "fan_out_sent"
    UNITS_LEFT = "fan_out_left"
    #: Of a wide one: the decision and the number of the items stored so far; the units to dispatch with no wait.
    UNITS_STORED = "fan_out_stored"
    UNITS_DUE = "fan_out_due"
    #: Since when attempts have polled an outcome that was not known yet; ms.
    DELAYED = "delayed"
    #: Attempts that do not count against the retry limit: before a resume, or blocked by a service.
    UNCOUNTED = "free_attempts"
    #: Attempts blocked by a service, which did not act.
    BLOCKED = "blocked"
    UNITS_FAILED = "fan_out_failed"
    UNITS_CHANGED = "fan_out_changed"
    UNITS_CANCELLED = "fan_out_cancelled"
    UNITS_SKIPPED = "fan_out_skipped"
    TOLERATED = "tolerated"
    #: Of a step that was fanned out: the limit of concurrent units; canaries unfinished, and held back; one failed.
    AT_ONCE = "at_once"
    CANARIES = "canaries"
    CANARIES_HELD = "canaries_held"
    CANARY_FAILED = "canary_failed"
    ERROR = "error"


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

    @property
    def waits(self) -> str:
        return self._key("waits")

    def log(self, step_id: int | str) -> str:
        return self._key(f"log:{step_id}")

    def data(self, name: str) -> str:
        return self._key(f"data:{name}")

    def record(self) -> list[str]:
        """The keys of the record, in the order that every transition script expects."""
        return [self.run, self.steps, self.leases, self.events, self.waits]


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
    def queue(self) -> str:
        return f"{self.namespace}:queue"

    @property
    def admission_requests(self) -> str:
        return f"{self.namespace}:admission-requests"

    @property
    def admission_order(self) -> str:
        return f"{self.namespace}:admission-order"

    @property
    def admitted(self) -> str:
        return f"{self.namespace}:admitted"

    def of_plan(self, name: str) -> str:
        return f"{self.namespace}:plan:{name}"

    def slot(self, key: str) -> str:
        return f"{self.namespace}:slot:{key}"

    @property
    def new(self) -> str:
        return f"{self.namespace}:new"

    @property
    def waiting_queues(self) -> str:
        return f"{self.namespace}:waiting-queues"

    def waiting(self, limit: str) -> str:
        return f"{self.namespace}:waiting:{limit}"

    @property
    def live(self) -> str:
        return f"{self.namespace}:live"

    @property
    def runs(self) -> str:
        return f"{self.namespace}:runs"

    @property
    def ended(self) -> str:
        return f"{self.namespace}:ended"

    @property
    def purged(self) -> str:
        return f"{self.namespace}:purged"

    @property
    def clock(self) -> str:
        return f"{self.namespace}:clock"

    def asked(self, host: str) -> str:
        return f"{self.namespace}:asked:{host}"

    @property
    def dead_letters(self) -> str:
        return f"{self.namespace}:dead-letters"

    @property
    def audit(self) -> str:
        return f"{self.namespace}:audit"

    @property
    def counters(self) -> str:
        return f"{self.namespace}:counters"

    @property
    def counted_runs(self) -> str:
        return f"{self.namespace}:counted-runs"

    @property
    def signing_keys(self) -> str:
        return f"{self.namespace}:signing-keys"

    @property
    def client_reports(self) -> str:
        return f"{self.namespace}:client-reports"

    def notified(self, notice: str) -> str:
        return f"{self.namespace}:notified:{notice}"

    def accepted(self, mac: str) -> str:
        return f"{self.namespace}:accepted:{mac}"

    @property
    def hosts(self) -> str:
        return f"{self.namespace}:hosts"

    def host(self, host: str) -> str:
        return f"{self.namespace}:host:{host}"

    def lock(self, name: str) -> str:
        return f"{self.namespace}:lock:{name}"

    @property
    def locks(self) -> str:
        return f"{self.namespace}:locks"

    def object(self, name: str) -> str:
        return f"{self.namespace}:object:{name}"

    def kept_object(self, op_id: str) -> str:
        return f"{self.namespace}:kept-object:{op_id}"

    def cache(self, name: str) -> str:
        return f"{self.namespace}:cache:{name}"

    @property
    def active_rollouts(self) -> str:
        return f"{self.namespace}:active-rollouts"

    @property
    def job_questions(self) -> str:
        return f"{self.namespace}:job-questions"

    @property
    def job_snapshots(self) -> str:
        return f"{self.namespace}:job-snapshots"

    @property
    def schedule_marks(self) -> str:
        return f"{self.namespace}:schedule-marks"

    @property
    def last_tick(self) -> str:
        return f"{self.namespace}:last-tick"

    @property
    def paused_schedules(self) -> str:
        return f"{self.namespace}:paused-schedules"

    def job(self, name: str) -> str:
        return f"{self.namespace}:job:{name}"

    @property
    def breakers(self) -> str:
        return f"{self.namespace}:breakers"

    def breaker(self, service: str) -> str:
        return f"{self.namespace}:breaker:{service}"

    def half_open(self, service: str) -> str:
        return f"{self.namespace}:half-open:{service}"

    def blocked(self, service: str) -> str:
        return f"{self.namespace}:blocked:{service}"

    def dry_run(self, dry_run_id: str) -> str:
        return f"{self.namespace}:dry-run:{dry_run_id}"

    def dry_run_answers(self, dry_run_id: str) -> str:
        return f"{self.namespace}:dry-run-answers:{dry_run_id}"
