"""Cache of runs' verified plans. A plan never changes, so that a process reads each one once."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from longshore.orchestration.errors import UNREADABLE, BadIdentifier, Damaged, LongshoreError, PlanDenied, UnknownName
from longshore.orchestration.language import identifiers, secrets, templates
from longshore.orchestration.messaging import signing
from longshore.orchestration.plans import subplans
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.plans.model import Plan, canonical_text, digest_of
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.plans.steps import UndoSpec
from longshore.orchestration.settings import MAX_PLAN_BYTES
from longshore.orchestration.store.admission import AdmissionRequest
from longshore.orchestration.store.audit import note_refusal
from longshore.orchestration.store.records import SCHEMA_VERSION, read_request
from longshore.orchestration.store.run_store import Store

#: Plans in the cache of a process.
_CACHED = 64
#: Runs of which a process remembers the version.
_REMEMBERED = 20_000
#: Maximum characters of a request: the largest plan, its signature and its options.
_MAX_REQUEST = MAX_PLAN_BYTES + 64 * 1024
#: The reason of a hold: the run's record is older than a version that a worker has seen.
LOST_WRITES = "Redis has lost what it had acknowledged"


class NotOurs(LongshoreError):
    """A run that this worker must not touch: of a newer version, unknown, or damaged."""

    code = "foreign-run"


class Newer(NotOurs):
    """A run of a newer version, which only newer workers process."""

    code = "newer-run"


@dataclass(frozen=True)
class Loaded:
    """A run's compiled plan with its inputs."""

    plan: CompiledPlan
    params: dict[str, Any]
    contents: dict[str, str]
    digest: str
    actor: str
    #: The client's address.
    origin: str = ""
    #: The run and step that this run is a child of.
    parent: dict[str, Any] | None = None
    #: The options of admission.
    admission: AdmissionRequest = field(default_factory=lambda: AdmissionRequest(""))
    #: Unique for each request.
    instance_id: str = ""
    #: The trace context.
    trace: str = ""
    #: Digest of the request's text.
    request: str = ""
    #: The references of the secrets that the parent of a child run knows.
    inherited_secrets: tuple[str, ...] = ()

    def file(self, path: str) -> bytes:
        return base64.b64decode(self.contents[path])

    @cached_property
    def secrets(self) -> frozenset[str]:
        """The references of all secrets in the steps and undos of the plan, of its child plans, and of its parents'."""
        found = {*self.inherited_secrets}
        for plan in [self.plan.plan, *subplans.all_of(self.contents)]:
            for step in plan.steps.values():
                undo = step.undo.with_ if isinstance(step.undo, UndoSpec) else {}
                for given in (step.with_, undo):
                    if templates.SECRET in str(given):
                        # A broken template fails its own step.
                        with contextlib.suppress(templates.TemplateProblem):
                            found |= {reference or "" for reference in templates.references(given).secrets}
        return frozenset(reference for reference in found if secrets.problem(reference) is None)


#: The compiled plans of this process with their canonical texts, by the digest of the plan in the request.
_plans: OrderedDict[bytes, tuple[CompiledPlan, str]] = OrderedDict()


def _compiled(plan: dict[str, Any], *, lenient: bool) -> tuple[CompiledPlan, str]:
    """Compile a plan, once for all runs of it. Raises UnknownName unless `lenient`."""
    key = hashlib.sha256(json.dumps([plan, lenient]).encode()).digest()
    found = _plans.get(key)
    if found is None:
        parsed = Plan.model_validate(plan)
        found = _plans[key] = CompiledPlan(parsed, lenient=lenient), canonical_text(parsed.to_dict())
        while len(_plans) > _CACHED:
            _plans.popitem(last=False)
    else:
        _plans.move_to_end(key)
    return found


def _checked(run_id: str) -> str:
    """Return the id of a run. Raises NotOurs for text that is none."""
    try:
        return identifiers.run_id(run_id)
    except BadIdentifier as error:
        raise NotOurs(error.message) from None


class UnknownOperation(NotOurs):
    """A run with an operation that this worker does not know; another worker may."""

    code = "unknown-operation"

    def __init__(self, message: str, loaded: Loaded) -> None:
        super().__init__(message, remedy="start a worker with the operation's module in LONGSHORE_IMPORTS")
        self.loaded = loaded


