"""Templates in parameters: results, references and sandboxing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration.language.templates import (
    References,
    TemplateProblem,
    has_template,
    is_template,
    references,
    render,
)

SCOPE: dict[str, Any] = {
    "params": {"tag": "1.10", "port": 8080, "hosts": ["a", "b"], "limits": {"cpu": 2}, "debug": False, "nothing": None},
    "steps": {
        "check-health": {"status": "changed", "changed": True, "data": {"id": "sha256:1"}, "error": None},
        "pull": {"status": "unchanged", "changed": False, "data": {}, "error": None},
    },
    "run": {"id": "r1", "name": "release"},
    "host": {"name": "web1", "labels": {}, "facts": {}},
}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ params.port }}", 8080),
        ("{{params.port}}", 8080),
        ("  {{ params.port }} ", 8080),
        ("{{- params.port -}}", 8080),
        ("{{ params.hosts }}", ["a", "b"]),
        ("{{ params.limits }}", {"cpu": 2}),
        ("{{ params.debug }}", False),
        ("{{ params.nothing }}", None),
        ("{{ params.port + 1 }}", 8081),
        ("{{ params.limits.cpu }}", 2),
        ("{{ steps['check-health'].data.id }}", "sha256:1"),
        ("{{ steps.pull.data.id | default('none yet') }}", "none yet"),
        ("{{ params.hosts | map('upper') | list }}", ["A", "B"]),
        ("{{ '}}' }}", "}}"),
    ],
)
def test_lone_expression_keeps_its_type(template: str, value: Any) -> None:
    rendered = render(template, SCOPE)

    assert rendered == value
    assert type(rendered) is type(value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ params.tag }}", "1.10"),
        ("v{{ params.tag }}", "v1.10"),
        ("{{ params.port }}{{ params.port }}", "80808080"),
        (":{{ params.port }}", ":8080"),
        ("{% if params.debug %}on{% else %}0644{% endif %}", "0644"),
        ("{% for h in params.hosts %}{{ h }},{% endfor %}", "a,b,"),
        ("{{ params.debug }}{# no #}", "False"),
        ("[{{ params.port }}]", "[8080]"),
        ("line\n", "line\n"),
        ("{{ params.tag }} and\n", "1.10 and\n"),
    ],
)
def test_mixed_template_is_always_text(template: str, text: str) -> None:
    rendered = render(template, SCOPE)

    assert rendered == text
    assert type(rendered) is str


def test_templates_are_rendered_in_nested_values_and_keys() -> None:
    value = {"env": {"{{ params.tag }}": ["{{ params.port }}", "x{{ params.port }}", 7, None]}, "plain": True}

    assert render(value, SCOPE) == {"env": {"1.10": [8080, "x8080", 7, None]}, "plain": True}


@given(st.text().filter(lambda text: "{" not in text))
def test_plain_text_is_unchanged(text: str) -> None:
    assert not is_template(text)
    assert render({"a": [text]}, {}) == {"a": [text]}


@pytest.mark.parametrize(
    "template",
    [
        "{{ params.nope }}",
        "x{{ params.nope }}",
        "{{ params.limits.memory }}",
        "{{ params.nope.deeper }}",
        "{{ steps.gone.data }}",
        "{{ nothing_of_that_name }}",
        "{{ params.hosts[7] }}",
        "{{ 1 if params.debug }}",
        "{{ params.port / 0 }}",
        "{{ params.port + params.tag }}",
        "{{ params.port | no_such_filter }}",
        "{{ 1 + }}",
        "{{ params.port",
        "{% if %}",
        "{{ }}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
        "{% extends params.tag %}x",
        "first\n{{ params.nope }}\nlast",
    ],
)
def test_template_error_is_one_line_with_the_template(template: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        render(template, SCOPE)

    assert "\n" not in str(caught.value)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "x{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ params.__class__ }}",
        "{{ params.hosts.append('c') }}",
        "{{ params.update({'tag': 2}) }}",
        "{{ params.limits.clear() }}",
        "{{ range(1000000000) | list }}",
        "{{ (1).__class__.__base__ }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_template_sandbox_blocks_access_and_mutation(template: str) -> None:
    before = repr(SCOPE)

    with pytest.raises(TemplateProblem):
        render(template, SCOPE)

    assert repr(SCOPE) == before


@pytest.mark.parametrize(
    ("value", "refers"),
    [
        ("plain", References()),
        ("{{ params.tag }}", References(params=frozenset({"tag"}))),
        ("{{ params['tag'] }}", References(params=frozenset({"tag"}))),
        ("{{ steps['check-health'].status }}", References(steps=frozenset({"check-health"}))),
        ("{{ steps['a']['data'] }} {{ steps.b.data.c }}", References(steps=frozenset({"a", "b"}))),
        ("{% if steps.a.changed %}{{ params.x }}{% endif %}", References(frozenset({"x"}), frozenset({"a"}))),
        ("{% for host in params.hosts %}{{ host }}{% endfor %}", References(params=frozenset({"hosts"}))),
        ("{% set one = steps.z %}{{ one.status }}", References(steps=frozenset({"z"}))),
        ({"a": ["{{ steps.x.data }}", {"{{ params.k }}": 1}], "b": 2}, References(frozenset({"k"}), frozenset({"x"}))),
        ("{{ run.id }} {{ host.name }}", References()),
        ("{{ item }}", References(unknown=frozenset({"item"}))),
        ("{{ data.id }} {{ before }}", References(unknown=frozenset({"data", "before"}))),
        ("{% raw %}{{ other }}{% endraw %}", References()),
        ("{# {{ other }} #}", References()),
    ],
)
def test_references_are_found_at_any_depth(value: Any, refers: References) -> None:
    assert references(value) == refers


def test_undo_template_may_read_its_steps_data() -> None:
    roots = frozenset({"params", "steps", "run", "host", "data", "before"})

    assert references("{{ data.id }} {{ before.image }}", roots).unknown == frozenset()


@pytest.mark.parametrize("template", ["{{ 1 + }}", "{{ params.x", "{% endif %}", "{{ a | }}", "line\n{% nope %}"])
def test_broken_template_is_found_by_validation(template: str) -> None:
    with pytest.raises(TemplateProblem, match="broken template") as caught:
        references({"deep": [template]})

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "has"), [("x", False), ("{", False), ("{# c #}", True), ({"{{ a }}": 1}, True), ([["{%"]], True)]
)
def test_template_is_detected_at_any_depth(value: Any, has: bool) -> None:
    assert has_template(value) is has


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "copy"])
def test_parameter_may_share_a_dict_methods_name(name: str) -> None:
    assert render(f"{{{{ params.{name} }}}}", {"params": {name: [1, 2]}}) == [1, 2]


def test_default_covers_a_missing_parent() -> None:
    assert render("{{ data.result.receipt | default(none) }}", {"data": {}}) is None
    assert render("{{ data.result['items'].first | default('none') }}", {"data": {}}) == "none"
    for template in ("{{ data.result.receipt }}", "{{ data.result.receipt == 1 }}", "a{{ data.result.receipt }}"):
        with pytest.raises(TemplateProblem, match="has no attribute 'result'"):
            render(template, {"data": {}})


@pytest.mark.parametrize(
    "template", ["{{ [params.nope] }}", "{{ {'a': params.nope} }}", "{{ [[steps.pull.data.id]] }}"]
)
def test_missing_value_in_a_list_fails(template: str) -> None:
    with pytest.raises(TemplateProblem):
        render(template, SCOPE)


@pytest.mark.parametrize(
    "template",
    ["{{ params.tag.upper }}", "{{ params.hosts | map('upper') }}", "{{ params.tag.encode() }}", "{{ lipsum }}"],
)
def test_lone_expression_must_yield_data(template: str) -> None:
    with pytest.raises(TemplateProblem):
        render(template, SCOPE)
