"""Check the cache, rebuild it, select what is stale, restart it: each by itself, or all of it.

What a rebuild has marked as seen is not done with that: what is stale is selected as often as somebody looks, until it
is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from longshore.orchestration.errors import LongshoreError, UnknownName, WaitTimeout
from longshore.orchestration.operations.stacks import CHECK, REBUILD
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.runs.stack_outcome import StackOutcomes, stacks_of
from longshore.orchestration.stacks.inventory import Inventory, inventory_of
from longshore.orchestration.stacks.plan import RolloutOptions, restart_plan
from longshore.orchestration.stacks.rules import StackRules, stack_rules
from longshore.orchestration.stacks.selection import Selection, choose
from longshore.orchestration.states import STEP_FINAL, STEP_GOOD, TERMINAL, RunState
from longshore.orchestration.store.caches import CACHE, Caches, digest_of
from longshore.orchestration.store.hosts import Hosts, with_engine

if TYPE_CHECKING:
    from longshore.orchestration.client.client import Client
    from longshore.orchestration.client.run import Run
    from longshore.orchestration.runs.report import Report


@dataclass(frozen=True)
class HostCheck:
    """What a host's cache is worth. `age_s` in seconds."""

    host: str
    valid: bool
    reason: str | None = None
    generation: int = 0
    age_s: float | None = None
    #: Why the host could not be asked.
    error: str | None = None
    seen: Inventory | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        said = {"host": self.host, "valid": self.valid, "reason": self.reason, "generation": self.generation}
        return said | {"age_s": self.age_s, "error": self.error}


@dataclass(frozen=True)
class Checked:
    """All hosts' caches. Exit codes: 0 valid, 1 needs a rebuild, 2 a host could not be asked."""

    hosts: tuple[HostCheck, ...]

    @property
    def exit_code(self) -> int:
        return 2 if any(one.error for one in self.hosts) else 0 if self.valid else 1

    @property
    def valid(self) -> bool:
        return all(one.valid for one in self.hosts)

    @property
    def reason(self) -> str:
        """The first host's, where several have one."""
        return next((f"{one.host}: {one.error or one.reason}" for one in self.hosts if not one.valid), "")

    @property
    def all(self) -> list[str]:
        return [one.host for one in self.hosts]

    @property
    def seen(self) -> dict[str, Inventory]:
        """What there is to be seen, by host, where that was asked for."""
        return {one.host: one.seen for one in self.hosts if one.seen is not None}

    @property
    def errors(self) -> dict[str, str]:
        return {one.host: one.error for one in self.hosts if one.error}


@dataclass(frozen=True)
class Orchestrated:
    """How it ended: the phase that it came to, in one sentence, and the run that restarted, if there was one."""

    phase: str
    message: str
    exit_code: int
    selection: Selection = field(default_factory=Selection)
    report: Report | None = None
    rebuilt: tuple[str, ...] = ()

    @property
    def stacks(self) -> StackOutcomes:
        return stacks_of(self.report.steps) if self.report is not None else StackOutcomes()


class RolloutChoices(TypedDict, total=False):
    """Options of a rollout. Times in seconds."""

    max_parallel: int | None
    canary: int | None
    on_failure: Literal["keep", "undo"]
    healthy_deadline: float
    min_healthy_time: float


#: Seconds for a first host to be there, and between two looks.
_PATIENCE, _LOOK = 10.0, 0.1
_GONE = "no worker of it is there any more"
#: Seconds of a rebuild after which it is looked whether the hosts are still there.
_LEFT_ALONE = 3.0

#: Told what goes on, a line at a time.
Tell = Callable[[str], None]