class Plans:
    """An LRU cache of the verified requests in Redis."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        #: The highest version that this process has seen, by the run and its instance; an LRU cache, too.
        self._newest: OrderedDict[tuple[str, str], int] = OrderedDict()
        #: Requests whose denial is in the audit trail.
        self._audited: set[tuple[str, str]] = set()

    def get(self, run_id: str, *, again: bool = False) -> Loaded:
        """Return a run's plan; with `again`, read from Redis and not from the cache.

        Raises NotOurs for a request that is missing, denied, or does not match its digest.
        """
        found = None if again else self.cached(run_id)
        if found is None:
            found = self.read(run_id, *self._store.request_and_fields(_checked(run_id)))
        return found

    def cached(self, run_id: str) -> Loaded | None:
        """Return a run's plan where this process has read it already."""
        found = self._loaded.get(run_id)
        if found is not None:
            self._loaded.move_to_end(run_id)
        return found

    def read(self, run_id: str, text: str | None, begun: Mapping[str, str]) -> Loaded:
        """Read a run's plan from its request and the fields of its record, and cache it. Raises NotOurs as `get`."""
        found = self._loaded[run_id] = self._read(run_id, text, begun)
        while len(self._loaded) > _CACHED:
            self._loaded.popitem(last=False)
        return found

    def has_seen(self, run_id: str, instance_id: str) -> bool:
        """Whether this process has noted a version of the run, and so has verified its request before."""
        return (run_id, instance_id) in self._newest

    def regressed(self, run_id: str, instance_id: str, version: int) -> int:
        """Note a run's version; return the higher version that was seen before, or 0."""
        known = self._newest.get((run_id, instance_id), 0)
        self._newest[run_id, instance_id] = max(known, version)
        self._newest.move_to_end((run_id, instance_id))
        while len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)
        return known if version < known else 0

    def _read(self, run_id: str, text: str | None, begun: Mapping[str, str]) -> Loaded:
        if text is None:
            raise NotOurs(f"run {run_id}: Redis holds no request")
        role = self._verify_signature(run_id, text, begun)
        body = read_request(run_id, text)
        version = body.get("v", 0)
        if not isinstance(version, int):
            raise Damaged(f"run {run_id}: its request has the invalid version {version!r}")
        if version > SCHEMA_VERSION:
            raise Newer(f"run {run_id} was started by a newer version", remedy="upgrade this worker")
        try:
            identifiers.instance(body.get("instance_id", ""))
            if isinstance(parent := body.get("parent"), dict):
                identifiers.run_id(parent.get("run"))
        except BadIdentifier as error:
            raise self._denial(run_id, text, f"its request is refused: {error.message}", body) from None
        unknown = ""
        try:
            loaded = self.load(body)
        except UnknownName as error:
            unknown = f"no worker that knows the operation has read the request: {error.message}"
            loaded = self.load(body, lenient=True)
        except UNREADABLE as error:
            raise Damaged(f"run {run_id}: its request cannot be read: {type(error).__name__}: {error}") from None
        loaded = replace(loaded, request=signing.digest_of(text))
        self._check_request(run_id, text, body, loaded, begun, role)
        if unknown:
            raise UnknownOperation(unknown, loaded)
        return loaded

    def _verify_signature(self, run_id: str, text: str, begun: Mapping[str, str]) -> signing.Role | None:
        """Verify a request's text before parsing: signed with a key that may start runs, or equal to the request that
        the run began with. Returns the key's role; None without signatures. Raises NotOurs.
        """
        if len(text) > _MAX_REQUEST:
            raise self._denial(
                run_id, text, f"its request has {len(text)} characters, over the limit of {_MAX_REQUEST}"
            )
        if begun:
            if begun.get("request", "") not in {"", signing.digest_of(text)}:
                raise self._denial(run_id, text, "its request was replaced after the run began")
            return None
        keys = signing.ring(self._store.settings)
        if keys is None:
            return None
        try:
            return signing.check_text(keys, "request", run_id, text).role
        except signing.Forged as why:
            raise self._denial(run_id, text, f"its request is refused: {why}") from None

    def _check_request(
        self,
        run_id: str,
        text: str,
        body: dict[str, Any],
        loaded: Loaded,
        begun: Mapping[str, str],
        role: signing.Role | None,
    ) -> None:
        """Check a request's digest, the permissions of its key, and the rules for plans. Raises NotOurs."""
        if not hmac.compare_digest(loaded.digest, str(body.get("digest")).encode("ascii", "replace").decode()):
            raise self._denial(run_id, text, "its plan does not match its digest", body)
        if signing.ring(self._store.settings) is not None:
            loaded.plan.digest = loaded.digest  # of this run alone: `load` has copied the plan
        if begun:
            # The rules for plans applied when the run began; its request must not have been replaced since.
            if (begun.get("digest"), begun.get("instance_id", loaded.instance_id)) != (
                loaded.digest,
                loaded.instance_id,
            ):
                raise self._denial(run_id, text, "its request was replaced after the run began", body)
            return
        if role is not None:
            if body.get("parent") and role != "worker":
                why = "its request is refused: a client may not start a child run"
                raise self._denial(run_id, text, why, body)
            if self._store.call(self._store.client.exists, self._store.keys.accepted(loaded.instance_id)):
                raise self._denial(run_id, text, "its request was already executed, and the run was deleted", body)
        rules = self._store.settings.clear_secrets
        try:
            if rules not in loaded.plan.permitted:  # shared by all runs of the plan
                reject_forbidden(loaded.plan.plan, self._store.settings)
                loaded.plan.permitted.add(rules)
        except PlanDenied as error:
            raise self._denial(run_id, text, str(error), body) from None

    def _denial(self, run_id: str, text: str, why: str, body: Mapping[str, Any] | None = None) -> NotOurs:
        """Create the denial of a request, and write it to the audit trail once per process. `body` is given once its
        signature is verified: the entry then names the actor and the origin.
        """
        seen = (run_id, signing.digest_of(text))
        if seen not in self._audited:
            self._audited = {*list(self._audited)[-_CACHED:], seen}
            trusted = body or {}
            note_refusal(
                self._store, why, run=run_id, actor=str(trusted.get("actor", "")), origin=str(trusted.get("origin", ""))
            )
        return NotOurs(f"run {run_id}: {why}", remedy="see longshore audit, and check which clients can write to Redis")

    @staticmethod
    def load(body: dict[str, Any], *, lenient: bool = False) -> Loaded:
        """Parse a request's body. `lenient` accepts operations that this worker does not know."""
        plan, canonical = _compiled(body["plan"], lenient=lenient)
        digest = digest_of(canonical, body["params"], body["files"])
        return Loaded(
            copy.copy(plan),
            body["params"],
            body["files"],
            digest,
            str(body.get("actor", "")),
            str(body.get("origin", "")),
            body.get("parent"),
            AdmissionRequest.of(body),
            str(body.get("instance_id", "")),
            str(body.get("trace", "")),
            inherited_secrets=tuple(body.get("secrets", ())),
        )
