"""Carry out the commands of a run: each once, in order, in one script."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from longshore.orchestration import saga
from longshore.orchestration.errors import UNREADABLE
from longshore.orchestration.messaging import signing
from longshore.orchestration.operations import Waits
from longshore.orchestration.plans.compiled import CompiledPlan, StepId, as_id, index_of, unit_of
from longshore.orchestration.states import TERMINAL, UNDO_OPEN, RunState
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import AdmissionRequest
from longshore.orchestration.store.keys import Field
from longshore.orchestration.store.records import RunSnapshot, run_record, stream_order
from longshore.orchestration.store.run_store import Store
from longshore.tasks.control.dispatch import in_flight
from longshore.tasks.crash_points import point
from longshore.tasks.loaded_runs import Loaded, NotOurs

#: Commands after which an ended run may be live.
_REOPENS = frozenset({"resume", "undo", "resolve"})
#: Refusal of a resume while the run waits for a decision about a step of unknown outcome.
_WORD_FIRST = "a step of unknown outcome waits for a decision: longshore runs resolve RUN STEP --done | --undone | …"


class Commands:
    """Reads the new commands of a run and applies them."""

    def __init__(
        self, store: Store, forget: Callable[[str], bool], readmit: Callable[[str, AdmissionRequest], None]
    ) -> None:
        self.store = store
        self._forget = forget
        self._come_back = readmit

    def carry_out(self, run_id: str, loaded: Loaded, found: RunSnapshot) -> bool:
        """Carry out the new commands; return whether there were any. Raises NotOurs where a command deleted the run."""
        done = False
        for command_id, command in found.commands:
            if stream_order(command_id) <= stream_order(found.fields.get("last_command", "0-0")):
                continue
            if forged := self._forged(run_id, command_id, command):
                self._refuse(run_id, command_id, command, forged)
                done = True
                continue
            # An ended run may become live again: the index is written before the record.
            self.store.look_at(run_id, found.now + round(1000 * self.store.settings.lease))
            settled = RunState(found.fields["state"]) in TERMINAL
            if command.get("kind") in _REOPENS and settled:
                # A reopened run has its place again, whatever the admission limits.
                self._come_back(run_id, loaded.admission)
            try:
                self._one(run_id, loaded.plan, command_id, command)
            except UNREADABLE as error:  # for example a step that the plan does not have: later commands still count
                self._refuse(run_id, command_id, command, f"the command cannot be read: {error}")
            self._note(run_id, loaded.plan, command)
            done = True
        return done

    def _note(self, run_id: str, plan: CompiledPlan, command: Mapping[str, str]) -> None:
        """Record the actor and the result of a command in the audit trail."""
        answer = self.store.fields(run_id).get("answer", "done")
        refused = "" if answer in {"done", "", "ok"} else f"no effect: {answer}"
        audit.note(
            self.store, command.get("kind", ""), run=run_id, actor=command.get("actor", ""),
            origin=command.get("origin", ""), step=self._name_of(plan, command),
            why=refused or command.get("as", "") or command.get("reason", ""),
        )  # fmt: skip

    def _forged(self, run_id: str, command_id: str, command: Mapping[str, str]) -> str:
        """The reason to refuse a command, where commands have to be signed; '' to accept it."""
        keys = signing.ring(self.store.settings)
        if keys is None:
            return ""
        try:
            signing.check_command(keys, run_id, command)
            self._is_first(command_id, command)
        except signing.Forged as why:
            text = f"the command is refused: {why}"
            audit.note_refusal(
                self.store, text, run=run_id, actor=command.get("actor", ""), origin=command.get("origin", "")
            )
            return text
        return ""

    def _is_first(self, command_id: str, command: Mapping[str, str]) -> None:
        """Raise Forged for a copy of a command that was carried out; the same command may be read again."""
        accepted = self.store.keys.accepted(f"command {command['nonce']}")
        self.store.call(self.store.client.set, accepted, command_id, nx=True, ex=signing.REMEMBERED)
        if self.store.call(self.store.client.get, accepted) not in {command_id, None}:
            raise signing.Forged("the command is a copy of one that was carried out before")

    @staticmethod
    def _name_of(plan: CompiledPlan, command: Mapping[str, str]) -> str:
        step = command.get("step", "")
        try:
            return plan.name_of(as_id(step)) if step else ""
        except (ValueError, IndexError, KeyError):
            return step

    def _one(self, run_id: str, plan: CompiledPlan, command_id: str, command: Mapping[str, str]) -> None:
        kind = command.get("kind")
        if kind == "resume":
            self._resume(run_id, plan, command_id, command)
            return
        if kind == "prune":
            if self._forget(run_id):
                self._note(run_id, plan, command)  # the caller's note is not reached
                raise NotOurs(f"run {run_id} was pruned")
            self._refuse(run_id, command_id, command, "only an ended run that is no child run can be pruned")
            return
        ids: list[StepId] = []
        if kind == "undo":
            ids = self._open_undos(run_id, plan)
        elif command.get("step"):
            ids = [as_id(command["step"])]
        if refused := self._refusal(run_id, plan, command, ids):
            self._refuse(run_id, command_id, command, refused)
        elif kind == "resolve" and ids:
            self.store.resolve(run_id, command_id, command, ids[0])
        else:
            self.store.carry_out(run_id, command_id, command, len(plan.levels), ids)

    def _refuse(self, run_id: str, command_id: str, command: Mapping[str, str], why: str) -> None:
        asked = {"kind": "refuse", "actor": command.get("actor", ""), "reason": why}
        self.store.carry_out(run_id, command_id, asked, 0, [])

    def _resume(self, run_id: str, plan: CompiledPlan, command_id: str, command: Mapping[str, str]) -> None:
        """Resume a run: a suspended one, one with failed undos, or from the first step that is not done."""
        look = self.store.look(run_id)
        run = run_record(look.fields, look.now)
        if run.state is RunState.UNDO_FAILED:
            retried = {**command, "kind": "undo"}
            self.store.carry_out(run_id, command_id, retried, len(plan.levels), self._open_undos(run_id, plan))
        elif run.state in {RunState.FAILED, RunState.PARTIAL, RunState.CANCELLED}:
            again = saga.resumed(plan, self.store.step_records(run_id, range(len(plan))))
            keep = plan.plan.on_failure == "keep"
            self.store.reopen(run_id, command_id, command, run.epoch, again, keep=keep)
            point("run.reopened")
        elif run.state is not RunState.SUSPENDED:
            if run.state not in TERMINAL:
                # A live run continues by itself; the next sweep repairs one that makes no progress.
                self.store.look_at(run_id, look.now)
            self._refuse(run_id, command_id, command, f"the run is {run.state}")
        elif look.fields.get("hold") == "unknown":
            self._refuse(run_id, command_id, command, _WORD_FIRST)
        else:
            side, ids = in_flight(self.store, run_id, plan, run)
            hold = look.fields.get("hold", "")
            self.store.unsuspend(run_id, hold, run.epoch, side, ids, command_id=command_id, command=command)

    def _refusal(self, run_id: str, plan: CompiledPlan, command: Mapping[str, str], ids: list[StepId]) -> str:
        """The reason why a command does not apply to this plan; '' where it applies."""
        kind = command.get("kind")
        if kind in {"approve", "reject"} and ids and plan.steps[index_of(ids[0])].waits is not Waits.PERSON:
            return "the step does not wait for an approval"
        if kind in {"approve", "reject", "resolve"} and ids:
            return self._wrong_part(run_id, plan, ids[0], whole=kind == "resolve")
        if kind == "undo":
            points = [step.index for step in plan.steps if step.step.irreversible]
            if points and saga.past_return(plan, self.store.step_records(run_id, range(len(plan)), units=False)):
                return saga.PAST_RETURN
        return ""

    def _wrong_part(self, run_id: str, plan: CompiledPlan, step_id: StepId, *, whole: bool) -> str:
        """The reason why this step, or part of one, cannot be decided by itself; '' where it can."""
        count = self.store.units(run_id, [index_of(step_id)]).get(index_of(step_id))
        number, name = unit_of(step_id), plan.steps[index_of(step_id)].name
        if count is None:
            return "" if number is None else f"step {name} has no items"
        if (number is None and not whole) or (number is not None and number >= count):
            return f"the step has items: name one, {name}[0] to {name}[{count - 1}]"
        return ""

    def _open_undos(self, run_id: str, plan: CompiledPlan) -> list[StepId]:
        leaves = self.store.expanded(run_id, range(len(plan)))
        rows = self.store.step_fields(run_id, leaves, (f"u{Field.STATUS}",))
        return [i for i, (status,) in rows.items() if status in UNDO_OPEN]