class Stacks:
    """The stacks of an installation through a client: check, rebuild, select, restart, or all of it (`orchestrate`)."""

    def __init__(self, client: Client, said: StackRules | None = None) -> None:
        client.ensure_server()
        self._client = client
        self._store = client.store
        self.said = said if said is not None else stack_rules(client.settings.stacks)

    # --- the hosts ----------------------------------------------------------------------------------

    def hosts(self, wanted: Iterable[str] = ()) -> tuple[list[str], dict[str, str]]:
        """Those that can be asked; and why not, of those that were there or are wanted. UnknownName for a host that
        nobody knows; WaitTimeout where there is none at all.
        """
        asked = list(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted))
        until = time.monotonic() + _PATIENCE
        while not (alive := with_engine(self._store)) and time.monotonic() < until:
            time.sleep(_LOOK)  # the first worker may just be starting
        known = alive | {name.removeprefix(CACHE) for name in Caches(self._store).names(CACHE)}
        if unknown := [name for name in asked if name not in known]:
            raise UnknownName(f"no host {unknown[0]!r} with a Docker engine is known",
                              remedy=f"there are: {', '.join(sorted(known)) or 'none'}")  # fmt: skip
        if not known:
            log = self._client.settings.state_dir / "worker.log"
            remedy = (
                f"see {log}" if self._client.settings.redis_url is None else "start a worker there: longshore worker"
            )
            raise WaitTimeout("no host with a Docker engine is there to be asked what is deployed on it", remedy=remedy)
        names = asked or sorted(known)
        hosts = Hosts(self._store).all()
        # A host that takes no new work would have everything wait for it.
        away = {
            name: (hosts[name].why_not() if name in hosts else "")
            or f"no worker of it is there; if it is gone for good: longshore hosts forget {name}"
            for name in names
            if name not in alive or hosts[name].why_not()
        }
        return [name for name in names if name not in away], away

    # --- the phases ---------------------------------------------------------------------------------

    def check(self, hosts: Iterable[str] = (), *, registry: bool = False, state: bool = False) -> Checked:
        """Whether the caches say what is there. Changes nothing. `state`: with what there is to be seen."""
        there, away = self.hosts(hosts)
        found = [HostCheck(host, valid=False, error=why) for host, why in away.items()]
        if there:
            answers = self._client.dry_run(self._plan("orchestrate-check", CHECK.name, there, registry, state=state))
            for host, answer in zip(there, _by_step(answers, there), strict=True):
                found.append(_checked(host, answer))
        return Checked(tuple(sorted(found, key=lambda one: one.host)))

    def rebuild_plan(self, hosts: Sequence[str], *, registry: bool = False, fresh: bool = True, asked: int = 0) -> Plan:
        """The plan that caches what is there on these hosts; `fresh`: trusting nothing of what was cached.

        `asked`: what somebody else has begun to build since then will do, in ms of Redis's clock.
        """
        more: dict[str, Any] = {"ttl": self._client.settings.cache_ttl}
        more |= {"fresh": True} if fresh else {}
        more |= {"asked": asked} if asked else {}
        return self._plan("orchestrate-rebuild", REBUILD.name, hosts, registry, **more)

    def rebuild(self, hosts: Sequence[str], *, registry: bool = False, fresh: bool = True, asked: int = 0) -> Report:
        """Have it done; the report has a step for each host. A host that fails harms no other."""
        plan = self.rebuild_plan(hosts, registry=registry, fresh=fresh, asked=asked)
        run = self._client.start(plan)
        while True:
            try:
                return run.wait(_LEFT_ALONE)
            except WaitTimeout:
                report = run.report()
                left = {step.name for step in report.steps if step.status not in STEP_FINAL}
                if left & with_engine(self._store):
                    continue
                # Their hosts have gone meanwhile; nobody else can do it.
                run.cancel(_GONE, keep=True)
                return report

    def look(self, ticket: str) -> Run:
        """Begin to have the caches say what is there, where they do not; `ticket` may be the run of an earlier call,
        or a word that is the same for all who mean the same look.
        """
        if self._store.body(ticket) is not None:
            return self._client.get(ticket)
        there, _ = self.hosts()
        plan = self.rebuild_plan(there, fresh=False)
        return self._client.start(plan, run_id=f"orchestrate-look-{ticket}-{digest_of(plan.to_dict())[:8]}")

    def selection_of(self, report: Report) -> Selection:
        """What such a look has found to be stale."""
        _, away = self.hosts()
        return self._from_cache([step.name for step in report.steps], away | failures(report), (), None)

    def select(
        self,
        hosts: Iterable[str] = (),
        *,
        labels: Iterable[str] = (),
        image: str | None = None,
        registry: bool = False,
        look_only: bool = False,
    ) -> Selection:
        """What is stale now. Hosts of which nothing useful is cached are rebuilt, unless it is to `look_only`.

        `labels` are `key` or `key=value` of the containers, all of them; `image`: what runs this image, stale or not.
        """
        there, away = self.hosts(hosts)
        # What registries say is kept, so that they are asked once.
        lacking = [] if look_only else [host for host in there if registry or self.cached(host)[0] is None]
        _, failed = self._rebuilt(lacking, self._store.now(), registry=registry)
        left = [host for host in there if host not in failed]
        checked = self.check(left, registry=registry and look_only, state=True) if left else Checked(())
        errors = away | failed | checked.errors
        return choose(self.said, checked.seen, errors, labels=labels, image=image, running=True)

    def _rebuilt(self, hosts: Sequence[str], asked: int, *, registry: bool) -> tuple[list[str], dict[str, str]]:
        """Have these hosts' caches made to say what is there: which were built, and which failed and why."""
        if not hosts:
            return [], {}
        report = self.rebuild(hosts, registry=registry, fresh=False, asked=asked)
        return [host for host in hosts if report.step(host).changed], failures(report)

    def cached(self, host: str) -> tuple[Inventory | None, str]:
        """What is cached of a host, if it can be used; and why not."""
        caches = Caches(self._store)
        found = caches.get(CACHE + host)
        if why := found.wrong(caches.now()):
            return None, why
        return inventory_of(found)

    def plan(self, selection: Selection, options: RolloutOptions, *, asked: bool = False) -> Plan:
        """The plan that brings right what was selected."""
        ttl = self._client.settings.cache_ttl
        return restart_plan(selection.chosen, selection.seen, self.said, options, asked=asked, ttl=ttl)

    def start(
        self, selection: Selection, options: RolloutOptions, *, asked: bool = False, run_id: str | None = None
    ) -> Run:
        """Have it brought right; returns at once. Whoever asks for the same at the same time gets the same run."""
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

    # --- all of it ----------------------------------------------------------------------------------

    def orchestrate(
        self,
        hosts: Iterable[str] = (),
        *,
        labels: Iterable[str] = (),
        image: str | None = None,
        registry: bool = False,
        run_id: str | None = None,
        tell: Tell = lambda _line: None,
        watch: Callable[[Run], Report] | None = None,
        **options: Unpack[RolloutChoices],
    ) -> Orchestrated:
        """Find the services that differ from their files and images, and restart them; waits for the end.

        `hosts`, `labels` (`key`, `key=value`) and `image` choose among them; `registry` asks registries whether tags
        have moved. At most `max_parallel` stacks are restarted at once, `canary` stacks first. `on_failure` is `keep`
        (each stack that fails goes back by itself) or `undo` (all go back). Concurrent calls share one rebuild and one
        run. `Orchestrated.exit_code` is that of the command. `watch` waits for the report in place of `Run.wait`.
        Raises WaitTimeout where no host answers.
        """
        hosts = list(hosts)
        self.wait_for_active_runs(hosts, tell)
        asked = self._store.now()
        with _phase("cache check"):
            checked = self.check(hosts)
        lacking = [one.host for one in checked.hosts if not one.error and (registry or not one.valid)]
        for one in checked.hosts:
            said = "cache valid" if one.valid else one.error or f"cache needs rebuild: {one.reason}"
            tell(f"check: {one.host}: {said}")
        with _phase("cache rebuild"):
            if len(checked.errors) == len(checked.hosts):
                raise LongshoreError(_listed(checked.errors))
            built, failed = self._rebuilt(lacking, asked, registry=registry)
            if lacking and len(failed | checked.errors) == len(checked.hosts):
                raise LongshoreError(_listed(failed | checked.errors))
        for host in lacking:
            tell(f"rebuild: {host}: {failed.get(host) or ('done' if host in built else 'not needed')}")
        with _phase("selection"):
            selection = self._from_cache(checked.all, checked.errors | failed, labels, image)
        for stale in selection.chosen:
            tell(f"select: {selection.name(stale)}: {', '.join(map(str, stale.reasons))}")
        done = 3 if selection.incomplete else 0
        if not selection.chosen:
            valid = not built and not selection.incomplete
            message = "cache valid, nothing to do" if valid else "no deployments need restart: nothing to do"
            return Orchestrated("select", message + _unasked(selection), done, selection, rebuilt=tuple(built))
        with _phase("restart"):
            run = self.start(selection, RolloutOptions(**options), run_id=run_id)
        tell(f"restart: run {run.id}")
        report = watch(run) if watch is not None else run.wait()
        return self.ended(report, selection, tuple(built))

    def active_runs(self, hosts: Sequence[str] = ()) -> list[str]:
        """Runs that are bringing right what is stale on these hosts (all), and change what a look would find."""
        known = self._store.call(self._store.client.hgetall, self._store.keys.active_rollouts)
        found = sorted({run_id for host, run_id in known.items() if not hosts or host in hosts})
        return [run_id for run_id in found if (self._store.state(run_id) or RunState.FAILED) not in TERMINAL]

    def wait_for_active_runs(self, hosts: Sequence[str] = (), tell: Tell = lambda _line: None) -> None:
        """Until none of these is there."""
        for run_id in self.active_runs(hosts):
            tell(f"check: run {run_id} is at it; waiting for its end")
            self._client.get(run_id).wait()

    def ended(self, report: Report, selection: Selection, rebuilt: tuple[str, ...] = ()) -> Orchestrated:
        """What became of the run that restarted."""
        code = report.exit_code or (3 if selection.incomplete else 0)
        stacks = stacks_of(report.steps)
        if report.exit_code == 0:
            message = "orchestration complete"
        else:
            wrong = "; ".join(f"{name}: {why}" for name, why in stacks.wrong.items()) or report.summary
            of = len(stacks.right) + len(stacks.wrong)
            message = f"restart failed: {len(stacks.right)} of {of} stacks are right: {wrong}"
        return Orchestrated("restart", message + _unasked(selection), code, selection, report, rebuilt)

    def _from_cache(
        self, hosts: Iterable[str], failed: Mapping[str, str], labels: Iterable[str], image: str | None
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
        return choose(self.said, seen, errors, labels=labels, image=image)

    def _plan(self, name: str, operation: str, hosts: Sequence[str], registry: bool, **more: Any) -> Plan:
        """A step for each host: one that fails harms no other."""
        plan = Plan(name, on_error="continue", on_failure="keep")
        given = {key: value for key, value in self.said.params().items() if value} | more
        given |= {"registry": True} if registry else {}
        if not registry:
            given.pop("registries", None)
        for host in hosts:
            plan.step(host, operation, **given).target(host)
        return plan


class _phase:  # noqa: N801 - it reads as a word
    """An error says in which phase it was."""

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
    return [found.get(host, {"action": "it did not answer"}) for host in hosts]


def _checked(host: str, answer: Mapping[str, Any]) -> HostCheck:
    data = answer.get("data")
    if data is None:
        return HostCheck(host, valid=False, error=str(answer["action"]))
    seen = Inventory.model_validate(data["seen"]) if data.get("seen") is not None else None
    return HostCheck(host, data["valid"], data["reason"], data["generation"], data["age_s"], seen=seen)


def failures(report: Report) -> dict[str, str]:
    """Of the run of a rebuild, the hosts that it failed on, and why."""
    return {
        step.name: step.error or step.reason or (str(step.status) if step.status in STEP_FINAL else _GONE)
        for step in report.steps
        if step.status not in STEP_GOOD
    }


def _listed(errors: Mapping[str, str]) -> str:
    return "; ".join(f"{host}: {why}" for host, why in errors.items())


def _unasked(selection: Selection) -> str:
    told = [f"{host} could not be looked at: {why}" for host, why in selection.errors.items()]
    return "".join(f"; {text}" for text in [*told, *map(str, selection.wrong)])


__all__ = ["Checked", "HostCheck", "Orchestrated", "RolloutOptions", "Selection", "Stacks", "failures"]
