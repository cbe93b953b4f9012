"""Random or mutated plans, requests, messages, commands and entries of indices."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.orchestration import Plan, parse
from longshore.orchestration.client.request import request_body
from longshore.orchestration.errors import LongshoreError, PlanError
from longshore.orchestration.installation import doctor, integrity
from longshore.orchestration.language import templates
from longshore.orchestration.language.templates import TemplateProblem, render
from longshore.orchestration.messaging import signing
from longshore.orchestration.monitoring import counters
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.runs.search import Filter, search
from longshore.orchestration.settings import get_settings
from longshore.orchestration.store import audit
from longshore.orchestration.store.admission import Admission
from longshore.orchestration.store.keys import RUN_TYPES, TYPES
from longshore.orchestration.store.run_store import Store
from longshore.tasks.control.coordinator import Coordinator
from longshore.tasks.loaded_runs import Plans
from longshore.workers import transport
from tests.fuzz.conftest import LONG, run_limited
from tests.store.simulated_workers import MessageQueue
from tests.sweeping import sweep

# ruff: noqa: E501 - the grammars have long lines

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(LONG + 170)]

Fuzz = Callable[[Callable[[], Any]], None]
PROFILE = settings.get_profile("fuzz")

# --- generators -------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)  # fmt: skip

#: The words of expressions. Most of them belong to the grammar of templates, some do not.
words = st.sampled_from(
    [
        "params.a",
        "params.b",
        "params.text",
        "params.list",
        "steps.s.data",
        "1",
        "10**9",
        "'a'",
        "[1]",
        "{'a':1}",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "**",
        "*",
        "+",
        "-",
        "~",
        "%",
        "//",
        "in",
        "not",
        "and",
        "or",
        "is",
        "if",
        "else",
        "|center",
        "|replace",
        "|join",
        "|batch",
        "|list",
        "|length",
        "|sum",
        "|round",
        "|tojson",
        "|map",
        "|sort",
        "|format",
        "|indent",
        ".format",
        ".join",
        ".zfill",
        ".replace",
        ".split",
        "range(99999)",
        "namespace(x=1)",
        "1000000000",
        "'%1000000000d'",
        "loop",
        "self",
        "caller",
        "lipsum",
        ",",
        ":",
        "=",
        "==",
        "<",
        ".",
        "__class__",
        "secret('env:X')",
    ]
)
expressions = st.lists(words, min_size=1, max_size=14).map(" ".join)
tags = st.sampled_from([
    "{{ %s }}", "{%% for i in %s %%}", "{%% endfor %%}", "{%% set x = %s %%}", "{%% if %s %%}", "{%% endif %%}", "{# %s #}",
    "{%% macro m(a) %%}", "{%% endmacro %%}", "{%% set ns = namespace(x=%s) %%}", "{%% set ns.x = ns.x ~ ns.x %%}", "{{ m(%s) }}",
    "{{ loop(%s) }}", "{%% raw %%}", "text %s",
])  # fmt: skip
template_texts = st.lists(st.tuples(tags, expressions), min_size=1, max_size=6).map(
    lambda parts: "".join(tag % text if "%s" in tag else tag.replace("%%", "%") for tag, text in parts)
)
patterns = st.text(alphabet="ab.*+?()[]{}|^$\\d0123,9", max_size=30)


def _plan(draw: Any) -> dict[str, Any]:
    text = st.one_of(template_texts, st.text(max_size=20))
    step = st.fixed_dictionaries(
        {"op": st.sampled_from(["noop.execute", "command.argv.execute", "file.deploy.execute", "x"])},
        optional={
            "with": st.dictionaries(st.sampled_from(["data", "argv", "path", "content"]), text | values, max_size=3),
            "when": expressions | values, "foreach": text | values, "target": text | values, "tolerate": text | values,
            "retry": values, "timeout": text | values, "undo": values, "only_if": values, "in": values, "when_fact": values,
        },
    )  # fmt: skip
    return draw(
        st.fixed_dictionaries(
            {"name": st.just("p") | st.text(max_size=5), "steps": st.dictionaries(st.text("ab", max_size=3), step, max_size=3)},
            optional={
                "params": st.dictionaries(
                    st.sampled_from("ab"), st.fixed_dictionaries({}, optional={"pattern": patterns, "default": values}), max_size=2
                ),
                "concurrency": values | st.fixed_dictionaries({"key": text}), "schedules": values, "labels": values,
            },
        )
    )  # fmt: skip


plans = st.composite(_plan)()


def mutated(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes after some deletions, insertions and replacements."""
    for at, length, put in changes:
        place = at % (len(data) + 1)
        data = data[:place] + put + data[place + length :]
    return data


