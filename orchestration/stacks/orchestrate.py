"""The facade of stacks: check caches, rebuild them, select stale services and restart them; singly or all in one.

A rebuild does not clear drift: every selection finds a stale service again until its restart succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

from longshore.orchestration.errors import LongshoreError, UnknownName, WaitTimeout
from longshore.orchestration.operations.stacks import CHECK, REBUILD
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs.stack_outcome import StackOutcomes, stacks_of
from longshore.orchestration.stacks.inventory import Inventory, Remote, inventory_of
from longshore.orchestration.stacks.plan import RolloutOptions, restart_plan
from longshore.orchestration.stacks.rules import StackRules, stack_rules
from longshore.orchestration.stacks.selection import Selection, choose, with_reused_answers
from longshore.orchestration.states import STEP_FINAL, STEP_GOOD, TERMINAL, RunState
from longshore.orchestration.store.caches import STACK_CACHE, Caches, digest_of
from longshore.orchestration.store.hosts import Hosts, with_engine

if TYPE_CHECKING:
    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run
    from longshore.orchestration.runs.report import Report


@dataclass(frozen=True)
class HostCheck:
    """The validity of one host's cache. `age_s` in seconds."""

    host: str
    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None
    #: Why the host could not be checked.
    error: str | None = None
    seen: Inventory | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        found = {"host": self.host, "valid": self.valid, "reason": self.reason, "generation": self.generation}
        return found | {"age_s": self.age_s, "error": self.error}


@dataclass(frozen=True)
class Checked:
    """The validity of all hosts' caches. Exit codes: 0 valid, 1 needs a rebuild, 2 a host could not be checked."""

    hosts: tuple[HostCheck, ...]

    @property
    def exit_code(self) -> int:
        return 2 if any(one.error for one in self.hosts) else 0 if self.valid else 1

    @property
    def valid(self) -> bool:
        return all(one.valid for one in self.hosts)

    @property
    def reason(self) -> str:
        """The reason of the first host whose cache is not valid."""
        return next((f"{one.host}: {one.error or one.reason}" for one in self.hosts if not one.valid), "")

    @property
    def all(self) -> list[str]:
        return [one.host for one in self.hosts]

    @property
    def seen(self) -> dict[str, Inventory]:
        """The inventories by host, if requested."""
        return {one.host: one.seen for one in self.hosts if one.seen is not None}

    @property
    def errors(self) -> dict[str, str]:
        return {one.host: one.error for one in self.hosts if one.error}


@dataclass(frozen=True)
class Orchestrated:
    """The outcome of `orchestrate`: last phase, a summary in one sentence, and the report of the restart, if any."""

    phase: str
    message: str
    exit_code: int
    selection: Selection = field(default_factory=Selection)
    report: Report | None = None
    rebuilt: tuple[str, ...] = ()

    @property
    def stacks(self) -> StackOutcomes:
        return stacks_of(self.report.steps) if self.report is not None else StackOutcomes()


#: Seconds to wait for a first host, and between two reads.
_PATIENCE, _POLL = 10.0, 0.1
_GONE = "the host has no live worker any more"
#: Seconds between two checks whether the hosts of a rebuild are alive.
_LIVENESS_CHECK = 3.0

#: Receives one line per step of the progress.
Progress = Callable[[str], None]


