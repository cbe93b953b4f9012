"""How an application starts runs and looks after them.

The client writes a request and sends one message by name; everything else is the workers'.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TextIO, TypedDict, Unpack, overload
from urllib.parse import urlsplit
from uuid import uuid4

from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from longshore.orchestration.client import dry_run, embedded, replay
from longshore.orchestration.client.replay import Replay
from longshore.orchestration.client.request import request_body
from longshore.orchestration.errors import (
    ConfigError,
    Damaged,
    PlanDenied,
    RunConflict,
    RunFailed,
    RunLost,
    ServiceDown,
    StoreUnavailable,
    UnknownName,
    UsageError,
    WaitTimeout,
    WrongType,
)
from longshore.orchestration.jobs.discovery import Board, Known, declared_in
from longshore.orchestration.jobs.plan import Choices, job_plan
from longshore.orchestration.language import identifiers, templates
from longshore.orchestration.language.targets import ANY, HostFilter
from longshore.orchestration.messaging import signing
from longshore.orchestration.messaging.canvas import Canvas, producer
from longshore.orchestration.plans.compiled import CompiledPlan, StepId
from longshore.orchestration.plans.loading import load
from longshore.orchestration.plans.model import Plan, single
from longshore.orchestration.plans.policy import denied
from longshore.orchestration.runs import events, pending_reasons, report
from longshore.orchestration.runs.events import Event
from longshore.orchestration.runs.hooks import Hooks, Teller
from longshore.orchestration.runs.job_outcome import failure
from longshore.orchestration.runs.report import Report
from longshore.orchestration.settings import Settings, get_settings
from longshore.orchestration.stacks.orchestrate import Deployed, Orchestrated
from longshore.orchestration.stacks.plan import Manner
from longshore.orchestration.states import TERMINAL, RunState
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.breakers import Breakers, services
from longshore.orchestration.store.caches import Caches
from longshore.orchestration.store.hosts import Host, Hosts, HostState, grouped, matching, meant
from longshore.orchestration.store.run_store import Store, actor, stream_order

#: What may be said of a step that nobody else knows more of.
Resolution = Literal["done", "skip", "undone", "abandon"]
#: Between two looks at what a step has printed.
_FOLLOW = 0.3


class Client:
    """Starts and finds runs.

    Without a Redis URL in the settings an embedded server with a worker is started for this user, once,
    and outlives the process. An application's Celery app may lend its connection (`app=`); its broker
    must be the Redis of the settings.
    """

    def __init__(self, settings: Settings | None = None, *, app: Celery | None = None) -> None:
        self.settings = settings or get_settings()
        if (
            app is not None
            and app.conf.broker_url
            and not _same_server(app.conf.broker_url, self.settings.broker_url())
        ):
            raise ConfigError(
                "the application's broker is another one than Longshore's",
                remedy="set LONGSHORE_REDIS_URL to the same Redis",
            )
        self._ready()
        self.store = Store(self.settings)

    def _ready(self) -> None:
        """The embedded server ends when it was idle; whoever comes back starts it again."""
        if self.settings.redis_url is None:
            embedded.ensure(self.settings)

    @cached_property
    def _producer(self) -> Celery:
        return producer(self.settings)

    def close(self) -> None:
        """Close its connections; a command that comes after opens new ones."""
        self.store.client.close()
        if "_producer" in self.__dict__:  # it is made when it is first sent with
            self._producer.close()

    # --- starting ---------------------------------------------------------------------------------

    def start(
        self,
        plan: Plan | str,
        params: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> Run:
        """Have a plan run; returns at once.

        The same `run_id` with the same plan and parameters gives the run that is there
        (`Run.attached`); with others it raises RunConflict. Raises PlanError, ParamsError, UnknownName (also
        for a host, or a label, that there is none of) before anything is stored, QueueFull where as many wait as
        may, ServiceDown where a service is and new runs are refused, StoreUnavailable where Redis does not answer
        in time.
        """
        self._ready()
        run_id = run_id if run_id is not None else _new_run_id(plan if isinstance(plan, str) else plan.name)
        identifiers.run_id(run_id)
        body = self._body(load(plan) if isinstance(plan, str) else plan, params or {}, run_id)
        compiled = CompiledPlan(Plan.model_validate(body["plan"]))
        self._refuse_without_a_key()
        self._refuse_where_a_service_is_down(compiled)
        if (unknown := self._unknown_host(compiled, body["params"])) is not None and self.store.body(run_id) is None:
            raise unknown
        there = Admission(self.store).submit(run_id, body)
        if there is not None:
            if there["digest"] != body["digest"]:
                raise RunConflict(
                    f"run {run_id!r} is there already, of another plan or with other parameters",
                    remedy=f"choose another run id, or look at it: longshore runs show {run_id}",
                )
            return self._hooked(Run(self, run_id, compiled, attached=True, digest=body["digest"]), plan)
        try:
            digest = body["digest"] if self.settings.keys else ""
            with signing.sending(self.settings):
                Canvas(self._producer, run_id, digest=digest).send_start(compiled.plan.name)
        except OperationalError as error:
            # The request is stored: the first sweep begins the run.
            raise StoreUnavailable(
                f"run {run_id} is stored, but its first message could not be sent: {error}",
                remedy=f"it begins when a worker sweeps: longshore runs watch {run_id}",
            ) from error
        return self._hooked(Run(self, run_id, compiled, digest=body["digest"]), plan)

    def _body(self, plan: Plan, params: Mapping[str, Any], run_id: str) -> dict[str, Any]:
        """The request of a run. What is refused for the harm that it could do is put into the audit trail."""
        who, where = actor(self.settings), signing.origin(self.settings)
        try:
            denied(plan, self.settings)
            body = request_body(plan, params, who, where)
            if (size := len(json.dumps(body, ensure_ascii=False).encode())) > self.settings.max_plan:
                raise PlanDenied(
                    f"the plan with its parameters and files has {size} bytes, and {self.settings.max_plan} are allowed"
                )
        except PlanDenied as error:
            audit.report_refusal(self.store, str(error), run=run_id, plan=plan.name, actor=who, origin=where)
            raise
        return body

    def _refuse_without_a_key(self) -> None:
        """Workers that check signatures would leave the run alone, and nobody would hear of it here."""
        known = self.store.call(self.store.client.get, self.store.keys.signed)
        keys = signing.ring(self.settings)
        if not known:
            return
        if keys is None:
            raise ConfigError(
                "the workers take signed requests only, and there is no key here",
                remedy="LONGSHORE_KEYS=…/client/keys.json, of the folder that longshore init made",
            )
        # One that was added just now they will know: they read their files anew.
        if not {key.id for key in keys.keys} & set(known.split(",")):
            raise ConfigError(
                f"the workers do not know the keys in {self.settings.keys}",
                remedy="take client/keys.json of the same longshore init as theirs",
            )

    def _refuse_where_a_service_is_down(self, plan: CompiledPlan) -> None:
        if self.settings.on_blocked != "refuse":
            return
        down = {breaker.service: breaker.why for breaker in Breakers(self.store).open()}
        for service in services(plan):
            if service in down:
                raise ServiceDown(
                    f"the run was not started: it needs service {service}, which is down: {down[service]}",
                    remedy="longshore breaker ls shows since when",
                )

    def _unknown_host(self, plan: CompiledPlan, params: Mapping[str, Any]) -> UnknownName | None:
        """A target that is known now and means no host: better now than after the steps before it."""
        named = [step for step in plan.steps if step.target != ANY and step.step.on_no_host == "fail"]
        hosts = Hosts(self.store).all() if named else {}
        for step in named if hosts else ():
            try:
                target = str(templates.render(step.target, {"params": dict(params)}))
                if target != ANY:
                    meant(hosts, target, always=True)
            except templates.TemplateProblem:
                continue  # known when its turn comes
            except UnknownName as error:
                return UnknownName(f"step {step.name}: target: {error.message}", remedy=error.remedy)
        return None

    @staticmethod
    def _hooked(run: Run, plan: Plan | str) -> Run:
        run._hooks = plan._hooks if isinstance(plan, Plan) else None
        return run

    def run_operation(
        self,
        operation: str,
        /,
        *,
        run_id: str | None = None,
        target: str = "_any",
        inside: str | None = None,
        timeout: float | str | None = None,
        **params: Any,
    ) -> Run:
        """Have one operation run, as a run of one step; returns at once. Keywords are its parameters.

        `inside` is a container's name. Raises as `start` does.
        """
        return self.start(single(operation, params, target=target, inside=inside, timeout=timeout), run_id=run_id)

    # --- jobs -------------------------------------------------------------------------------------

    def jobs(self, *, files: Iterable[str | Path] = ()) -> Known:
        """The jobs as labels and files describe them now: each host with an engine is asked.

        `files` beside those of the setting `jobs`. WaitTimeout where no host answers, ConfigError for a bad file.
        """
        self._ready()
        paths = [Path(name) for name in self.settings.jobs.split(":") if name]
        return Board(self.store).look(declared_in([*paths, *map(Path, files)]))

    def plan_job(
        self, name: str, *, host: str | None = None, files: Iterable[str | Path] = (), **choices: Unpack[JobChoices]
    ) -> Plan:
        """The plan that a job is run by, to be shown or rehearsed (`dry_run`). JobNotFound if there is none."""
        return job_plan(self.jobs(files=files).job(name, host), Choices(**choices))

    def start_job(
        self,
        name: str,
        *,
        host: str | None = None,
        run_id: str | None = None,
        files: Iterable[str | Path] = (),
        **choices: Unpack[JobChoices],
    ) -> Run:
        """Have a job run; returns at once. Raises as `plan_job` and `start`."""
        return self.start(self.plan_job(name, host=host, files=files, **choices), run_id=run_id)

    def run_job(
        self,
        name: str,
        *,
        host: str | None = None,
        run_id: str | None = None,
        files: Iterable[str | Path] = (),
        log: Callable[[str], object] | TextIO | None = None,
        check: bool = True,
        **choices: Unpack[JobChoices],
    ) -> Report:
        """Run a job to its end: stop the stack, run the worker, start the stack again. `report.job` has what became
        of it.

        `timeout`, `stop_timeout`, `start_timeout` (seconds, or "90s") replace the job's own; `keep_stopped` leaves
        the stack as the worker leaves it; `keep_failed_worker` leaves a worker that failed. `log` is told each line
        of the worker's output as it comes: a function, or a file. With `check`, what did not end as asked is raised
        as a JobFailed: ImageMissing, StopFailed, WorkerFailed, JobTimeout, JobCancelled or StartFailed.
        """
        run = self.start_job(name, host=host, run_id=run_id, files=files, **choices)
        tell = _lines_to(log) if log is not None and not callable(log) else log
        while True:
            try:
                if tell is not None:
                    for stream, line in run.output("work", follow=True):
                        if stream:
                            tell(line)
                done = run.wait()
                break
            except RunLost:
                run = self.found_again(run.id)
        if check and (error := failure(done)) is not None:
            raise error
        return done

    def found_again(self, run_id: str, timeout: float = 60.0) -> Run:
        """The run of a job that Redis has lost, once a worker has made it anew out of the labels of its container.

        RunLost where nobody does in `timeout` seconds: its container had not been made yet, say.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.store.body(run_id) is not None:
                return self.get(run_id)
            time.sleep(0.2)
        raise RunLost(
            f"run {run_id} is gone: Redis has lost it, and no worker has found a container of it",
            remedy="longshore doctor shows whether Redis keeps its data",
        )

    # --- what is deployed ---------------------------------------------------------------------------

    def deployed(self) -> Deployed:
        """What is deployed on the hosts: check, rebuild, select, restart, one by one."""
        self._ready()
        return Deployed(self)

    def orchestrate(
        self,
        hosts: Iterable[str] = (),
        *,
        labels: Iterable[str] = (),
        image: str | None = None,
        registry: bool = False,
        run_id: str | None = None,
        **manner: Unpack[MannerChoices],
    ) -> Orchestrated:
        """Find the services that do not run as their files and images say, and bring them right; waits for the end.

        `hosts`, `labels` (`key`, `key=value`) and `image` say which; `registry` asks registries whether tags have
        moved. `max_parallel` stacks at once, `canary` stacks first; `on_failure` is `keep` (each stack that fails goes
        back by itself) or `undo` (all go back). Several at once share one rebuild and one run. What ended otherwise
        than asked is told by `exit_code`, as that of the command; WaitTimeout where no host is there to be asked.
        """
        return self.deployed().orchestrate(
            hosts, labels=labels, image=image, registry=registry, run_id=run_id, manner=Manner(**manner)
        )

    def cached(self, name: str) -> Any | None:
        """What a `cache.rebuild.execute` step has kept under that name; None where nothing valid is there."""
        self._ready()
        caches = Caches(self.store)
        found = caches.get(name)
        return None if found.entry is None or found.wrong(caches.now()) else found.entry.value

    # --- finding ----------------------------------------------------------------------------------

    def get(self, run_id: str) -> Run:
        """A run by its id; UnknownName if there is none."""
        self._ready()
        body = self.store.body(run_id)
        if body is None:
            raise UnknownName(f"no run {run_id!r}", remedy="longshore runs ls shows the latest")
        plan = CompiledPlan(Plan.model_validate(body["plan"]), lenient=True)
        return Run(self, run_id, plan, attached=True, digest=str(body.get("digest", "")))

    def runs(self, limit: int = 50) -> list[Run]:
        """The latest runs, newest first."""
        found = []
        for run_id in self.store.runs(limit):
            try:
                found.append(self.get(run_id))
            except (UnknownName, Damaged, WrongType, ValidationError):  # doctor names a damaged one
                continue
        return found

    # --- doing again ------------------------------------------------------------------------------

    def replay(
        self, *, host: str = "", service: str = "", since: datetime | None = None, run_id: str | None = None
    ) -> tuple[Run | None, Replay]:
        """Do again, in a run of its own, what runs had done on a host or at a service that has lost its data.

        `since`: only runs created from then on. Returns that run, None where there was nothing, and what it is
        made of: `Replay.left_out` names what cannot be done again. UsageError as `replay.collect`.
        """
        self._ready()
        found = self.find_deeds(host=host, service=service, since=since)
        try:
            run = self.start(found.plan, found.params, run_id=run_id) if found.plan.steps else None
        finally:
            found.close()
        return run, found

    def find_deeds(self, *, host: str = "", service: str = "", since: datetime | None = None) -> Replay:
        """What `replay` would do; nothing is changed. Has to be closed."""
        return replay.collect(
            self.store, host=host, service=service, since=round(since.timestamp() * 1000) if since else 0
        )

    # --- rehearsing -------------------------------------------------------------------------------

    def dry_run(self, plan: Plan | str, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """What each step would do, in the order of the levels; nothing is changed.

        Each entry: `step, op, level, host, action, changed, undo, impossible`. The workers of each step's
        queue are asked; what they need lies in Redis under a name of its own, and is taken away again.
        Raises WaitTimeout where nobody answers for a queue.
        """
        self._ready()
        checked = load(plan) if isinstance(plan, str) else plan
        denied(checked, self.settings)
        body = request_body(checked, params or {}, actor(self.settings))
        self._refuse_without_a_key()
        with signing.sending(self.settings):
            return dry_run.dry_run(self.store, self._producer, CompiledPlan(checked), body)

    # --- hosts --------------------------------------------------------------------------------------

    @overload
    def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: None = None, **conditions: Any
    ) -> list[Host]: ...

    @overload
    def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: str, **conditions: Any
    ) -> dict[str, list[Host]]: ...

    def hosts(
        self, condition: HostFilter | None = None, /, *, group_by: str | None = None, **conditions: Any
    ) -> list[Host] | dict[str, list[Host]]:
        """The hosts that are like that, in the order of their names; without a condition, all that have workers.

        Keywords are those of `HostFilter`: `os="debian", arch=…, min_cpu=…, min_memory="2GiB", label="role:web",
        fact={"rack": "12"}, healthy=True`. `group_by` is a fact's name, or `label:KEY`; the hosts that have no
        such value are in no group. Raises UsageError for a condition that is none.
        """
        self._ready()
        try:
            wanted = condition or HostFilter.model_validate(conditions)
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(map(str, item["loc"])) or "condition"
            raise UsageError(f"hosts: {where}: {item['msg'].removeprefix('Value error, ')}") from None
        there = [host for host in Hosts(self.store).all().values() if host.state is not HostState.STOPPED]
        if group_by is not None and not isinstance(group_by, str):
            raise UsageError(f"hosts: group_by: {group_by!r} is no name of a fact, nor label:KEY")
        found = matching(there, wanted)
        return found if group_by is None else grouped(found, group_by)

    def drain(self, host: str, *, stop: bool = False) -> Host:
        """Have a host take no new work; what runs there ends, and undo and what always runs are still done.

        `stop`: its workers end after that. UnknownName for a host that is not known.
        """
        self._ready()
        return Hosts(self.store).drain(host, actor(self.settings), stop=stop)

    def undrain(self, host: str) -> Host:
        """Have a host take work again. UnknownName for a host that is not known."""
        self._ready()
        return Hosts(self.store).undrain(host)