changes = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=4) | st.sampled_from([b"{", b"[" * 3000, b'"', b"\xff", b"1e999", b"-0", b"null"])),
    min_size=1, max_size=4,
)  # fmt: skip


# --- plans ------------------------------------------------------------------------------------------------


def test_plans_are_parsed_or_refused(fuzz: Fuzz) -> None:
    @settings(PROFILE)
    @given(plans)
    def one(data: dict[str, Any]) -> None:
        text = json.dumps(data)
        plan = run_limited(lambda: parse(text), clean=(PlanError,))
        if plan is not None:
            run_limited(lambda: reject_forbidden(plan, get_settings()), clean=(PlanError,))
            run_limited(lambda: request_body(plan, {}, "ann"), clean=(LongshoreError,))

    fuzz(one)


def test_plan_files_are_parsed_or_refused(fuzz: Fuzz) -> None:
    written = yaml.safe_dump({"name": "p", "params": {"a": "integer"}, "steps": {"s": {"op": "noop.execute"}}}).encode()

    @settings(PROFILE)
    @given(changes)
    def one(change: list[tuple[int, int, bytes]]) -> None:
        text = mutated(written, change).decode("utf-8", "replace")
        run_limited(lambda: parse(text), clean=(PlanError,))

    fuzz(one)


def test_templates_render_or_are_refused(fuzz: Fuzz) -> None:
    scope = {"params": {"a": 3, "b": 10**9, "text": "x" * 1000, "list": list(range(500))}, "steps": {"s": {"data": {}}}}

    @settings(PROFILE)
    @given(template_texts)
    def one(text: str) -> None:
        run_limited(lambda: render(text, scope), clean=(TemplateProblem,))
        run_limited(lambda: templates.references(text), clean=(TemplateProblem,))

    fuzz(one)


# --- requests and commands --------------------------------------------------------------------------------


class MemoryInstallation:
    """An installation in memory with one running run. No worker claims the steps of the run, and the run fails after
    `claim_timeout`, so that each round of examples has a new installation.
    """

    def __init__(self) -> None:
        client = fakeredis.FakeRedis(decode_responses=True, encoding_errors="surrogateescape")
        self.raw = fakeredis.FakeRedis(server=client.connection_pool.connection_kwargs["server"])
        self.store = Store(get_settings(), client)
        plan = Plan("p", concurrency={"key": "k"})
        plan.step("a", "noop.execute")
        plan.step("b", "noop.execute").after("a")
        self.body = request_body(plan, {}, "ann")
        Admission(self.store).submit("good", self.body)
        self.coordinator = Coordinator(
            MessageQueue(), self.store, Plans(self.store), canvas=lambda *_: DroppingCanvas()
        )  # type: ignore[arg-type]
        sweep(self.coordinator)

    def read_all(self) -> None:
        """Call all functions that read the store. No call may raise an exception."""
        sweep(self.coordinator)
        self.store.call(self.store.client.delete, self.store.keys.purged)
        sweep(self.coordinator)
        search(self.store, Filter())
        counters.totals(self.store)
        list(audit.lines(self.store))
        integrity.clean(self.store)


