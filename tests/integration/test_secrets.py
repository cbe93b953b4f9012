"""A secret by reference on real workers: no stored or printed text contains the value."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest

from longshore.orchestration import Plan
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import Installation, stored_text

VALUE = 'correct-"horse\\battery'
REFERENCE = "{{ secret('env:LONGSHORE_SECRET_DB') }}"


@pytest.fixture(scope="module")
def place(module_installation: MakeInstallation) -> Installation:
    made = module_installation()
    settings = {"LONGSHORE_SECRET_DB": VALUE, "PYTHONPATH": made.pythonpath}
    settings["LONGSHORE_IMPORTS"] = "tests.integration.own_operations"
    made.worker("keeper", "-c", "2", "--task-events", "--loglevel", "DEBUG", **settings).start()
    return made


def assert_not_disclosed(place: Installation, text: str) -> None:
    for spelled in (VALUE, repr(VALUE)[1:-1], VALUE.replace('"', '\\"'), "battery", "horse"):
        assert spelled not in text
    assert base64.b64encode(VALUE.encode()).decode() not in text


def test_secret_is_used_and_disclosed_nowhere(place: Installation, tmp_path: Path) -> None:
    # Given steps that use the secret as environment, input and content, print it, and fail with it
    plan = Plan("secret", on_failure="keep", on_error="continue")
    shell = 'printf \'%s\' "$A" >{0}/env; cat >{0}/stdin; printf "%s\\n" "$A" | tee /dev/stderr; sleep 2'
    plan.step(
        "use", "command.shell.execute", command=shell.format(tmp_path), env={"A": REFERENCE}, stdin=REFERENCE
    ).undo("none")
    plan.step(
        "file", "file.deploy.execute", path=f"{tmp_path}/deployed", content=f"password={REFERENCE}\n", mode="0600"
    )
    plan.step("fail", "command.shell.execute", command='printf "bad %s" "$A" >&2; exit 3', env={"A": REFERENCE})
    plan.step("break", "network.http.request", url="http://127.0.0.1:1/x", headers={"A": REFERENCE}).retry(0)
    client = place.client()
    seen: list[str] = []

    # When the plan runs, and the test watches its processes and messages
    run = client.start(plan)
    while not run.report().ended:
        ps = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
        seen.append(ps)
        seen.append(stored_text(place))
        time.sleep(0.2)
    report = run.wait()

    # Then the steps have used the secret
    assert (tmp_path / "env").read_text() == (tmp_path / "stdin").read_text() == VALUE
    assert (tmp_path / "deployed").read_text() == f"password={VALUE}\n"
    assert report.step("use").data["stdout"] == "***\n"
    assert report.step("fail").error is not None
    assert "bad ***" in str(report.step("fail").error)
    # and no other text contains the secret
    texts = [report.model_dump_json(), *map(repr, run.events())]
    texts += [line for name in ("use", "fail") for line in run.log(name)]
    assert_not_disclosed(place, stored_text(place, *seen, *texts))


def test_cache_built_with_a_secret_is_stored_without_the_secret(place: Installation) -> None:
    client = place.client()

    report = client.run_operation(
        "cache.rebuild.execute", cache="texts", builder="own.echo", params={"text": REFERENCE}
    ).wait()

    assert report.exit_code == 0, report.error
    assert client.cached("texts") == {"text": "***"}
    assert_not_disclosed(place, stored_text(place, report.model_dump_json()))


def test_secret_missing_on_its_worker_is_one_error(place: Installation) -> None:
    run = place.client().run_operation(
        "command.exec.execute", argv=["true"], env={"A": "{{ secret('env:LONGSHORE_SECRET_NONE') }}"}
    )
    report = run.wait()
    assert "secret env:LONGSHORE_SECRET_NONE is not set on this worker" in str(report.steps[0].error)
    assert report.exit_code == 1


def test_dry_run_discloses_no_secret(place: Installation, tmp_path: Path) -> None:
    done = place.longshore(
        "ops", "run", "file.deploy.execute", f"path={tmp_path}/x", f"content={REFERENCE}", "--dry-run", "-o", "json"
    )
    assert done.code == 0, done.err
    assert "would create" in done.out
    assert_not_disclosed(place, done.out + done.err)
    undo = place.longshore(
        "ops",
        "run",
        "network.http.request",
        "url=http://127.0.0.1:1/",
        f"undo.url=http://127.0.0.1:1/{REFERENCE}",
        "--dry-run",
    )  # fmt: skip
    assert "undo: POST http://127.0.0.1:1/***" in undo.out
    assert_not_disclosed(place, undo.out)


def test_output_of_a_running_step_can_be_followed(place: Installation, tmp_path: Path) -> None:
    run = place.client().run_operation(
        "command.shell.execute", command=f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; echo last >&2"
    )
    lines = run.output("do", follow=True)
    assert next(lines) == ("stdout", "first")
    assert not run.report().ended
    (tmp_path / "go").touch()
    assert list(lines) == [("stderr", "last")]
    shown = place.longshore("runs", "logs", run.id, "do", "-f")
    assert (shown.out, shown.err) == ("first\n", "last\n")


def test_ops_run_is_a_run_of_one_step(place: Installation, tmp_path: Path) -> None:
    path = tmp_path / "one"
    done = place.longshore("ops", "run", "file.deploy.execute", f"path={path}", "content=one", "--run-id", "only-one")
    assert done.code == 0, done.err
    assert path.read_text() == "one"
    again = place.longshore("ops", "run", "file.deploy.execute", f"path={path}", "content=one", "--run-id", "only-one")
    assert "nothing was started" in again.out
    undone = place.longshore("runs", "undo", "only-one")
    assert undone.code == 0, undone.out
    assert undone.out.splitlines()[0] == "undoing the completed steps"
    assert not path.exists()
    wrong = place.longshore("ops", "run", "file.deplo", "path=x")
    assert (wrong.code, "did you mean file.deploy.execute" in wrong.err) == (2, True)
    listed = place.longshore("ops", "ls", "file.")
    assert "file.upload" in listed.out
    assert '"parameters"' in place.longshore("ops", "show", "file.upload", "-o", "json").out
