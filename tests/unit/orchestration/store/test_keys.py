"""Names of keys: distinct for runs and installations, and in one slot for one run."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration.language.identifiers import RUN_ID
from longshore.orchestration.store import keys as module
from longshore.orchestration.store import lua
from longshore.orchestration.store.keys import Field, Keys, RunKeys

run_ids = st.from_regex(RUN_ID, fullmatch=True)
namespaces = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)


def all_of(run: RunKeys) -> list[str]:
    return [run.request, run.commands, run.run, run.steps, run.leases, run.events, run.log(0), run.log(10)]


@given(namespaces, run_ids)
def test_all_keys_of_a_run_share_one_slot(namespace: str, run_id: str) -> None:
    made = all_of(Keys(namespace).of(run_id))

    # The slot is the hash of the text between the first { and the next }.
    assert {re.search(r"\{([^}]+)\}", key)[1] for key in made} == {run_id}  # type: ignore[index]
    assert len(set(made)) == len(made)
    assert all(key.startswith(f"{namespace}:") for key in made)


@given(st.tuples(namespaces, run_ids), st.tuples(namespaces, run_ids))
def test_keys_of_runs_and_installations_are_distinct(one: tuple[str, str], two: tuple[str, str]) -> None:
    if one == two:
        return
    of_one, of_two = (Keys(namespace).of(run_id) for namespace, run_id in (one, two))

    assert not set(all_of(of_one)) & set(all_of(of_two))


@given(namespaces, run_ids)
def test_run_keys_never_collide_with_indices(namespace: str, run_id: str) -> None:
    keys = Keys(namespace)
    indices = {keys.inbox, keys.live, keys.runs, keys.dry_run(run_id), keys.dry_run_answers(run_id)}

    assert len(indices) == 5
    assert not indices & set(all_of(keys.of(run_id)))


def test_scripts_receive_keys_in_declared_order() -> None:
    keys = Keys("ns").of("r")

    assert keys.record() == ["ns:{r}:run", "ns:{r}:steps", "ns:{r}:leases", "ns:{r}:events", "ns:{r}:waits"]


def test_module_docstring_lists_every_key() -> None:
    keys = Keys("{ns}")
    made = [key.replace("{r}", "{run}") for key in all_of(keys.of("r"))]
    made = [key.replace("log:0", "log:<id>").replace("log:10", "log:<id>") for key in made]
    made += [
        keys.inbox,
        keys.live,
        keys.runs,
        keys.dry_run("<id>"),
        keys.dry_run_answers("<id>"),
        keys.hosts,
        keys.host("<name>"),
    ]

    assert all(f"    {key} " in str(module.__doc__) for key in made)


def test_step_fields_are_distinct_and_reserve_the_undo_prefix() -> None:
    assert len(set(Field)) == len(Field.__members__)
    assert not any(field.startswith("u") for field in Field)


def test_scripts_and_python_use_the_same_step_fields() -> None:
    texts = [lua.source(name) for name in lua.names()]
    in_scripts = {name for text in texts for name in re.findall(r"'([a-z_]+):'", text)} - {"data"}
    in_scripts = {name if name in set(Field) else name.removeprefix("u") for name in in_scripts}

    assert in_scripts <= set(Field)
    # These two are written in one command each.
    assert set(Field) - in_scripts <= {Field.DATA_KEY, Field.TASK_ERROR}


def test_key_types_match_the_list_and_the_table() -> None:
    listed = re.findall(
        r"^    \{ns\}:([a-z-]+:?)\S*\s+(?:(string|hash|zset|set|list|stream|text)\b)", module.__doc__ or "", re.M
    )

    assert {name: "string" if kind == "text" else kind for name, kind in listed} == dict(module.TYPES)
