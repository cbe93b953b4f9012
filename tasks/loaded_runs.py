"""The plans of runs, as this process has read them: each is read once, for it never changes."""

from __future__ import annotations

import base64
import contextlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from longshore.orchestration.errors import UNREADABLE, BadIdentifier, Damaged, LongshoreError, PlanDenied, UnknownName
from longshore.orchestration.language import identifiers, secrets, templates
from longshore.orchestration.messaging import signing
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.model import Plan, UndoSpec
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.settings import MAX_PLAN_BYTES
from longshore.orchestration.store.admission import AdmissionRequest
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.run_store import SCHEMA_VERSION, Store, read_request

_KEPT = 64
#: Characters of a request: a plan of the largest size, with its signature and what else is asked.
_LONGEST = MAX_PLAN_BYTES + 64 * 1024
#: Why a run is held whose record is older than what was seen of it.
LOST_WRITES = "Redis has lost what it had acknowledged"


class NotOurs(LongshoreError):
    """A run that this worker must leave alone: newer than it, unknown, or damaged."""


class Newer(NotOurs):
    """A run of a version to come: its own workers see to it, and nothing of it is touched here."""


@dataclass(frozen=True)
class Loaded:
    """A run's plan with its inputs."""

    plan: CompiledPlan
    params: dict[str, Any]
    contents: dict[str, str]
    digest: str
    actor: str
    #: From where it was asked for.
    origin: str = ""
    #: The run and step that this run is a child of.
    parent: dict[str, Any] | None = None
    #: What admission has to know.
    wanted: AdmissionRequest = field(default_factory=lambda: AdmissionRequest(""))
    #: No two requests have the same.
    instance_id: str = ""
    #: The trace that it is a part of.
    trace: str = ""
    #: Digest of the request's text.
    request: str = ""

    def file(self, path: str) -> bytes:
        return base64.b64decode(self.contents[path])

    @cached_property
    def secrets(self) -> frozenset[str]:
        """The references of all secrets that the plan names, in any of its steps and undos."""
        found: set[str | None] = set()
        for step in self.plan.plan.steps.values():
            undo = step.undo.with_ if isinstance(step.undo, UndoSpec) else {}
            for given in (step.with_, undo):
                if templates.SECRET in str(given):
                    # A broken template is the error of its own step.
                    with contextlib.suppress(templates.TemplateProblem):
                        found |= templates.references(given).secrets
        return frozenset(reference for reference in found if reference and secrets.problem(reference) is None)


class UnknownOperation(NotOurs):
    """A run with an operation that this worker does not know; another may."""

    def __init__(self, message: str, loaded: Loaded) -> None:
        super().__init__(message, remedy="start a worker with LONGSHORE_IMPORTS")
        self.loaded = loaded


