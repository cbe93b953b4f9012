"""Every key in Redis: its name, its type, who writes it.

    {ns}:{run}:request   string  the plan, its parameters and files; written once, by the client
    {ns}:{run}:commands  stream  cancel, undo, …: what people ask of the run; by clients
    {ns}:{run}:run       hash    the run's state; by control workers and step workers, as all below
    {ns}:{run}:steps     hash    per step `<field>:<id>`, see `Field`
    {ns}:{run}:leases    zset    attempt → when its lease ends, ms of Redis's clock
    {ns}:{run}:events    stream  everything that happened, in order
    {ns}:{run}:waits     zset    what is parked → until when at most, ms
    {ns}:{run}:log:<id>  stream  what a step or unit printed, capped
    {ns}:{run}:data:…    string  a result that is too large for the steps' hash
    {ns}:inbox           zset    runs with a request that no worker has seen yet; by clients
    {ns}:queue           zset    runs that may not begin yet → their order
    {ns}:known           hash    what admission knows of each run that waits or is live, JSON
    {ns}:order           string  counter of the order in which runs were asked for
    {ns}:admitted        zset    runs that have begun and not ended → since when, ms
    {ns}:plan:<name>     set     those of one plan
    {ns}:slot:<key>      set     those with one concurrency key
    {ns}:live            zset    live runs → when to look at them next, ms
    {ns}:runs            zset    all runs → when they were created, ms
    {ns}:ended           zset    runs that rest → since when, ms
    {ns}:tidied          string  there while nobody needs to tidy up; expires by itself
    {ns}:clock           hash    of Redis's clock: tick, when a sweeper last was at work, ms; pause, until when no lease
                                 is judged; jumps and jumped, their number and sum; by and at, the last of them; asked,
                                 how often hosts were asked for receipts; sample:<boot>, a machine's last
    {ns}:asked:<host>    set     runs that ask a host what its receipts say
    {ns}:lock:<name>     text    who holds what others share: a project of an engine; JSON, expires by its lease
    {ns}:locks           set     the names of locks that were held
    {ns}:object:<name>   hash    an entry of the object store: data (base64), sha256, size, content_type, by
    {ns}:kept-object:<run>.<step>  hash  what an entry was before that step; expires with the run
    {ns}:cache:<name>    hash    current and previous, a generation each, JSON; number, that of the last one
    {ns}:orchestrating   hash    by host, the last run that was started to bring right what is stale there
    {ns}:aside           stream  messages that no worker can take, and why; capped
    {ns}:audit           stream  who started, ended, approved what, from where, and what was refused; capped
    {ns}:counted         hash    what was counted of runs that came to rest, for metrics; by whoever scrapes
    {ns}:counted-runs    hash    by run, what of it is in there, JSON
    {ns}:reported        stream  what a client has refused, told by itself; capped
    {ns}:signed          string  ids of the keys that workers know, while there are any; expires by itself
    {ns}:told:<notice>   set     who was told of it; and a string while somebody is at telling; both expire
    {ns}:carried:<mac>   string  there once a signed message was carried out; expires by itself
    {ns}:fleet           zset    the hosts that are known → when one of their workers was last heard of, ms
    {ns}:machine:<name>  hash    a host: node:<worker> what it is, JSON; beat:<worker> when it was last heard of, its
                                 state and how many steps it is at; drained by whom, since when; last what the last
                                 worker was that ended in order; had:<queue> and own:<operation> what was ever there
    {ns}:jobs-asked      string  number: hosts are to say anew which jobs their engines show
    {ns}:jobs-seen       hash    by host, what it has said last, JSON
    {ns}:scheduled       hash    by job@host, up to when its planned times are dealt with, ms
    {ns}:ticked          string  when a worker last took a tick of some beat, ms; expires by itself
    {ns}:paused          hash    schedules, and jobs, that somebody has paused, and who
    {ns}:job:<job@host>  zset    how its last runs ended, as `run result` → when, ms
    {ns}:breakers        set     services that are down
    {ns}:breaker:<name>  hash    why one of them is, since when, until when it is left alone
    {ns}:probing:<name>  string  the run that may try it; expires by itself
    {ns}:blocked:<name>  set     the runs that wait for it
    {ns}:probe:<id>      string  a dry run's plan; a minute, deleted by its reader
    {ns}:answers:<id>    list    what workers found for it; likewise

All keys of one run lie in one hash slot; `inbox`, `live` and `runs` are hints that the sweeper
mends from the runs themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

#: The type of each key of an installation, as TYPE has it; a name that ends in a colon begins a family of keys.
TYPES: Mapping[str, str] = {
    "inbox": "zset", "queue": "zset", "known": "hash", "order": "string", "admitted": "zset", "plan:": "set",
    "slot:": "set", "live": "zset", "runs": "zset", "ended": "zset", "tidied": "string", "clock": "hash",
    "asked:": "set", "lock:": "string", "locks": "set", "object:": "hash", "kept-object:": "hash", "cache:": "hash",
    "orchestrating": "hash", "aside": "stream", "audit": "stream", "counted": "hash", "counted-runs": "hash",
    "reported": "stream", "signed": "string", "told:": "set", "carried:": "string", "fleet": "zset", "machine:": "hash",
    "jobs-asked": "string", "jobs-seen": "hash", "scheduled": "hash", "ticked": "string", "paused": "hash",
    "job:": "zset", "breakers": "set", "breaker:": "hash", "probing:": "string", "blocked:": "set",
    "probe:": "string", "answers:": "list",
}  # fmt: skip
#: The same of the keys of one run.
RUN_TYPES: Mapping[str, str] = {
    "request": "string", "commands": "stream", "run": "hash", "steps": "hash", "leases": "zset", "events": "stream",
    "waits": "zset",
}  # fmt: skip


class Field(StrEnum):
    """Fields of the steps' hash, each followed by `:<id>`; an undo's own have a `u` before them.

    The id is a step's index, or `<index>.<unit>` for a unit of a step that was fanned out.
    """

    STATUS = "s"
    #: Token of the latest attempt; grows with every claim, and never repeats.
    FENCE = "f"
    ATTEMPTS = "a"
    #: Celery task id and node of the attempt that holds the lease.
    OWNER = "w"
    #: When a message for it was first sent, and until when that message counts as under way; ms.
    SENT = "q"
    SENT_UNTIL = "d"
    #: Not before; and, of that or of what it waits for, how far ahead it was put; ms.
    NOT_BEFORE = "n"
    DELAY = "nd"
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
    #: Set where it was skipped because of what failed before it.
    TAINTED = "v"
    #: The host that it was sent to, and the item of a `foreach`, JSON.
    HOST = "h"
    ITEM = "i"
    #: The host that it was first claimed on, and that its state there was journalled.
    DONE_AT = "hd"
    JOURNALLED = "hj"
    #: What it waits for while it is parked, JSON; and who decided what, when, with which note.
    PARKED = "p"
    DECISION = "dk"
    DECIDED_BY = "dw"
    NOTE = "dn"
    DECIDED_AT = "dt"
    #: Part of the name of the key that holds its data.
    DATA_KEY = "da"
    #: The service that it found down.
    SERVICE = "sv"
    #: Of a step that was fanned out: its units, how many were dispatched, how many are not final, how many
    #: ended in which way, how many may fail, and why the first of those did.
    UNITS = "g"
    UNITS_SENT = "m"
    UNITS_LEFT = "k"
    #: Since when it has been asked after, because its outcome was not known yet; ms.
    DELAYED = "ds"
    #: Attempts that do not count for its retries: before it was begun anew, or in vain because of a service.
    UNCOUNTED = "ab"
    #: Those in vain because of a service: nothing was begun.
    BLOCKED = "bl"
    UNITS_FAILED = "kf"
    UNITS_CHANGED = "kc"
    UNITS_CANCELLED = "kx"
    UNITS_SKIPPED = "ks"
    TOLERATED = "kt"
    #: Of those: at most so many at once; canaries that have not ended, or not begun; and that one of them failed.
    AT_ONCE = "ao"
    CANARIES = "cn"
    CANARIES_HELD = "ca"
    CANARY_FAILED = "cf"
    ERROR = "er"


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
        """What every transition script is given, in the order that they expect."""
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
    def known(self) -> str:
        return f"{self.namespace}:known"

    @property
    def order(self) -> str:
        return f"{self.namespace}:order"

    @property
    def admitted(self) -> str:
        return f"{self.namespace}:admitted"

    def of_plan(self, name: str) -> str:
        return f"{self.namespace}:plan:{name}"

    def slot(self, key: str) -> str:
        return f"{self.namespace}:slot:{key}"

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
    def tidied(self) -> str:
        return f"{self.namespace}:tidied"

    @property
    def clock(self) -> str:
        return f"{self.namespace}:clock"

    def asked(self, host: str) -> str:
        return f"{self.namespace}:asked:{host}"

    @property
    def aside(self) -> str:
        return f"{self.namespace}:aside"

    @property
    def audit(self) -> str:
        return f"{self.namespace}:audit"

    @property
    def counted(self) -> str:
        return f"{self.namespace}:counted"

    @property
    def counted_runs(self) -> str:
        return f"{self.namespace}:counted-runs"

    @property
    def signed(self) -> str:
        return f"{self.namespace}:signed"

    @property
    def reported(self) -> str:
        return f"{self.namespace}:reported"

    def told(self, notice: str) -> str:
        return f"{self.namespace}:told:{notice}"

    def carried(self, mac: str) -> str:
        return f"{self.namespace}:carried:{mac}"

    @property
    def fleet(self) -> str:
        return f"{self.namespace}:fleet"

    def machine(self, host: str) -> str:
        return f"{self.namespace}:machine:{host}"

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
    def orchestrating(self) -> str:
        return f"{self.namespace}:orchestrating"

    @property
    def jobs_asked(self) -> str:
        return f"{self.namespace}:jobs-asked"

    @property
    def jobs_seen(self) -> str:
        return f"{self.namespace}:jobs-seen"

    @property
    def scheduled(self) -> str:
        return f"{self.namespace}:scheduled"

    @property
    def ticked(self) -> str:
        return f"{self.namespace}:ticked"

    @property
    def paused(self) -> str:
        return f"{self.namespace}:paused"

    def job(self, name: str) -> str:
        return f"{self.namespace}:job:{name}"

    @property
    def breakers(self) -> str:
        return f"{self.namespace}:breakers"

    def breaker(self, service: str) -> str:
        return f"{self.namespace}:breaker:{service}"

    def probing(self, service: str) -> str:
        return f"{self.namespace}:probing:{service}"

    def blocked(self, service: str) -> str:
        return f"{self.namespace}:blocked:{service}"

    def probe(self, probe_id: str) -> str:
        return f"{self.namespace}:probe:{probe_id}"

    def answers(self, probe_id: str) -> str:
        return f"{self.namespace}:answers:{probe_id}"
