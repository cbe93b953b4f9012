"""Hostile templates and patterns fail with a clean error, in bounded time and memory."""

# ruff: noqa: E501 - templates stay on one line

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest

from longshore.orchestration import ParamsError, PlanError, parse, validate
from longshore.orchestration.language import templates
from longshore.orchestration.language.params import Param, resolve
from longshore.orchestration.language.template_engine import LARGEST, STEPS, spending
from longshore.orchestration.language.templates import TemplateProblem, render, truth
from longshore.orchestration.plans.model import Plan
from longshore.orchestration.plans.policy import reject_forbidden
from longshore.orchestration.settings import get_settings

#: The limit of CPU seconds. On an idle machine each case takes less than one second.
AT_MOST = 10.0
#: KiB by which the process may grow.
MEMORY = 400 * 1024


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - began < AT_MOST
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


SCOPE: dict[str, Any] = {"params": {"a": 3, "b": 10**9, "text": "x" * 1000, "list": list(range(1000))}}

COSTLY = [
    # operators
    "{{ 'a' * 10**9 }}", "{{ 10**9 * 'a' }}", "{{ [0] * 10**9 }}", "{{ (1, 2) * 10**9 }}", "{{ params.a ** params.b }}",
    "{{ (-7) ** 1000000000 }}", "{{ (10**1000) * (10**1000) }}", "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}", "{{ '%.1000000000f' % 1.5 }}", "{{ ('%9999d' * 9999) % params.list }}",
    "{{ '%(a)1000000000s' % {'a': 1} }}", "{{ ('%s' * 5000) % ((params.text * 1000,) * 5000) }}",
    "{{ ('x' * 4000000) ~ ('x' * 4000000) ~ ('x' * 4000000) }}",
    # filters and methods
    "{{ 'a'|center(10**9) }}", "{{ 'a'.center(10**9) }}", "{{ 'a'.ljust(10**9) }}", "{{ 'a'.rjust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}", "{{ '\t'.expandtabs(10**9) }}", "{{ 'a\nb'|indent(10**9, true) }}",
    "{{ '{:1000000000}'.format(1) }}", "{{ '{:{w}}'.format(1, w=10**9) }}", "{{ '{:.1000000000f}'.format(1.5) }}",
    "{{ '{0:>1000000000}'.format_map({'0': 1}) }}", "{{ '%1000000000d'|format(1) }}", "{{ '%*d'|format(10**9, 1) }}",
    "{{ (params.text * 1000)|replace('x', params.text * 1000) }}", "{{ params.text.replace('x', 'y' * 1000000) }}",
    "{{ params.text.replace('', 'y' * 1000000) }}", "{{ (params.text * 4000)|join(params.text * 1000) }}",
    "{{ ('y' * 1000000).join(params.text) }}", "{{ params.list|batch(10**9, 0)|list }}", "{{ params.list|slice(10**9)|list }}",
    "{{ {'a': [1]}|tojson(indent=10**9) }}", "{{ 1.5|round(10**9, 'ceil') }}", "{{ lipsum(n=10**9) }}",
    "{{ (5).to_bytes(10**9, 'big') }}", "{{ 'a'.translate({97: 'a' * 1000000}) }}", "{{ [[1]]|sum(start=[]) }}",
    "{{ range(10**9)|list }}", "{{ range(10**9)|sum }}", "{{ dict.fromkeys(range(100000), 1) }}", "{{ params.list|pprint }}",
    "{{ ('x@x.x ' * 100000)|urlize }}", "{{ 'a'|attr('__class__') }}", "{{ cycler(*range(100000)) }}",
    # loops
    "{% for i in range(10**9) %}{% endfor %}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r if j < 0 %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r recursive %}{{ loop(r) }}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{{ r|reject|list|length }}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{{ r|select|first }}{{ r|map('string')|join|length }}{% endfor %}",
    "{% set r = range(99999)|list %}{% for i in r %}{{ 'no' in r }}{% endfor %}",
    "{% set r = range(99999)|list %}{% for i in r %}{{ r == r[:] }}{% endfor %}",
    "{% set r = 'x' * 999999 %}{% for i in range(99999) %}{{ r[:-1] == r[1:] }}{% endfor %}",
    "{% set r = 'x' * 999999 %}{% for i in range(99999) %}{{ r }}{% endfor %}",
    "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "{% set r = range(99999)|list %}{% for i in r %}{{ r|sort|length }}{{ r|unique|list|length }}{% endfor %}",
    "{% for i in range(99999) %}{{ [" + "0," * 3000 + "]|length }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(99) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=['aa']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=['aa']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == [ns.x] }}",
    "{% set ns = namespace(x=['aa']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "{% set ns = namespace(x=['aa']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|string }}",
    "{% set ns = namespace(x=('a',)) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set x %}{% for i in range(99999) %}{{ params.text }}{% endfor %}{% endset %}{{ x }}",
    "{% filter upper %}{% for i in range(99999) %}{{ params.text }}{% endfor %}{% endfilter %}",
    # parsing and compilation
    "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "{{ " + "not " * 3000 + "1 }}", "{{ " + "-" * 10_000 + "1 }}",
    "{{ " + "1+" * 5000 + "1 }}", "{{ a" + ".a" * 5000 + " }}", "{{ a" + "|e" * 5000 + " }}", "{{ " + "[" * 5000 + " }}",
    "{{ " + "1" * 10_000 + " }}", "{{ 1e999999999 }}", "{{ " + "'a' ~ " * 3000 + "'a' }}", "{{ a }}" * 100_000,
    "{% if 1 %}" * 3000, "{% for i in x %}" * 3000, "{{ [" + "1," * 100_000 + "] }}", "{" * 100_000 + "{{", "{#" * 100_000,
    "{{ " + "a if a else " * 3000 + "a }}", "{% if a %}" + "{% elif a %}" * 2000 + "{% endif %}", "{{ " + "x[" * 4000 + " }}",
    "{% raw " * 20_000, "{% include 'x' %}", "{% import 'x' as x %}", "{% extends 'x' %}",
]  # fmt: skip