class Plans:
    """A small cache over the requests in Redis."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        #: The highest version of each of these runs that this process has seen.
        self._newest: dict[str, int] = {}
        #: Requests whose refusal is in the audit trail.
        self._told: set[tuple[str, str]] = set()

    def get(self, run_id: str, *, again: bool = False) -> Loaded:
        """With `again`, as Redis has it now.

        Raises NotOurs where there is no such request, or it is not what its digest says.
        """
        found = None if again else self._loaded.get(run_id)
        if found is None:
            found = self._read(run_id)
            if again and (known := self._loaded.get(run_id)) is not None and known.instance_id != found.instance_id:
                self._newest.pop(run_id, None)
            self._loaded[run_id] = found
            while len(self._loaded) > _KEPT:
                dropped, _ = self._loaded.popitem(last=False)
                self._newest.pop(dropped, None)
        else:
            self._loaded.move_to_end(run_id)
        return found

    def regressed(self, run_id: str, version: int) -> int:
        """Note how far a run has come; the version that it had come to before, where it was farther."""
        known = self._newest.get(run_id, 0)
        self._newest[run_id] = max(known, version)
        return known if version < known else 0

    def _read(self, run_id: str) -> Loaded:
        try:
            identifiers.run_id(run_id)
        except BadIdentifier as error:
            raise NotOurs(error.message) from None
        text = self._store.request(run_id)
        if text is None:
            raise NotOurs(f"run {run_id}: there is no plan of it in Redis")
        begun = self._store.fields(run_id)
        role = self._trusted(run_id, text, begun)
        body = read_request(run_id, text)
        version = body.get("v", 0)
        if not isinstance(version, int):
            raise Damaged(f"the request of run {run_id} has the version {version!r}")
        if version > SCHEMA_VERSION:
            raise Newer(f"run {run_id} was started by a newer version", remedy="upgrade this worker")
        try:
            identifiers.instance(body.get("instance_id", ""))
            if isinstance(parent := body.get("parent"), dict):
                identifiers.run_id(parent.get("run"))
        except BadIdentifier as error:
            raise self._denied(run_id, text, f"its request is refused: {error.message}", body) from None
        unknown = ""
        try:
            loaded = self.load(body)
        except UnknownName as error:
            unknown = f"no worker that knows it has come by: {error.message}"
            loaded = self.load(body, lenient=True)
        except UNREADABLE as error:
            raise Damaged(f"the request of run {run_id} cannot be read: {type(error).__name__}: {error}") from None
        loaded = replace(loaded, request=signing.digest_of(text))
        self._check(run_id, text, body, loaded, begun, role)
        if unknown:
            raise UnknownOperation(unknown, loaded)
        return loaded

    def _trusted(self, run_id: str, text: str, begun: Mapping[str, str]) -> signing.Role | None:
        """Whether a request's text may be read at all: it was signed by somebody who may ask for runs, or it is the one
        that the run was begun with. The role of the key; None where nothing is signed. Raises NotOurs.
        """
        if len(text) > _LONGEST:
            raise self._denied(run_id, text, f"its request has {len(text)} characters, and at most {_LONGEST} may be")
        if begun:
            if begun.get("request", "") not in {"", signing.digest_of(text)}:
                raise self._denied(run_id, text, "its request is another than the one that it was begun with")
            return None
        keys = signing.ring(self._store.settings)
        if keys is None:
            return None
        try:
            return signing.check_text(keys, "request", run_id, text).role
        except signing.Forged as why:
            raise self._denied(run_id, text, f"its request is refused: {why}") from None

    def _check(
        self,
        run_id: str,
        text: str,
        body: dict[str, Any],
        loaded: Loaded,
        begun: Mapping[str, str],
        role: signing.Role | None,
    ) -> None:
        """Whether it is what was asked for, by somebody who may, and could do no harm. Raises NotOurs."""
        if not hmac.compare_digest(loaded.digest, str(body.get("digest")).encode("ascii", "replace").decode()):
            raise self._denied(run_id, text, "its plan does not match its digest", body)
        if signing.ring(self._store.settings) is not None:
            loaded.plan.digest = loaded.digest
        if begun:
            # It was looked at when it began, by the rules of that time; since then nobody may put another in its place.
            if (begun.get("digest"), begun.get("instance_id", loaded.instance_id)) != (
                loaded.digest,
                loaded.instance_id,
            ):
                raise self._denied(run_id, text, "its request is another than the one that it was begun with", body)
            return
        if role is not None:
            if body.get("parent") and role != "worker":
                why = "its request is refused: a client may not start a part of another run"
                raise self._denied(run_id, text, why, body)
            if self._store.call(self._store.client.exists, self._store.keys.accepted(loaded.instance_id)):
                raise self._denied(run_id, text, "its request was carried out before, and the run was pruned", body)
        try:
            reject_forbidden(loaded.plan.plan, self._store.settings)
        except PlanDenied as error:
            raise self._denied(run_id, text, str(error), body) from None

    def _denied(self, run_id: str, text: str, why: str, body: Mapping[str, Any] | None = None) -> NotOurs:
        """The refusal, which stands in the audit trail once, as far as this process knows. Who has asked is named where
        the request could be trusted so far.
        """
        seen = (run_id, signing.digest_of(text))
        if seen not in self._told:
            self._told = {*list(self._told)[-_KEPT:], seen}
            who = body or {}
            note_refusal(
                self._store, why, run=run_id, actor=str(who.get("actor", "")), origin=str(who.get("origin", ""))
            )
        return NotOurs(f"run {run_id}: {why}", remedy="somebody wrote to Redis; see longshore audit")

    @staticmethod
    def load(body: dict[str, Any], *, lenient: bool = False) -> Loaded:
        """A request's body, checked by schema. `lenient` passes operations that are not known here."""
        plan = Plan.model_validate(body["plan"])
        digest = plan.digest(body["params"], body["files"])
        return Loaded(
            CompiledPlan(plan, lenient=lenient),
            body["params"],
            body["files"],
            digest,
            str(body.get("actor", "")),
            str(body.get("origin", "")),
            body.get("parent"),
            AdmissionRequest.of(body),
            str(body.get("instance_id", "")),
            str(body.get("trace", "")),
        )