class MannerChoices(TypedDict, total=False):
    """How stale stacks are brought right: see `Client.orchestrate`. Times in seconds."""

    max_parallel: int | None
    canary: int | None
    on_failure: Literal["keep", "undo"]
    healthy_deadline: float
    min_healthy_time: float


class JobChoices(TypedDict, total=False):
    """What one start of a job may have otherwise than the job says: see `Client.run_job`."""

    timeout: float | str | None
    stop_timeout: float | str | None
    start_timeout: float | str | None
    keep_stopped: bool
    keep_failed_worker: bool


def _lines_to(file: TextIO) -> Callable[[str], object]:
    def tell(line: str) -> None:
        file.write(f"{line}\n")
        file.flush()

    return tell


class Run:
    """One run, as a client sees it. `attached` where it was there before."""

    def __init__(
        self, client: Client, run_id: str, plan: CompiledPlan, *, attached: bool = False, digest: str = ""
    ) -> None:
        self.client = client
        self.id = run_id
        self.plan = plan
        self.attached = attached
        self._digest = digest
        #: Those of the plan, where this process has it as an object.
        self._hooks: Hooks | None = None

    @property
    def run_id(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    def state(self) -> RunState:
        return RunState(self.client.store.state(self.id) or RunState.PENDING)

    def _state_there(self) -> RunState:
        """The state of a run that is waited for; RunLost where there is none any more."""
        state = self.client.store.state(self.id)
        if state is None and self.client.store.body(self.id) is None:
            raise RunLost(
                f"run {self.id} is gone: it was pruned, or Redis has lost it",
                remedy="longshore doctor shows whether Redis keeps its data",
            )
        return RunState(state or RunState.PENDING)

    def unserved(self) -> list[str]:
        """The queues that it needs and that no worker takes new work from now: it waits for one."""
        if self.client.settings.redis_url is None:
            return []  # the embedded default starts its worker by itself
        return pending_reasons.unserved(self.client.store, self.plan)

    def report(self) -> Report:
        """How it stands; complete when it has ended."""
        store = self.client.store
        run, steps = store.everything(self.id)
        if self._digest and run.get("digest", self._digest) != self._digest:
            # Redis has lost it, and it was made anew; with another plan.
            fresh = self.client.get(self.id)
            self.plan, self._digest = fresh.plan, fresh._digest
        if run.get("state") not in TERMINAL:
            steps |= pending_reasons.reasons(store, self.plan, steps)
        return report.build(self.id, self.plan, run, steps, store.now())

    def events(self, after: str = "0-0") -> list[Event]:
        """What happened so far, after a cursor."""
        return events.read(self.client.store, self.id, self.plan, after)

    def watch(self, after: str = "0-0", *, hooks: Hooks | None = None) -> Iterator[Event]:
        """Events as they come, until the run rests. Reading changes nothing.

        `hooks`, and those of the plan that the run was started with, are called as their events come, each
        once and in order, from `after` on.
        """
        watcher = _Watcher(self, hooks, after)
        for event in self._watch(after):
            watcher.tell(event)
            yield event

    def _watch(self, after: str) -> Iterator[Event]:
        for event in events.follow(self.client.store, self.id, self.plan, after):
            if event is not None:
                yield event
            # An event says that it ended; without one, the state does: a watcher may come late.
            if (event is None or event.name == "run_ended") and self._state_there() in TERMINAL:
                yield from self.events(event.id) if event is not None else ()
                return

    def wait(self, timeout: float | None = None, *, check: bool = False, hooks: Hooks | None = None) -> Report:
        """The report, once the run rests. Raises WaitTimeout after `timeout` seconds; the run goes on.

        RunLost where it is gone. With `check`, raises RunFailed unless everything went as asked. `hooks` as for
        `watch`.
        """
        watcher = None
        if hooks is not None or self._hooks is not None:
            watcher = _Watcher(self, hooks)
        store = self.client.store
        began = time.monotonic()
        until = None if timeout is None else began + timeout
        while True:
            # Before the state: what happens after it was looked at must wake the reader.
            newest = store.newest_event(self.id)
            if self._state_there() in TERMINAL:
                break
            left = 2.0 if until is None else min(2.0, until - time.monotonic())
            if left <= 0:
                why = self.report().error
                raise WaitTimeout(
                    f"run {self.id} has not ended in {timeout:g} s{f' ({why.message})' if why else ''}",
                    remedy=f"it goes on: longshore runs watch {self.id}",
                )
            if watcher is not None:
                watcher.tell_what_is_new()
            if store.read_events(self.id, newest, block_ms=max(1, round(left * 1000)), count=1):
                # A run of many steps has an event every millisecond: looking at each would slow it down.
                time.sleep(min(0.05, (time.monotonic() - began) / 50))
        if watcher is not None:
            watcher.tell_what_is_new()
        done = self.report()
        if check and done.exit_code:
            what = done.error.message if done.error else done.summary
            raise RunFailed(f"run {self.id} ended {done.state}: {what}", report=done, exit_code=done.exit_code)
        return done

    def log(self, step: str) -> Iterator[str]:
        """What a step printed: its last thousand lines. UnknownName for a step that the plan does not have."""
        return (line for _, line in self.output(step))

    def output(self, step: str, *, follow: bool = False) -> Iterator[tuple[str, str]]:
        """The same, each line with its stream: stdout, stderr, or '' for what the operation itself says.

        `follow`: as they come, until the run rests.
        """
        step_id, after = self._id_of(step), "-"
        while True:
            rests = not follow or self.state() in TERMINAL
            for entry, stream, line in self.client.store.log(self.id, step_id, after):
                after = entry
                yield stream, line
            if rests:
                return
            time.sleep(_FOLLOW)

    def cancel(self, reason: str = "", *, keep: bool = False) -> str:
        """Ask for its end: nothing new begins, what runs is asked to stop, and what was done is undone
        (`keep`: stays). Returns at once, with the command's id for `answer`.
        """
        return self._command("cancel", reason, keep=keep)

    def undo(self, reason: str = "") -> str:
        """Ask that a run that rests be taken back, or that a failed undo be tried again. Returns at once,
        with the command's id for `answer`.
        """
        return self._command("undo", reason)

    def resume(self, reason: str = "") -> str:
        """Ask that it go on: from where it is suspended, from the first step that is not done (`failed`,
        `partial`), or with the undos that failed (`undo_failed`). Returns at once, with the command's id for
        `answer`.
        """
        return self._command("resume", reason)

    def resolve(self, step: str, word: Resolution, note: str = "") -> str:
        """Say what became of a step, as one who knows better: `done` (it happened), `skip` (go on as if it were
        not needed), `undone` (taken back by hand, or it never happened), `abandon` (leave it as it is, and name
        it). Returns at once, with the command's id for `answer`. UnknownName for a step that the plan does not
        have.
        """
        return self._command("resolve", note, step=self._id_of(step), resolved_as=word)

    def prune(self, timeout: float = 30.0) -> str:
        """Have a run that rests forgotten, with all that is kept of it: `done`, or why it was not. Afterwards it
        can no longer be undone. WaitTimeout if no worker took it; with a `timeout` of 0 it is asked for only.
        """
        command_id = self._command("prune", "")
        return self.answer(command_id, timeout) if timeout else ""

    def approve(self, step: str, note: str = "") -> str:
        """Say that a step that waits for an approval may go on. Returns at once, with the command's id for
        `answer`. UnknownName for a step that the plan does not have.
        """
        return self._command("approve", note, step=self._id_of(step))

    def reject(self, step: str, note: str = "") -> str:
        """The opposite: the step fails, and with it what depends on it."""
        return self._command("reject", note, step=self._id_of(step))

    def _id_of(self, step: str) -> StepId:
        try:
            return self.plan.id_of(step)
        except KeyError:
            raise UnknownName(
                f"run {self.id} has no step {step!r}", remedy=f"it has {', '.join(self.plan.index)}"
            ) from None

    def answer(self, command_id: str, timeout: float = 30.0) -> str:
        """What became of a command: `done`, or why nothing was done. WaitTimeout if no worker took it."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            fields = self.client.store.fields(self.id)
            if not fields and self.client.store.body(self.id) is None:
                return "done"  # it was forgotten, as asked
            if stream_order(fields.get("cmd", "0-0")) >= stream_order(command_id):
                return fields.get("answer", "done")
            time.sleep(0.05)
        raise WaitTimeout("no worker has taken the command yet", remedy="it is kept; start one: longshore worker")

    def _command(
        self, kind: str, reason: str, *, keep: bool = False, step: StepId | None = None, resolved_as: str = ""
    ) -> str:
        command_id = self.client.store.command(
            self.id, kind, reason=reason, keep=keep, step=step, resolved_as=resolved_as
        )
        try:
            with signing.sending(self.client.settings):
                Canvas(self.client._producer, self.id).send_advance(self.plan.plan.name)
        except OperationalError as error:
            raise StoreUnavailable(
                f"the {kind} of run {self.id} is stored, but its message could not be sent: {error}",
                remedy="it is carried out when a worker sweeps",
            ) from error
        return command_id


def _same_server(one: str, other: str) -> bool:
    """Whether two URLs are of the same database, however they are written."""

    def parts(url: str) -> tuple[str, int, str]:
        found = urlsplit(url)
        host = {"localhost": "127.0.0.1"}.get(found.hostname or "", found.hostname or "")
        path = found.path.strip("/")
        return f"{found.scheme} {host}", found.port or 6379, path or ("" if "socket" in found.scheme else "0")

    return one == other or parts(one) == parts(other)


class _Watcher:
    """Tells hooks of what is new, once each and in order."""

    def __init__(self, run: Run, hooks: Hooks | None, after: str = "0-0") -> None:
        self._run = run
        self._told = [each for each in (run._hooks, hooks) if each is not None]
        self._tellers = [Teller(run.client.store, run.id, run.plan) for _ in self._told]
        self.cursor = after
        # What came before the cursor is taken note of, and not told again.
        earlier = run.events() if self._told and after != "0-0" else []
        for event in earlier:
            if stream_order(event.id) <= stream_order(after):
                for teller in self._tellers:
                    teller.note(event)

    def tell(self, event: Event) -> None:
        for teller, hooks in zip(self._tellers, self._told, strict=True):
            teller.tell(event, hooks)
        self.cursor = event.id

    def tell_what_is_new(self) -> None:
        for event in self._run.events(self.cursor):
            self.tell(event)


def _new_run_id(name: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._@-]", "-", Path(name).stem if "/" in name else name)[:80] or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"