class Stacks:
    """Checks and rebuilds the inventories of hosts, and restarts stale services; `orchestrate` does all three.

    A host has one cached inventory. The cache is up to date if the inventory equals the present state of the host.
    """

    def __init__(self, client: Client, rules: StackRules | None = None) -> None:
        client.ensure_server()
        self._client = client
        self._store = client.store
        self.rules = rules if rules is not None else stack_rules(client.settings.stacks)

    # --- the hosts ----------------------------------------------------------------------------------

    def hosts(self, wanted: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
        """The hosts that can be inspected; and the other hosts, each with the reason why not.

        Raises UnknownName for an unknown host, and WaitTimeout if no host with an engine is known.
        """
        requested = list(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted))
        until = time.monotonic() + _PATIENCE
        while not (alive := with_engine(self._store)) and time.monotonic() < until:
            time.sleep(_POLL)  # the first worker may be starting
        known = alive | {name.removeprefix(STACK_CACHE) for name in Caches(self._store).names(STACK_CACHE)}
        if unknown := [name for name in requested if name not in known]:
            raise UnknownName(f"no host {unknown[0]!r} with a Docker engine is known",
                              remedy=f"choose one of: {', '.join(sorted(known)) or 'none'}")  # fmt: skip
        if not known:
            log = self._client.settings.state_dir / "worker.log"
            remedy = (
                f"see {log}" if self._client.settings.redis_url is None else "start a worker there: longshore worker"
            )
            raise WaitTimeout("no host with a Docker engine has a live worker", remedy=remedy)
        names = requested or sorted(known)
        hosts = Hosts(self._store).all()
        # The run would wait for a host that takes no new steps.
        unavailable = {
            name: (hosts[name].why_not() if name in hosts else "")
            or f"the host has no live worker; if it is gone for good: longshore hosts forget {name}"
            for name in names
            if name not in alive or hosts[name].why_not()
        }
        return [name for name in names if name not in unavailable], unavailable

    # --- the phases ---------------------------------------------------------------------------------

    def check(self, hosts: Iterable[str] = (), *, registry: bool = False, state: bool = False) -> Checked:
        """Check whether the caches are up to date. Changes nothing. With `state`, also returns the inventories."""
        available, unavailable = self.hosts(hosts)
        found = [HostCheck(host, valid=False, error=why) for host, why in unavailable.items()]
        if available:
            plan = self._plan("orchestrate-check", CHECK.name, available, registry, state=state)
            answers = self._client.dry_run(plan)
            for host, answer in zip(available, _by_step(answers, available), strict=True):
                found.append(_checked(host, answer))
        return Checked(tuple(sorted(found, key=lambda one: one.host)))

    def rebuild_plan(self, hosts: Sequence[str], *, registry: bool = False, fresh: bool = True, asked: int = 0) -> Plan:
        """The plan that caches the inventories of these hosts. With `fresh`, cached data are not reused.

        `asked` is a time in ms of Redis's clock. If another run began a rebuild after this time, its result is reused.
        """
        more: dict[str, Any] = {"ttl": self._client.settings.cache_ttl}
        more |= {"fresh": True} if fresh else {}
        more |= {"asked": asked} if asked else {}
        return self._plan("orchestrate-rebuild", REBUILD.name, hosts, registry, **more)

    def rebuild(self, hosts: Sequence[str], *, registry: bool = False, fresh: bool = True, asked: int = 0) -> Report:
        """Rebuild the caches of these hosts. The report has one step for each host."""
        plan = self.rebuild_plan(hosts, registry=registry, fresh=fresh, asked=asked)
        run = self._client.start(plan)
        while True:
            try:
                return run.wait(_LIVENESS_CHECK)
            except WaitTimeout:
                report = run.report()
                left = {step.name for step in report.steps if step.status not in STEP_FINAL}
                if left & with_engine(self._store):
                    continue
                # The hosts of the remaining steps are gone, and no other host can execute them.
                run.cancel(_GONE, keep=True)
                return report

    def refresh(self, ticket: str) -> Run:
        """Start a rebuild of outdated caches, and return its run at once.

        If `ticket` is the id of an existing run, returns this run. With any other text, concurrent callers with the
        same `ticket` share one run.
        """
        if self._store.body(ticket) is not None:
            return self._client.get(ticket)
        available, _ = self.hosts()
        plan = self.rebuild_plan(available, fresh=False)
        return self._client.start(plan, run_id=f"orchestrate-refresh-{ticket}-{digest_of(plan.to_dict())[:8]}")

    def selection_of(self, report: Report) -> Selection:
        """The stale services after the rebuild with this report."""
        _, unavailable = self.hosts()
        return self._from_cache([step.name for step in report.steps], unavailable | failures(report), (), None)

    def select(
        self,
        hosts: Iterable[str] = (),
        *,
        labels: Iterable[str] = (),
        image: str | None = None,
        registry: bool = False,
        retry: bool = False,
        read_only: bool = False,
    ) -> Selection:
        """Select the stale services. Missing and invalid caches are rebuilt first, unless `read_only` is set.

        * `labels` – only services whose containers have all these labels, each as `key` or `key=value`
        * `image` – the services that run this image, whether stale or not
        * `registry` – also compare image tags with their registries
        * `retry` – also select versions that have failed before
        """
        available, unavailable = self.hosts(hosts)
        # A rebuild caches the answers of registries, so that each is queried once.
        outdated = [] if read_only else [host for host in available if registry or self.cached(host)[0] is None]
        answers = self._answers(available) if registry else {}
        _, failed = self._rebuilt(outdated, self._store.now(), registry=registry)
        left = [host for host in available if host not in failed]
        checked = self.check(left, registry=registry and read_only, state=True) if left else Checked(())
        errors = unavailable | failed | checked.errors
        found = choose(self.rules, checked.seen, errors, labels=labels, image=image, running=True, retry=retry)
        return with_reused_answers(found, answers)

    def _rebuilt(self, hosts: Sequence[str], asked: int, *, registry: bool) -> tuple[list[str], dict[str, str]]:
        """Rebuild the caches of these hosts: the hosts whose cache changed, and the errors of others."""
        if not hosts:
            return [], {}
        report = self.rebuild(hosts, registry=registry, fresh=False, asked=asked)
        return [host for host in hosts if report.step(host).changed], failures(report)

    def _answers(self, hosts: Iterable[str]) -> dict[str, Mapping[str, Remote]]:
        """The stored answers of registries, by host and image."""
        found = {host: inventory_of(Caches(self._store).get(STACK_CACHE + host))[0] for host in hosts}
        return {host: one.remotes for host, one in found.items() if one is not None}

    def cached(self, host: str) -> tuple[Inventory | None, str]:
        """The cached inventory of a host and ''; or None and the reason."""
        caches = Caches(self._store)
        found = caches.get(STACK_CACHE + host)
        if why := found.problem(caches.now()):
            return None, why
        return inventory_of(found)

    def plan(self, selection: Selection, options: RolloutOptions, *, asked: bool = False) -> Plan:
        """The plan that restarts the selected services."""
        ttl = self._client.settings.cache_ttl
        return restart_plan(selection.chosen, selection.seen, self.rules, options, asked=asked, ttl=ttl)

    def start(
        self, selection: Selection, options: RolloutOptions, *, asked: bool = False, run_id: str | None = None
    ) -> Run:
        """Start a run that restarts the selected services. Concurrent calls with the same selection share one run."""
        plan = self.plan(selection, options, asked=asked)
        run = self._client.start(plan, run_id=run_id) if run_id is not None else self._shared(selection, plan)
        now = dict.fromkeys((one.host for one in selection.chosen), run.id)
        self._store.call(self._store.client.hset, self._store.keys.active_rollouts, mapping=now)
        return run

    def _shared(self, selection: Selection, plan: Plan) -> Run:
        stem = f"orchestrate-{digest_of([selection.index, plan.to_dict()])[:12]}"
        number = 1
        while True:
            run_id = stem if number == 1 else f"{stem}.{number}"
            state = self._store.state(run_id)
            if state is None or state not in TERMINAL:
                return self._client.start(plan, run_id=run_id)
            number += 1

    # --- all phases ---------------------------------------------------------------------------------

    def orchestrate(
        self,
        hosts: Iterable[str] = (),
        *,
        labels: Iterable[str] = (),
        image: str | None = None,
        registry: bool = False,
        run_id: str | None = None,
        progress: Progress = lambda _line: None,
        watch: Callable[[Run], Report] | None = None,
        **options: Unpack[RolloutOptions],
    ) -> Orchestrated:
        """Find the stale services, restart them, and wait for the end.

        Concurrent calls share one rebuild and one run. `Orchestrated.exit_code` is the exit code of
        `longshore orchestrate`. Raises WaitTimeout if no host answers.

        * `hosts` – only these hosts
        * `labels`, `image`, `registry`, `retry` – as for `select`
        * `max_parallel` – the number of stacks that are restarted at the same time
        * `canary` – the number of stacks that are restarted before the others
        * `on_failure` – after a failure, `keep` the restarted stacks, or `undo` all stacks. The failed stack itself is
          reverted in both cases.
        * `progress` – receives a line for each phase; `watch` replaces `Run.wait`
        """
        hosts = list(hosts)
        self.wait_for_active_runs(hosts, progress)
        asked = self._store.now()
        with _phase("cache check"):
            checked = self.check(hosts)
        outdated = [one.host for one in checked.hosts if not one.error and (registry or not one.valid)]
        for one in checked.hosts:
            state = "cache valid" if one.valid else one.error or f"cache needs rebuild: {one.reason}"
            progress(f"check: {one.host}: {state}")
        with _phase("cache rebuild"):
            if len(checked.errors) == len(checked.hosts):
                raise LongshoreError(_listed(checked.errors))
            answers = self._answers(outdated) if registry else {}
            built, failed = self._rebuilt(outdated, asked, registry=registry)
            if outdated and len(failed | checked.errors) == len(checked.hosts):
                raise LongshoreError(_listed(failed | checked.errors))
        for host in outdated:
            progress(f"rebuild: {host}: {failed.get(host) or ('done' if host in built else 'not needed')}")
        with _phase("selection"):
            selection = self._from_cache(
                checked.all, checked.errors | failed, labels, image, retry=options.get("retry", False)
            )
            selection = with_reused_answers(selection, answers)
        for stale in selection.chosen:
            progress(f"select: {selection.name(stale)}: {', '.join(map(str, stale.reasons))}")
        done = 3 if selection.incomplete else 0
        if not selection.chosen:
            valid = not built and not selection.incomplete
            message = "cache valid, nothing to do" if valid else "no services need a restart: nothing to do"
            return Orchestrated("select", message + _uninspected(selection), done, selection, rebuilt=tuple(built))
        with _phase("restart"):
            run = self.start(selection, options, run_id=run_id)
        progress(f"restart: run {run.id}")
        report = watch(run) if watch is not None else run.wait()
        return self.ended(report, selection, tuple(built))

    def active_runs(self, hosts: Sequence[str] = ()) -> list[str]:
        """The live runs that restart services on these hosts, by default on all hosts."""
        known = self._store.call(self._store.client.hgetall, self._store.keys.active_rollouts)
        found = sorted({run_id for host, run_id in known.items() if not hosts or host in hosts})
        return [run_id for run_id in found if (self._store.state(run_id) or RunState.FAILED) not in TERMINAL]

    def wait_for_active_runs(self, hosts: Sequence[str] = (), progress: Progress = lambda _line: None) -> None:
        """Wait for the end of the runs that `active_runs` returns."""
        for run_id in self.active_runs(hosts):
            progress(f"check: waiting for the end of run {run_id}, which restarts services on these hosts")
            self._client.get(run_id).wait()

    def ended(self, report: Report, selection: Selection, rebuilt: tuple[str, ...] = ()) -> Orchestrated:
        """The outcome of an orchestration, from the report of the run that restarted services."""
        code = report.exit_code or (3 if selection.incomplete else 0)
        stacks = stacks_of(report.steps)
        if report.exit_code == 0:
            message = "orchestration complete"
        else:
            failed = "; ".join(f"{name}: {why}" for name, why in stacks.failed.items()) or report.summary
            total = len(stacks.up_to_date) + len(stacks.failed)
            message = f"restart failed: {len(stacks.up_to_date)} of {total} stacks are up to date: {failed}"
        return Orchestrated("restart", message + _uninspected(selection), code, selection, report, rebuilt)

    def _from_cache(
        self,
        hosts: Iterable[str],
        failed: Mapping[str, str],
        labels: Iterable[str],
        image: str | None,
        *,
        retry: bool = False,
    ) -> Selection:
        seen, errors = {}, dict(failed)
        for host in hosts:
            if host in errors:
                continue
            found, why = self.cached(host)
            if found is None:
                errors[host] = why
            else:
                seen[host] = found
        return choose(self.rules, seen, errors, labels=labels, image=image, retry=retry)

    def _plan(self, name: str, operation: str, hosts: Sequence[str], registry: bool, **more: Any) -> Plan:
        """A plan with one independent step per host."""
        plan = Plan(name, on_error="continue", on_failure="keep")
        params = {key: value for key, value in self.rules.params().items() if value} | more
        params |= {"registry": True} if registry else {}
        if not registry:
            params.pop("registries", None)
        for host in hosts:
            plan.step(host, operation, **params).target(host)
        return plan