class DroppingCanvas:
    """A canvas that drops all messages."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


def test_requests_are_started_or_refused(fuzz: Fuzz) -> None:
    def some() -> None:
        installation = MemoryInstallation()
        written = json.dumps(installation.body).encode()

        @settings(PROFILE)
        @given(changes | values)
        def one(change: Any) -> None:
            text = (
                mutated(written, change)
                if change and isinstance(change, list) and isinstance(change[0], tuple)
                else json.dumps(change)
            )
            installation.raw.set(installation.store.keys.of("r").request, text)
            installation.raw.zadd(installation.store.keys.inbox, {"r": 1})
            run_limited(installation.read_all, clean=())
            assert installation.store.state("good") == "running"
            installation.coordinator.lifecycle.forget("r")
            installation.raw.delete(*installation.raw.keys("longshore:{r}:*") or [b"none"])
            for index in ("inbox", "live", "queue", "admitted", "runs", "ended"):
                installation.raw.zrem(f"longshore:{index}", "r")
            installation.raw.hdel(installation.store.keys.admission_requests, "r")
            installation.coordinator.plans._loaded.pop("r", None)

        one()

    fuzz(some)


def test_commands_are_executed_or_refused(fuzz: Fuzz) -> None:
    def some() -> None:
        installation = MemoryInstallation()
        kinds = st.sampled_from(["resume", "undo", "resolve", "approve", "reject", "prune", "x", ""])

        @settings(PROFILE)
        @given(kinds, st.dictionaries(st.sampled_from(["step", "as", "actor", "reason", "keep", "nonce"]) | st.text(min_size=1, max_size=5), st.text(max_size=9) | st.sampled_from(["0", "7", "0.1", "u0"])))  # fmt: skip
        def one(kind: str, fields: dict[str, str]) -> None:
            encoded = {
                name.encode("utf-8", "replace"): text.encode("utf-8", "replace") for name, text in fields.items()
            }
            installation.raw.xadd(installation.store.keys.of("good").commands, {b"kind": kind.encode(), **encoded})
            installation.raw.zadd(installation.store.keys.inbox, {"good": 1})
            run_limited(installation.read_all, clean=())
            assert installation.store.state("good") == "running"

        one()

    fuzz(some)


def test_mutated_signed_text_is_refused(fuzz: Fuzz) -> None:
    ring = signing.Ring((signing.new_key("worker"),))
    signed = f"{json.dumps(signing.sign(ring, 'request', signing._of_text('r', '{}')))}\n{{}}"

    @settings(PROFILE)
    @given(changes)
    def one(change: list[tuple[int, int, bytes]]) -> None:
        text = mutated(signed.encode(), change).decode("utf-8", "surrogateescape")
        key = run_limited(lambda: signing.check_text(ring, "request", "r", text), clean=(signing.Forged,))
        assert key is None or signing.opened(text)[0] == "{}"

    fuzz(one)


# --- messages ---------------------------------------------------------------------------------------------


def test_mutated_messages_cause_no_exception(fuzz: Fuzz) -> None:
    headers = {
        "task": "longshore.advance",
        "id": "a",
        "root_id": "r",
        "retries": 0,
        "timelimit": [None, None],
        "eta": None,
    }
    properties = {"delivery_tag": "t", "delivery_info": {}, "body_encoding": "base64"}
    body = base64.b64encode(json.dumps([["r"], {}, {}]).encode()).decode()
    kind = {"content-type": "application/json", "content-encoding": "utf-8"}
    good = {"body": body, "headers": headers, "properties": properties} | kind

    @settings(PROFILE)
    @given(changes | st.tuples(st.sampled_from([*headers, *properties, "body", "headers", "properties"]), values))
    def one(change: Any) -> None:
        raw = json.dumps(good).encode()
        if isinstance(change, list):
            raw = mutated(raw, change)
        else:
            name, value = change
            message = json.loads(raw)
            (message["headers"] if name in headers else message["properties"] if name in properties else message)[
                name
            ] = value
            raw = json.dumps(message).encode()
        assert isinstance(run_limited(lambda: transport.fault(raw), clean=()), str)

    fuzz(one)


# --- entries of indices -----------------------------------------------------------------------------------

KEYS = [*(name for name in TYPES if not name.endswith(":")), "host:h", "breaker:b", "blocked:b", "half-open:b", "lock:l",
        "slot:k", "plan:p", *(f"{{r}}:{name}" for name in RUN_TYPES)]  # fmt: skip


def write(redis: Any, key: str, kind: str, first: bytes, second: bytes) -> None:
    match kind:
        case "zset":
            redis.zadd(key, {first: 1})
        case "hash":
            redis.hset(key, first, second)
        case "string":
            redis.set(key, first)
        case "set":
            redis.sadd(key, first)
        case "list":
            redis.lpush(key, first)
        case _:
            redis.xadd(key, {first or b"x": second})


def test_invalid_entries_of_indices_do_not_affect_other_runs(fuzz: Fuzz) -> None:
    def some() -> None:
        installation = MemoryInstallation()
        entry = st.binary(max_size=8) | st.sampled_from([b"good2", b"r", b"{}", b"[" * 5000, b"nan", b"node:x", b"h"])

        @settings(PROFILE)
        @given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(["zset", "hash", "string", "set", "list", "stream"]), entry, entry), min_size=1, max_size=4))  # fmt: skip
        def one(written: list[tuple[str, str, bytes, bytes]]) -> None:
            for name, kind, first, second in written:
                key = f"longshore:{name}"
                if installation.raw.type(key).decode() not in {"none", kind}:
                    installation.raw.delete(key)
                write(installation.raw, key, kind, first, second)
            run_limited(
                lambda: (
                    integrity.repair(installation.store),
                    installation.read_all(),
                    list(doctor._keys(installation.store)),
                ),
                clean=(),
            )
            assert integrity.wrong_keys(installation.store) == []
            assert installation.store.state("good") == "running"

        one()

    fuzz(some)
