"""A job as a plan, as a label and as a file; merging the jobs of several hosts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshore.orchestration import Plan, validate
from longshore.orchestration.client.request import request_body
from longshore.orchestration.errors import ConfigError, JobNotFound, UsageError
from longshore.orchestration.jobs import Entity, Job, Mount, job_plan
from longshore.orchestration.jobs.discovery import DeclaredJobs, HostSnapshot, JobListing, declared_in, merged
from longshore.orchestration.jobs.file import read_jobs
from longshore.orchestration.jobs.plan import JobOptions, plan_from_record, plan_record, restart_plan
from longshore.orchestration.language import templates
from longshore.orchestration.testing import Sandbox

JOB = Job(
    "backup", "backup:1", stacks=("shop",), targets=("shop-db-1",), host="web1", mounts=(Mount("data", "/mnt/data"),)
)  # fmt: skip


def labelled(name: str, stack: str = "shop", **labels: str) -> Entity:
    values = {"enabled": "true", "name": name, "worker.image": "backup:1"} | labels
    found = {f"longshore.job.{key}": value for key, value in values.items()}
    return Entity("container", f"{stack}-db-1", found | {"com.docker.compose.project": stack})


def test_worker_is_created_before_stops_and_removed_last() -> None:
    plan = job_plan(JOB)
    validate(plan)
    assert list(plan.steps) == ["image", "worker", "stop", "work", "start", "healthy", "remove"]
    for name, before in zip(list(plan.steps)[1:], plan.steps, strict=False):
        assert plan.steps[name].after == [before]
    assert [name for name, step in plan.steps.items() if step.always] == ["start", "healthy", "remove"]
    assert plan.target == "web1"


def test_keep_stopped_skips_the_restart() -> None:
    plan = job_plan(JOB, JobOptions(keep_stopped=True))
    validate(plan)
    assert list(plan.steps) == ["image", "worker", "stop", "work", "remove"]
    assert plan.steps["remove"].after == ["work"]


@pytest.mark.parametrize(
    ("fails", "summary"),
    [
        (None, "job backup: succeeded; the stack is up again; 7 steps, "),
        ("work", "job backup: failed; the stack is up again; 7 steps, "),
        ("image", "job backup: failed; the stack was not touched; "),
    ],
)
def test_summary_of_a_job_run_begins_with_the_outcome_of_the_job(fails: str | None, summary: str) -> None:
    sandbox = Sandbox(pretend=True, hosts=["web1"])
    if fails:
        sandbox.fail(fails)

    report = sandbox.run(job_plan(JOB))

    assert report.summary.startswith(summary)


def test_options_of_one_start_override_the_job() -> None:
    steps = job_plan(JOB, JobOptions(timeout="2m", stop_timeout=3, start_timeout="1.5s", keep_failed_worker=True)).steps
    assert steps["work"].with_["timeout"] == 120
    assert steps["work"].timeout is not None
    assert steps["work"].timeout > 130
    assert steps["stop"].with_["timeout"] == 3
    assert steps["start"].with_["timeout"] == steps["healthy"].with_["timeout"] == 1.5
    assert steps["remove"].with_["keep_failed"] is True


@pytest.mark.parametrize("wrong", ["soon", 0, "0s", -1])
def test_invalid_duration_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="stop_timeout"):
        job_plan(JOB, JobOptions(stop_timeout=wrong))


@pytest.mark.parametrize("scope", ["stack", "containers"])
def test_scope_selects_the_stopped_containers(scope: Any) -> None:
    job = Job("j", "i", stacks=("shop",), targets=("a", "b"), loose=("b",), scope=scope)
    values = job_plan(job).steps["stop"].with_
    wanted = (["shop"], ["b"]) if scope == "stack" else ([], ["a", "b"])
    assert (values["stacks"], values["containers"]) == wanted


@given(st.text(), st.text())
@settings(max_examples=30)
def test_label_values_are_not_rendered(value: str, more: str) -> None:
    text = f"{value}{{{{ params }}}}{more}{{% if %}}"
    plan = job_plan(Job("j", "i", env={"A": text}, command=(text,)))
    values = plan.steps["worker"].with_
    assert templates.render([values["env"]["A"], values["command"][0]], {}) == [text, text]


def test_job_file_values_may_be_templates() -> None:
    job = Job("j", "i", env={"A": "{{ secret('env:X') }}", "B": "{{ 1 }}"}, templated=frozenset({"A"}))
    values = job_plan(job).steps["worker"].with_["env"]
    assert values["A"] == "{{ secret('env:X') }}"
    assert templates.render(values["B"], {}) == "{{ 1 }}"
    validate(job_plan(job))


def test_run_can_be_recreated_from_the_worker_label() -> None:
    skips = dataclasses.replace(JOB, overlap="skip")
    label = templates.render(plan_record(skips, JobOptions(keep_failed_worker=True)), {})
    assert plan_from_record(label)[0].overlap == "skip"
    job, choices = plan_from_record(label)
    assert choices == JobOptions(keep_failed_worker=True)
    plan = job_plan(job, choices, reconstructed=True, begin=False, host="web2")
    validate(plan)
    assert list(plan.steps) == list(job_plan(JOB).steps), "the recreated plan has other steps"
    assert [name for name, step in plan.steps.items() if step.when] == ["image", "stop"]
    assert plan.target == "web2"
    assert plan.steps["work"].with_["begin"] is False
    again = restart_plan(job, choices, "run-1")
    validate(again)
    assert list(again.steps) == ["start", "healthy", "remove"]
    assert {step.with_["run"] for step in again.steps.values()} == {"run-1"}
    assert {plan.concurrency.on_limit for plan in (plan, again) if plan.concurrency} == {"queue"}, (
        "the setting of the job changed the recreated plan"
    )
    assert plan.steps["worker"].with_["make"] is False
    with pytest.raises(ValueError, match="no job"):
        plan_from_record("{}")


def test_missing_fields_of_older_records_have_defaults() -> None:
    job, choices = plan_from_record('{"name": "j", "image": "i", "later": 1}')
    assert (job, choices) == (Job("j", "i"), JobOptions())


def test_job_locks_its_stacks_for_the_whole_run() -> None:
    job = Job("j", "i", stacks=("b", "a"), projects=("p",), targets=("c",), loose=("c",), host="web1")
    body = request_body(job_plan(job), {}, "me")
    assert body["locks"] == ["web1/a", "web1/b", "web1/container c", "web1/p"]
    assert body["group"] == "jobs"
    parts = dataclasses.replace(job, scope="containers")
    assert request_body(job_plan(parts), {}, "me")["locks"] == ["web1/a", "web1/b", "web1/container c", "web1/p"]
    again = job_plan(job, reconstructed=True)
    assert "group" not in request_body(again, {}, "me"), "the recreated plan waits for the limit of jobs"
    assert body["concurrency"] == {"key": "job web1/j"}


# --- job files ------------------------------------------------------------------------------------


def test_job_file_declares_jobs(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(
        """
        jobs:
          nightly:
            stacks: [shop]
            image: backup:1
            command: sh -c 'echo hello'
            mounts: [data:/mnt/data:rw, other]
            schedule: "@daily"
            timezone: Europe/Berlin
            overlap: skip
            stop_timeout: 5s
        """
    )
    (job,) = merged({"web1": HostSnapshot("web1", 0)}, declared_in([path])).jobs
    assert (job.name, job.host, job.stacks, job.image) == ("nightly", "web1", ("shop",), "backup:1")
    assert job.command == ("sh", "-c", "echo hello")
    assert job.mounts == (Mount("data", "/mnt/data", "rw"), Mount("other", "/mnt/other", "ro"))
    assert (job.schedule, job.timezone, job.overlap, job.stop_timeout) == ("0 0 * * *", "Europe/Berlin", "skip", 5.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "daily"}, "jobs.j.schedule: 'daily' has 1 fields"),
        ({"schedule": "61 * * * *"}, "bad minute"),
        ({"mounts": ["data:here"]}, "expected VOLUME"),
        ({"mounts": ["/etc:/x:ro"]}, "expected VOLUME"),
        ({"colour": "red"}, "jobs.j.colour"),
        ({"timezone": "Mars"}, "not a time zone"),
        ({"timeout": 0}, "jobs.j.timeout"),
        ({"host": "a b"}, "not a host name"),
    ],
)
def test_invalid_job_is_reported_without_hiding_others(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": {"j": values, "good": {"image": "i", "stacks": ["shop"]}}}))
    known = merged({"web1": HostSnapshot("web1", 0)}, declared_in([path]))

    assert [job.name for job in known.jobs] == ["good"]
    (finding,) = known.findings
    assert message in str(finding)
    assert str(path) in str(finding)
    with pytest.raises(UsageError, match="the description of job"):
        known.job("j")


@pytest.mark.parametrize("text", ["jobs: [", "jobs: 5", "{}", "jobs: {}\nmore: 1", "- a"])
def test_file_without_jobs_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as failed:
        read_jobs(path)
    assert str(path) in str(failed.value)
    assert "\n" not in str(failed.value)
    with pytest.raises(ConfigError):
        read_jobs(tmp_path / "none.yaml")


def test_job_file_accepts_full_label_names(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": {"j": {"image": "i", "stacks": ["s"], "overlap_policy": "skip"}}}))
    (job,) = merged({"web1": HostSnapshot("web1", 0)}, declared_in([path])).jobs
    assert job.overlap == "skip"


def test_job_with_an_invalid_label_does_not_run() -> None:
    good, bad = labelled("good", "a"), labelled("bad", "b", **{"worker.command": "echo 'unclosed"})
    known = merged({"web1": HostSnapshot("web1", 0, entities=(good, bad))}, DeclaredJobs())
    assert known.job("good").name == "good"
    with pytest.raises(UsageError, match=r"description of job 'bad' .*worker.command: No closing quotation"):
        known.job("bad")


def test_conflicting_labels_are_reported_and_the_first_applies() -> None:
    one, other = labelled("j", "a", timeout="1s"), labelled("j", "b", timeout="2s")
    known = merged({"web1": HostSnapshot("web1", 0, entities=(other, one))}, DeclaredJobs())
    assert known.job("j").timeout == 1.0
    assert [finding.job for finding in known.findings] == ["j"]


# --- several hosts --------------------------------------------------------------------------------


def test_jobs_of_a_shared_engine_are_listed_once() -> None:
    here = (labelled("backup"),)
    seen = {name: HostSnapshot(name, 0, engine="E", entities=here) for name in ("web2", "web1")}
    assert [(job.name, job.host) for job in merged(seen, DeclaredJobs()).jobs] == [("backup", "web1")]


def test_ambiguous_job_name_needs_a_host() -> None:
    seen = {name: HostSnapshot(name, 0, engine=name, entities=(labelled("backup"),)) for name in ("web2", "web1")}
    known = merged(seen, DeclaredJobs())
    with pytest.raises(UsageError, match=r"several hosts \(web1, web2\)"):
        known.job("backup")
    assert known.job("backup", "web2").host == "web2"
    with pytest.raises(JobNotFound, match=r"no job 'other' .*backup"):
        known.job("other")


def test_file_job_runs_on_the_host_of_its_stack() -> None:
    seen = {name: HostSnapshot(name, 0, engine=name, stacks=(f"shop-{name}",)) for name in ("web1", "web2")}
    declared: dict[str, dict[str, Any]] = {
        "there": {"stacks": ["shop-web2"], "image": "i"},
        "named": {"host": "web1", "image": "i"},
        "nowhere": {"image": "i"},
        "away": {"host": "web3", "image": "i"},
    }
    known = merged(seen, DeclaredJobs(declared))
    assert [(job.name, job.host) for job in known.jobs] == [("named", "web1"), ("there", "web2")]
    assert sorted(str(finding) for finding in known.findings) == [
        "job away: host: no answer from its host web3",
        "job named: stacks: the job has no targets and stops nothing",
        "job nowhere: host: no host has its stack: set host",
    ]


def test_job_file_overrides_labels() -> None:
    seen = {"web1": HostSnapshot("web1", 0, entities=(labelled("backup", **{"timeout": "5s", "worker.env.A": "1"}),))}
    declared = {"backup": {"timeout": 9.0, "stacks": ["more"], "env": {"B": "2"}}}
    known = merged(seen, DeclaredJobs(declared))
    (job,) = known.jobs
    assert (job.timeout, job.stacks, dict(job.env), job.image) == (
        9.0,
        ("more", "shop"),
        {"A": "1", "B": "2"},
        "backup:1",
    )
    (finding,) = known.findings
    assert str(finding) == (
        "container shop-db-1: longshore.job.timeout: "
        "5.0 conflicts with 9.0 of the file, which takes precedence for job backup"
    )


def test_silent_host_is_reported() -> None:
    known = merged({"web1": HostSnapshot("web1", 0, error="no engine")}, DeclaredJobs(), ["web2"])
    assert known == JobListing((), known.findings, ("web2",))
    assert [str(finding) for finding in known.findings] == ["host web2: no answer", "host web1: no engine"]


def test_late_recreated_run_only_restarts_the_stack() -> None:
    sandbox = Sandbox(hosts=("web1",))
    sandbox.fail("work", "too much time has passed")
    report = sandbox.run(job_plan(JOB, reconstructed=True, begin=False))
    assert [(step.name, str(step.status)) for step in report.steps] == [
        ("image", "skipped"),
        ("worker", "changed"),
        ("stop", "skipped"),
        ("work", "failed"),
        ("start", "changed"),
        ("healthy", "unchanged"),
        ("remove", "changed"),
    ]
    assert report.job is not None
    assert (report.job.result, report.job.restart, report.exit_code) == ("failed", "healthy", 1)


@pytest.mark.parametrize(
    ("step", "result", "restart", "code"),
    [
        ("image", "failed", "not_needed", 1),
        ("worker", "failed", "not_needed", 1),
        ("stop", "failed", "healthy", 1),
        ("work", "failed", "healthy", 1),
        ("start", "succeeded", "failed", 3),
        ("healthy", "succeeded", "failed", 3),
        ("remove", "succeeded", "healthy", 0),
        ("", "succeeded", "healthy", 0),
    ],
)
def test_report_separates_work_result_from_stack_state(step: str, result: str, restart: str, code: int) -> None:
    sandbox = Sandbox(hosts=("web1",), pretend=True)
    if step:
        sandbox.fail(step)
    report = sandbox.run(job_plan(JOB))
    assert report.job is not None
    assert (report.job.result, report.job.restart, report.exit_code) == (result, restart, code)
    assert {"start", "healthy", "remove"} <= set(sandbox.done), "the stack was not restarted after the failure"


def test_job_report_requires_a_job_plan() -> None:
    plan = Plan("p", labels={"job": "mine"})
    plan.step("work", "noop.execute")
    plan.step("remove", "noop.execute").after("work")
    report = Sandbox().run(plan)
    assert report.job is None
    assert "job" not in report.model_dump()


def test_recreated_job_keeps_its_secret_environment() -> None:
    job = Job("j", "i", env={"TOKEN": "{{ secret('env:X') }}", "PLAIN": "1"}, templated=frozenset({"TOKEN"}))
    wanted = {"TOKEN": "{{ secret('env:X') }}"}
    assert job_plan(job).steps["work"].with_["env"] == wanted
    again, choices = plan_from_record(templates.render(plan_record(job, JobOptions()), {}))
    assert job_plan(again, choices, reconstructed=True).steps["work"].with_["env"] == wanted