class _phase:  # noqa: N801 - a context manager, used like a function
    """Adds the name of the phase to the message of an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, LongshoreError):
            error.message = f"{self._name} failed: {error.message}"
            error.args = (error.message,)


def _by_step(answers: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[Mapping[str, Any]]:
    found = {answer["step"]: answer for answer in answers}
    return [found.get(host, {"action": "no answer"}) for host in hosts]


def _checked(host: str, answer: Mapping[str, Any]) -> HostCheck:
    data = answer.get("data")
    if data is None:
        return HostCheck(host, valid=False, error=str(answer["action"]))
    seen = Inventory.model_validate(data["seen"]) if data.get("seen") is not None else None
    return HostCheck(host, data["valid"], data["reason"], data["generation"], data["age_s"], seen=seen)


def failures(report: Report) -> dict[str, str]:
    """The hosts on which a rebuild failed, and why."""
    return {
        step.name: step.error or step.reason or (str(step.status) if step.status in STEP_FINAL else _GONE)
        for step in report.steps
        if step.status not in STEP_GOOD
    }


def _listed(errors: Mapping[str, str]) -> str:
    return "; ".join(f"{host}: {why}" for host, why in errors.items())


def _uninspected(selection: Selection) -> str:
    errors = [f"host {host} could not be inspected: {why}" for host, why in selection.errors.items()]
    return "".join(f"; {text}" for text in [*errors, *map(str, selection.undetermined)])