@pytest.mark.parametrize("text", COSTLY, ids=lambda text: text[:60])
def test_costly_template_fails(text: str) -> None:
    with pytest.raises(TemplateProblem) as found:
        render(text, SCOPE)

    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("text", COSTLY, ids=lambda text: text[:60])
def test_every_analysis_of_a_costly_template_terminates(text: str) -> None:
    for look in (templates.references, templates.reads_outcome, templates.paths, templates.looks_for_failure_of):
        try:
            look(text)
        except TemplateProblem:
            continue
    templates.reaches_inside(text)


@pytest.mark.parametrize("text", COSTLY, ids=lambda text: text[:60])
def test_plan_with_a_costly_template_loads_or_is_refused(text: str) -> None:
    data = {"name": "p", "params": {"a": "integer", "b": "integer"}}
    steps = {"s": {"op": "command.argv.execute", "with": {"argv": ["echo", text]}, "when": "1 == 1"}}
    with contextlib.suppress(PlanError):
        reject_forbidden(parse(json.dumps(data | {"steps": steps})), get_settings())


def test_costly_power_expression_fails() -> None:
    with pytest.raises(TemplateProblem, match="the power is too large"):
        truth("params.a ** params.b > 1", SCOPE)


def test_templates_share_one_budget() -> None:
    text = "{% for i in range(20_000) %}{% endfor %}{{ params.a }}"

    with spending():
        render([text] * (STEPS // 50_000), SCOPE)
        with pytest.raises(TemplateProblem, match=f"more than {STEPS} steps"):
            render([text] * (STEPS // 50_000), SCOPE)


def test_template_length_is_limited() -> None:
    plan = Plan("p")
    for number in range(60):
        plan.step(f"s{number}", "command.argv.execute", argv=["echo", "{{ params.a + 1 }}" * 900])

    with pytest.raises(PlanError, match="characters inside their tags"):
        validate(plan)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ 2 ** 10 }}", 1024),
        ("{{ 'ab' * 3 }}", "ababab"),
        ("{{ '%05.1f|%s' % (2.5, 'x') }}", "002.5|x"),
        ("{{ '{:>5}'.format(7) }}", "    7"),
        ("{{ 'a'|center(5) }}", "  a  "),
        ("{% for i in range(3) %}{{ loop.index }}:{{ i }} {% endfor %}", "1:0 2:1 3:2 "),
        ("{% for i in [3, 1] if i > 1 %}{{ i }}{% else %}none{% endfor %}", "3"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m(2) }}", "<1><2>"),
        ("{{ [1, 2, 3]|map('string')|join('-') }}", "1-2-3"),
        ("{{ [{'a': 1}, {'a': 2}]|map(attribute='a')|sum }}", 3),
        ("{{ {'b': 1, 'a': 2}|dictsort }}", [["a", 2], ["b", 1]]),
        ("{{ 'x' ~ 1 ~ none }}", "x1None"),
        ("{{ params.list[1:3] }}", [1, 2]),
        ("{{ 3 in params.list and 'x' not in 'abc' }}", True),
        ("{{ params.text|length }}", 1000),
        ("{{ 'a-b'.split('-') }}", ["a", "b"]),
        ("{{ ', '.join(['a', 'b']) }}", "a, b"),
        ("{{ params.missing|default('d') }}", "d"),
        ("{{ {'a': {'b': 1}}|tojson(indent=1) }}", '{\n "a": {\n  "b": 1\n }\n}'),
        ("{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "10"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ [1, 2, 3, 4]|batch(2)|list }}", [[1, 2], [3, 4]]),
        ("{{ ['b', 'a']|sort|first }}", "a"),
        ("{{ [1, 2]|select('odd')|list }}", [1]),
        ("{% call(x) m() %}{{ x }}{% endcall %}{% macro m() %}{{ caller(1) }}{% endmacro %}", None),
    ],
)
def test_usual_templates_render(text: str, value: Any) -> None:
    if value is None:
        text = "{% macro m() %}{{ caller(1) }}{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}"
        value = "1"
    assert render(text, SCOPE) == value


