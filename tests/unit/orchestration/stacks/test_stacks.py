"""Drift of stacks from host snapshots, rules for stacks, and the plan of a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.orchestration import validate
from longshore.orchestration.errors import ConfigError, UnknownName, UsageError
from longshore.orchestration.plans.compiled import CompiledPlan
from longshore.orchestration.runs.stack_outcome import exit_code, stacks_of
from longshore.orchestration.stacks.drift import Note, Reason, Stale, find_drift, stale_of
from longshore.orchestration.stacks.image_names import matches_image, normal, registry_of
from longshore.orchestration.stacks.inventory import Inventory, Project, Remote, Replica, Service, Tracked, difference
from longshore.orchestration.stacks.plan import RolloutOptions, restart_plan, with_defaults
from longshore.orchestration.stacks.rules import StackRules, parse_files, required_action, stack_rules
from longshore.orchestration.stacks.selection import choose, named, with_reused_answers
from longshore.orchestration.states import Cause, RunState, StepState
from longshore.orchestration.testing import Sandbox
from longshore.tasks.operations.compose.cli import Source
from longshore.tasks.operations.compose.inputs import digest_of_file, inputs_of

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def replica(number: int = 1, **values: Any) -> Replica:
    base = {"id": f"c{number}", "name": f"shop-web-{number}", "number": number, "image_id": OLD, "hash": "h1"}
    return Replica(**(base | {"state": "running", "start": "s1"} | values))


def service(*containers: Replica, **values: Any) -> Service:
    base = {"image": "shop:1", "image_id": OLD, "hash": "h1", "replicas": 1, "containers": list(containers)}
    return Service(**(base | values))


def drift_of(of: Service) -> tuple[list[str], str, list[str]]:
    """The reasons, the action, and the notes."""
    found = list(find_drift("web1", Inventory(projects={"shop": Project(services={"web": of})})))
    stale = [one for one in found if isinstance(one, Stale)]
    notes = [one.text for one in found if isinstance(one, Note)]
    return ([str(reason) for reason in stale[0].reasons], stale[0].action, notes) if stale else ([], "", notes)


DEAD = replica(state="exited", exit_code=1)
STOPPED = replica(state="exited", exit_code=137, by_hand=True)
ENDED = replica(state="exited", exit_code=0)
CHANGED = {"/x": Tracked(digest="2")}


@pytest.mark.parametrize(
    ("of", "reasons", "action", "notes"),
    [
        (service(replica()), [], "", []),
        (service(replica(), image_id=NEW), ["image aaaaaaaaaaaa → bbbbbbbbbbbb"], "up", []),
        (service(replica(), image_id=None), [], "", []),
        (service(replica(), newer=NEW), ["image shop:1 → bbbbbbbbbbbb at its registry"], "up", []),
        (service(replica(), hash="h2"), ["config h1 → h2"], "up", []),
        (service(replica(changed=["/a", "/b"]), hash="h2"), ["config h1 → h2 (/a, /b changed)"], "up", []),
        (service(replica(), hash="h2", failed="failed"), [], "", [
            "config h1 → h2: this version failed; to try it again: --retry"]),
        (service(replica(health="unhealthy"), hash="h2", failed="failed"), ["unhealthy (shop-web-1)"], "restart", [
            "config h1 → h2: this version failed; to try it again: --retry"]),
        (service(DEAD, hash="h2", failed="failed"), [], "", [
            "config h1 → h2: this version failed; to try it again: --retry"]),
        (service(DEAD, failed="failed"), ["missing (shop-web-1 ended with 1)"], "up", []),
        (service(), ["missing"], "up", []),
        (service(replica(), replicas=2), ["missing (1 of 2)"], "up", []),
        (service(replicas=0), [], "", []),
        (service(profiled=True), [], "", []),
        (service(DEAD), ["missing (shop-web-1 ended with 1)"], "up", []),
        (service(replica(state="created")), ["missing (shop-web-1 was never started)"], "up", []),
        (service(replica(health="unhealthy")), ["unhealthy (shop-web-1)"], "restart", []),
        (service(replica(health="starting")), [], "", []),
        (service(replica(state="restarting")), ["unhealthy (shop-web-1 keeps restarting)"], "restart", []),
        (service(replica(files={"/x": "1"}), files=CHANGED), ["file /x changed"], "redeploy", []),
        (service(replica(files={"/x": ""}), files=CHANGED), ["file /x changed"], "redeploy", []),
        (service(replica(files={"/x": "2"}), files=CHANGED), [], "", []),
        (service(replica(), files=CHANGED), [], "", []),
        (
            service(replica(files={"/x": "1"}), files={"/x": Tracked(digest="2", requires="restart")}),
            ["file /x changed"], "restart", [],
        ),
        (service(replica(files={"/x": "1"}), files={"/x": Tracked(digest="2", requires="none")}), [], "", []),
        (service(STOPPED), [], "", ["stopped by hand"]),
        (service(STOPPED, image_id=NEW, hash="h2"), [], "", ["stopped by hand"]),
        (service(ENDED, image_id=NEW), [], "", ["ended with 0"]),
        (service(replica(state="paused")), [], "", ["paused"]),
        (service(replica(), hash=""), [], "", ["not defined in the files of its project"]),
        (
            service(replica(), replica(2)), [], "", ["2 containers, but its files define 1; all are kept"],
        ),
        (
            service(replica(), replica(2, state="exited", exit_code=143, by_hand=True), replicas=2),
            [], "", ["stopped by hand (shop-web-2)"],
        ),
        (
            service(replica(health="unhealthy"), replicas=2),
            ["missing (1 of 2)", "unhealthy (shop-web-1)"], "redeploy", [],
        ),
    ],
)  # fmt: skip
def test_service_drift_follows_the_snapshot(of: Service, reasons: list[str], action: str, notes: list[str]) -> None:
    assert drift_of(of) == (reasons, action, notes)


def services_left_alone(retry: bool = False, **services: Service) -> tuple[dict[str, str], dict[str, str]]:
    """The action of each stale service, and the note about each other one."""
    found = list(find_drift("web1", Inventory(projects={"shop": Project(services=services)}), retry=retry))
    actions = {one.service: str(one.action) for one in found if isinstance(one, Stale)}
    return actions, {one.service: one.text for one in found if isinstance(one, Note)}


def test_new_version_is_not_brought_beside_the_failed_version_of_a_dependency() -> None:
    def new(*depends_on: str, **values: Any) -> Service:
        return service(replica(**values), hash="h2", depends_on=list(depends_on))

    api = service(replica(), hash="h2", failed="failed")
    why = "config h1 → h2: depends on api, whose version failed; to try it again: --retry"
    others = {
        "poller": new("api"),
        "cache": service(replica(), depends_on=["api"]),
        "indirect": new("cache", "removed"),
        "ill": new("poller", health="unhealthy"),
        "web": new(),
    }

    actions, notes = services_left_alone(api=api, **others)

    assert actions == {"ill": "restart", "web": "up"}
    assert notes.pop("api") == "config h1 → h2: this version failed; to try it again: --retry"
    assert notes == dict.fromkeys(("poller", "indirect", "ill"), why)
    assert stale_of(Project(services={"api": api} | others)).keys() == actions.keys()
    # with --retry, all services are updated
    assert services_left_alone(retry=True, api=api, **others)[1] == {}
    # a dependency that runs the failed version, or whose version is corrected, prevents no update
    for running in (service(replica(), failed="failed"), service(replica(), hash="h3")):
        assert "poller" in services_left_alone(api=running, **others)[0]
    # and all failed dependencies are named, also in a circle
    both = {"api": api, "db": service(replica(), hash="h2", failed="failed", depends_on=["x"]), "x": new("api", "db")}
    assert "depends on api and db, whose versions failed;" in services_left_alone(**both)[1]["x"]


def test_unreadable_project_is_reported_without_affecting_others() -> None:
    broken = Project(error="its files cannot be used: no such file", services={"web": service(DEAD)})
    found = list(find_drift("web1", Inventory(projects={"a": broken, "b": Project(services={"web": service(DEAD)})})))
    assert [str(one) for one in found if isinstance(one, Note)] == ["a: its files cannot be used: no such file"]
    assert [one.name for one in found if isinstance(one, Stale)] == ["b/web"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"rules": "2"}, "the rules for tracked files changed"),
        ({"engine": "2"}, "the engine was replaced"),
        ({"projects": {}}, "project shop is gone"),
        ({"projects": {"shop": Project(inputs={"/a": "2"})}}, "shop: file /a changed"),
        ({"projects": {"shop": Project(services={"web": service(replica(id="c9"))})}}, "container shop-web-1 is new"),
        ({"projects": {"shop": Project(services={"web": service(DEAD)})}}, "container shop-web-1 is exited"),
        ({"projects": {"shop": Project()}}, "shop: service web is gone"),
    ],
)
def test_changed_parts_are_named(change: dict[str, Any], says: str) -> None:
    was = Inventory(engine="1", rules="1", projects={"shop": Project(services={"web": service(replica())})})
    if "projects" in change and change["projects"].get("shop", Project()).inputs:
        was = was.model_copy(update={"projects": {"shop": Project(inputs={"/a": "1"})}})
    now = was.model_copy(update=change)
    assert says in difference(was, now)
    assert bool(difference(was, now)) is bool(says)


# --- selection --------------------------------------------------------------------------------------


def world(**projects: Project) -> dict[str, Inventory]:
    return {"web1": Inventory(engine="1", projects=projects)}


def shop(**services: Service) -> Project:
    return Project(services=services)


def test_service_without_a_container_is_found_by_file_labels() -> None:
    seen = world(shop=shop(web=service(declared={"tier": "prod"}), db=service(labels={"tier": "test"}, hash="h2")))

    def chosen(*labels: str) -> list[str]:
        return [one.name for one in choose(StackRules(), seen, {}, labels=labels).chosen]

    assert chosen() == ["shop/db", "shop/web"]
    assert chosen("tier=prod") == ["shop/web"]
    assert chosen("tier") == ["shop/db", "shop/web"]
    assert chosen("com.docker.compose.project=shop", "com.docker.compose.service=db") == ["shop/db"]
    assert chosen("com.docker.compose.project=blog") == []
    with pytest.raises(UsageError, match="expected KEY"):
        chosen("=x")


def test_names_select_services_and_projects() -> None:
    seen = world(
        shop=shop(web=service(replica()), db=service(STOPPED), idle=service(profiled=True)),
        blog=shop(web=service(replica()), api=service(DEAD)),
        broken=Project(error="its files cannot be used: no such file", services={"one": Service()}),
        asleep=shop(one=service(STOPPED)),
    )
    selection = choose(StackRules(), seen | {"web2": seen["web1"]}, {})
    assert (list(selection.seen), selection.twins["web2"]) == (["web1"], "web1")
    assert [str(note) for note in selection.undetermined] == ["broken: its files cannot be used: no such file"]
    assert selection.incomplete

    def actions(*names: str) -> dict[str, str]:
        return {one.name: one.action for one in named(names, selection)}

    assert actions("shop/web", "blog/api") == {"shop/web": "restart", "blog/api": "up"}
    assert actions("shop") == {"shop/web": "restart"}, "a stopped service was selected"
    assert actions("shop/db", "shop/idle") == {"shop/db": "restart", "shop/idle": "up"}
    assert actions("web2:shop/web", "web1:db") == {"shop/web": "restart", "shop/db": "restart"}
    for names, error, says in (
        (["web"], UsageError, "several projects have"),
        (["nobody"], UnknownName, "choose one of: asleep/one, blog/api"),
        (["web3:shop"], UnknownName, "no service or project"),
        (["broken/one"], UsageError, "its files cannot be used"),
        (["broken"], UsageError, "its files cannot be used"),
        (["asleep"], UsageError, "no service of project asleep is running"),
    ):
        with pytest.raises(error, match=says):
            actions(*names)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("shop/wbe", "no service or project 'shop/wbe' (hosts not inspected: web2: no worker answered, web3: drained)"),
        ("web2:shop/web", "no service or project 'web2:shop/web' (hosts not inspected: web2: no worker answered)"),
        ("web1:shop/wbe", "no service or project 'web1:shop/wbe'"),
    ],
)
def test_unknown_name_names_the_hosts_that_were_not_inspected(name: str, says: str) -> None:
    errors = {"web2": "no worker answered", "web3": "drained"}
    selection = choose(StackRules(), world(shop=shop(web=service(replica()))), errors)

    with pytest.raises(UnknownName) as caught:
        named([name], selection)

    assert caught.value.message == says
    assert "choose one of: shop/web" in caught.value.remedy
    assert caught.value.remedy.startswith("repeat the command when these hosts can be inspected") == ("(" in says)


def test_name_without_any_inspected_host_names_the_hosts() -> None:
    with pytest.raises(UnknownName) as caught:
        named(["shop/web"], choose(StackRules(), {}, {"web2": "no worker answered"}))

    assert "hosts not inspected: web2: no worker answered" in caught.value.message
    assert caught.value.remedy == "repeat the command when these hosts can be inspected"


def test_rules_for_unknown_stacks_are_reported() -> None:
    values = StackRules.model_validate({"stacks": {"shop": {"services": {"wbe": {}}}, "ghost": {}}})
    seen = world(shop=Project(after=["infra"], services={"web": service(replica())}))
    assert [str(note).partition(":")[0] for note in choose(values, seen, {}).notes] == ["shop/wbe", "ghost", "shop"]
    assert choose(values, seen, {"web2": "away"}).notes == (), "an unreachable host was reported as an unknown stack"
    assert "no project matches only: x" in str(choose(StackRules(only=["x"]), world(), {}).notes[0])


# --- names of images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "engines"),
    [
        ("nginx", "nginx:latest"),
        ("docker.io/library/nginx:1", "nginx:1"),
        ("docker.io/acme/shop", "acme/shop:latest"),
        ("registry.local:5000/shop", "registry.local:5000/shop:latest"),
        ("registry.local:5000/shop:2", "registry.local:5000/shop:2"),
        ("shop:1@sha256:" + "c" * 64, "shop@sha256:" + "c" * 64),
        ("c" * 64, "sha256:" + "c" * 64),
    ],
)
def test_image_name_is_normalised_like_the_engine(ref: str, engines: str) -> None:
    assert normal(ref) == engines
    assert normal(engines) == engines


def test_image_selector_matches_name_tag_or_id() -> None:
    assert matches_image("shop:1", "shop:1", {OLD})
    assert matches_image("docker.io/library/shop", "shop:1", {OLD})
    assert matches_image("aaaaaaaaaaaa", "shop:1", {OLD})
    assert not matches_image("shop:2", "shop:1", {OLD})
    assert not matches_image("hop", "shop:1", {OLD})
    assert not matches_image("bbbbbbbbbbbb", "shop:1", {OLD})
    assert [registry_of(ref) for ref in ("nginx", "acme/shop", "r.local/x", "localhost/x", "rendered:5000/a/b:1")] == [
        "docker.io", "docker.io", "r.local", "localhost", "rendered:5000",
    ]  # fmt: skip


# --- rules for stacks -------------------------------------------------------------------------------


def test_first_matching_pattern_decides_a_files_action() -> None:
    values = parse_files("nginx.conf=restart,\n certs/*=redeploy, data=none")
    assert values == {"nginx.conf": "restart", "certs/*": "redeploy", "data": "none"}
    demands = {path: required_action(f"/srv/shop/{path}", "/srv/shop", [{"certs/a": "none"}, values]) for path in (
        "nginx.conf", "certs/a", "certs/b", "data/deep/x", "other")}  # fmt: skip
    assert demands == {
        "nginx.conf": "restart", "certs/a": "none", "certs/b": "redeploy", "data/deep/x": "none", "other": "redeploy",
    }  # fmt: skip
    for wrong in ("nginx.conf", "a=b", "=none"):
        with pytest.raises(ValueError, match="expected PATH=redeploy"):
            parse_files(wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stack: {}", "stack: unknown key"),
        ("stacks: {shop: {files: {a: reboot}}}", "stacks.shop.files.a: "),
        ("registries: {r: {username: x, password: y}}", "refer to the password as"),
        ("registries: {r: {username: x}}", "registries.r.password: "),
        ("- 1", "not a mapping"),
    ],
)
def test_invalid_rules_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "stacks.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        stack_rules(str(tmp_path / "stacks.yaml"))
    for path in (tmp_path / "nobody.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            stack_rules(str(path))
    (tmp_path / "empty.yaml").write_text("\n")
    assert stack_rules(str(tmp_path / "empty.yaml")) == stack_rules("") == StackRules()


# --- input files of a configuration -----------------------------------------------------------------


def test_compose_input_files_are_known(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "compose.yaml").write_text(
        "include:\n  - parts/db.yaml\n  - {path: [more.yaml], env_file: more.env}\nservices:\n"
        "  web:\n    extends: {file: base.yaml, service: x}\n    env_file: [a.env, {path: b.env, required: false}]\n"
        "    ports: !override ['1:1']\n"
    )
    (tmp_path / "base.yaml").write_text("services: {x: {env_file: base.env}}")
    (tmp_path / "parts" / "db.yaml").write_text("services: {db: {env_file: db.env}}")

    found, known = inputs_of(Source("shop", str(tmp_path), (str(tmp_path / "compose.yaml"),)))

    names = {str(Path(path).relative_to(tmp_path)) for path in found}
    assert known
    assert names >= {
        "compose.yaml", ".env", "parts/db.yaml", "parts/.env", "parts/db.env", "more.yaml", "more.env", "base.yaml",
        "base.env", "a.env", "b.env",
    }  # fmt: skip


def test_default_files_of_a_folder_are_known(tmp_path: Path) -> None:
    # Given the folder of a project, as a plan names it, and its files, as labels of containers name them
    file, override = tmp_path / "compose.yml", tmp_path / "docker-compose.override.yaml"
    file.write_text("services: {web: {env_file: a.env}}")
    override.write_text("services: {web: {env_file: b.env}}")
    (tmp_path / "docker-compose.yml").write_text("services: {}")

    found, known = inputs_of(Source(None, str(tmp_path)))

    there = {path for path in found if Path(path).exists()}
    named, _ = inputs_of(Source("shop", str(tmp_path), (str(file), str(override))))
    assert known
    assert there == {str(file), str(override)}
    assert found >= named | {str(tmp_path / "compose.yaml")}


def test_default_files_outside_of_the_folder_are_reported(tmp_path: Path) -> None:
    assert not inputs_of(Source(None, str(tmp_path)))[1]
    (tmp_path / "compose.yaml").write_text("services: {}")
    assert inputs_of(Source(None, str(tmp_path)))[1]
    (tmp_path / ".env").write_text("COMPOSE_FILE=other.yaml\n")
    assert not inputs_of(Source(None, str(tmp_path)))[1]


@pytest.mark.parametrize("include", ["${PART}/db.yaml", "oci://docker.io/acme/part", "https://git.local/x.git"])
def test_undeterminable_input_files_are_reported(tmp_path: Path, include: str) -> None:
    (tmp_path / "compose.yaml").write_text(f"include: ['{include}']\nservices: {{}}\n")
    assert not inputs_of(Source("shop", str(tmp_path), (str(tmp_path / "compose.yaml"),)))[1]


def test_deeply_nested_file_leaves_inputs_unknown(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: " + "[" * 700 + "]" * 700)
    assert not inputs_of(Source("shop", str(tmp_path), (str(tmp_path / "compose.yaml"),)))[1]


def test_circular_includes_terminate(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: [b.yaml]")
    (tmp_path / "b.yaml").write_text("include: [a.yaml]")
    assert inputs_of(Source("shop", str(tmp_path), (str(tmp_path / "a.yaml"),)))[1]
    assert digest_of_file(str(tmp_path / "nobody")) == ""
    assert digest_of_file(str(tmp_path / "a.yaml")) != digest_of_file(str(tmp_path / "b.yaml"))


# --- the rollout's plan -----------------------------------------------------------------------------


def stale(*keys: tuple[str, str]) -> list[Stale]:
    return [Stale(host, project, "web", (Reason("image", "image a → b"),), "up") for host, project in keys]


def seen(**after: list[str]) -> dict[str, Inventory]:
    """Projects of one host, with their dependencies."""
    return {"web1": Inventory(projects={name: Project(after=names) for name, names in after.items()})}


def levels(plan: Any) -> dict[str, int]:
    return {step.name: step.level for step in CompiledPlan(plan).steps}


def test_stacks_follow_transitive_dependencies() -> None:
    where = seen(shop=["auth"], auth=["infra"], infra=[], blog=[])
    found = levels(
        restart_plan(
            stale(*(("web1", name) for name in ("shop", "infra", "blog"))), where, StackRules(), RolloutOptions()
        )
    )
    assert found == {"infra": 0, "blog": 0, "shop": 1, "cache.web1": 2}


def test_circular_stack_dependencies_are_refused() -> None:
    with pytest.raises(UsageError, match="in a circle: a, b"):
        restart_plan(stale(("web1", "a"), ("web1", "b")), seen(a=["b"], b=["a"]), StackRules(), RolloutOptions())
    with pytest.raises(UsageError, match="must be at least 1"):
        with_defaults(RolloutOptions(canary=0))
    with pytest.raises(UsageError, match="healthy_deadline must be positive"):
        with_defaults(RolloutOptions(healthy_deadline=0))


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=7),
    st.one_of(st.none(), st.integers(1, 3)),
    st.one_of(st.none(), st.integers(1, 3)),
)
def test_rollout_respects_limit_order_and_canaries(
    needs: list[list[int]], size: int | None, canary: int | None
) -> None:
    names = [f"p{number}" for number in range(len(needs))]
    after = {name: [f"p{n}" for n in needs[i] if n < i] for i, name in enumerate(names)}
    plan = restart_plan(
        stale(*(("web1", name) for name in names)),
        seen(**after),
        StackRules(),
        RolloutOptions(max_parallel=size, canary=canary),
    )
    validate(plan)
    found = levels(plan)
    found.pop("cache.web1")
    for name, others in after.items():
        assert all(found[other] < found[name] for other in others)
    if size:
        assert max(list(found.values()).count(level) for level in found.values()) <= size
    if canary and canary < len(names):
        order = sorted(found.values())
        first = order[:canary]
        assert max(first) < order[canary]


@pytest.mark.parametrize(
    ("options", "failing", "ends"),
    [
        (RolloutOptions(), "a", {"a": "failed", "b": "changed", "c": "skipped"}),
        (RolloutOptions(max_parallel=1), "a", {"a": "failed", "b": "changed", "c": "skipped"}),
        (RolloutOptions(max_parallel=1), "b", {"a": "changed", "b": "failed", "c": "changed"}),
        (RolloutOptions(canary=1), "a", {"a": "failed", "b": "skipped", "c": "skipped"}),
        (RolloutOptions(canary=1, max_parallel=1), "a", {"a": "failed", "b": "skipped", "c": "skipped"}),
        (RolloutOptions(), "", {"a": "changed", "b": "changed", "c": "changed"}),
    ],
)
def test_failed_stack_blocks_its_dependents_only(options: RolloutOptions, failing: str, ends: dict[str, str]) -> None:
    plan = restart_plan(
        stale(("web1", "a"), ("web1", "b"), ("web1", "c")), seen(a=[], b=[], c=["a"]), StackRules(), options
    )
    sandbox = Sandbox(hosts={"web1": {}}, pretend=True)
    if failing:
        sandbox.fail(failing, "is unhealthy")
    report = sandbox.run(plan)
    assert {name: str(report.step(name).status) for name in ends} == ends
    assert report.step("cache.web1").status == "changed", "the cache was not rebuilt"
    assert report.exit_code == (3 if failing else 0)
    assert set(stacks_of(report.steps).up_to_date) == {name for name, end in ends.items() if end == "changed"}


def test_undone_or_cancelled_rollout_reports_no_stack_up_to_date_or_failed() -> None:
    plan = restart_plan(
        stale(("web1", "a"), ("web1", "b")), seen(a=[], b=["a"]), StackRules(), RolloutOptions(on_failure="undo")
    )
    sandbox = Sandbox(hosts={"web1": {}}, pretend=True)
    sandbox.fail("b", "is unhealthy")
    report = sandbox.run(plan)
    assert (report.exit_code, report.state, report.step("a").undo.status if report.step("a").undo else "") == (
        1,
        "undone",
        "undone",
    )
    assert stacks_of(report.steps).up_to_date == ()
    assert report.step("cache.web1").status is StepState.NOT_RUN
    assert set(stacks_of(report.steps).failed.values()) == {"is unhealthy", "undone"}
    keep = {"orchestrate": "keep"}
    assert exit_code(keep, RunState.FAILED, Cause.FAILURE, report.steps) == 3
    assert exit_code(keep, RunState.FAILED, Cause.CANCEL, report.steps) is None
    assert exit_code(keep, RunState.UNDONE, Cause.OPERATOR, report.steps) is None
    assert exit_code({}, RunState.FAILED, Cause.FAILURE, report.steps) is None


def test_stacks_of_several_hosts_have_distinct_step_names() -> None:
    where = {host: Inventory(projects={"shop": Project(), "x" * 70: Project()}) for host in ("web1", "web2")}
    found = levels(
        restart_plan(stale(*((h, p) for h in where for p in ("shop", "x" * 70))), where, StackRules(), RolloutOptions())
    )
    assert {"web1.shop", "web2.shop", "cache.web1", "cache.web2"} <= found.keys()
    assert len(found) == 6
    assert max(map(len, found)) <= 64


@pytest.mark.parametrize(
    ("stored", "newer", "notes"),
    [
        ({}, "", 0),
        ({"shop:1": Remote(digest=OLD, at=1.0)}, "", 0),
        ({"shop:1": Remote(digest=OLD, at=2.0)}, "", 1),
        ({"shop:1": Remote(digest=OLD, at=2.0)}, NEW, 0),
    ],
    ids=["first-answer", "asked-again", "reused", "reused-and-newer"],
)
def test_images_with_a_reused_answer_of_their_registry_are_counted(
    stored: dict[str, Remote], newer: str, notes: int
) -> None:
    project = Project(services={"web": service(replica(), newer=newer)})
    one = Inventory(projects={"shop": project}, remotes={"shop:1": Remote(digest=OLD, at=2.0)})

    found = with_reused_answers(choose(StackRules(), {"web1": one}, {}), {"web1": stored})

    assert [str(note) for note in found.notes] == notes * [
        "registries were not asked again about 1 image on host web1, because of answers from the last ten minutes; "
        "to ask again: longshore rebuild --force --registry"
    ]