def test_largest_file_is_rendered() -> None:
    text = "line {{ params.a }}\n" + "x" * (LARGEST // 4)

    assert render(text, SCOPE).startswith("line 3\nxxx")


# --- patterns -------------------------------------------------------------------------------------------

CATASTROPHIC = [
    "(a+)+$", "(a|aa)+$", "(a|a?)+$", "(.*a){20}", r"(\w+\s?)*$", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$", "([a-zA-Z]+)*$",
    "(a{0,30}){0,30}$", "[01]*1[01]{900}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", CATASTROPHIC)
@pytest.mark.parametrize("text", ["a" * 9999 + "!", "01" * 4999 + "2", "x" * 9999, "aaa bbb " * 1000 + "!"], ids=repr)
def test_catastrophic_pattern_is_matched_in_linear_time(pattern: str, text: str) -> None:
    Param.model_validate({"pattern": pattern}).problem(text)


@pytest.mark.parametrize(
    "pattern",
    ["(", "a)|(b", r"(a)\1", "(?=a)a", "(?<!a)b", "(a{1000}){1000}", "a{1,99999999}", "x" * 2000, "(" * 5000, "[" * 900,
     "(?P<n>a)(?P=n)", "a{5}{5}{5}{5}{5}{5}"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_slow_pattern_is_refused_with_its_plan(pattern: str) -> None:
    with pytest.raises(PlanError) as found:
        parse(json.dumps({"name": "p", "params": {"a": {"pattern": pattern}}, "steps": {"s": {"op": "noop.execute"}}}))

    assert "pattern" in str(found.value)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("v[0-9]+", "v12", "v1x"),
        ("a|bc", "bc", "ab"),
        (r"[a-z]+\.dev", "web.dev", "web.dev\n"),
        (r"\d{1,3}", "123", "1234"),
        ("(?i)abc", "AbC", "abd"),
    ],
)
def test_pattern_must_match_the_whole_text(pattern: str, good: str, bad: str) -> None:
    param = Param.model_validate({"pattern": pattern})

    assert param.problem(good) is None
    assert param.problem(bad) is not None


def test_text_too_long_for_its_pattern_is_refused() -> None:
    with pytest.raises(ParamsError, match="at most 10000 characters"):
        resolve({"a": Param.model_validate({"pattern": ".*"})}, {"a": "x" * 10_001})


# --- YAML and JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)),
        "a: &a {b: *a}",
        "a: &a [*a]",
        "[" * 100_000,
        '{"a":' * 100_000,
        "name: p\nparams:\n" + "  ? x\n" * 1000,
        "- " * 50_000,
        "? " * 50_000,
        "!!python/object/apply:os.system ['true']",
        "a: " + "1" * 100_000,
        "a: 0x" + "f" * 100_000,
        "a: " + ":".join(["59"] * 20_000),
        "a: !!binary " + "A" * 100_000,
        "&a " * 10_000,
        "\x00",
        "a: \ud800",
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_alias_bomb_file_fails_cleanly(text: str) -> None:
    with pytest.raises(PlanError):
        parse(text)
