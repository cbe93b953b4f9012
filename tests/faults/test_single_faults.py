"""One fault at a time, each with its figure."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longshore.orchestration import Client, LongshoreError, Plan, Run, Settings, StoreUnavailable
from longshore.orchestration.states import TERMINAL
from longshore.orchestration.store.breakers import Breakers
from tests.faults import rules
from tests.faults.conftest import LONG, Form
from tests.faults.effects import deeds
from tests.faults.proxy import Proxy
from tests.faults.storm import histogram
from tests.faults.test_storms import Load, four_workers, until
from tests.integration.processes import Installation, lines, names, wait_for
from tests.servers import RedisServer

pytestmark = pytest.mark.timeout(3600)
Note = Callable[[str, Any], None]
#: Seconds; far beyond what any of it takes.
PATIENCE = 300.0


def test_the_only_worker_is_killed_in_mid_step_and_started_again(
    place: Installation, tmp_path: Path, form: Form, figures: Note
) -> None:
    # given the lease of production in the long form
    place.options["lease"] = form.of("1s", "15s")
    worker = place.worker("only", "--concurrency", "2")
    worker.start()
    plan = Plan("survivor")
    text = f"echo try >> {tmp_path}/log; test -e {tmp_path}/once || {{ touch {tmp_path}/once; sleep 120; }}"
    plan.step("work", "command.shell.execute", command=f"{text}; touch {tmp_path}/made", creates=f"{tmp_path}/made")
    run = place.run(plan)
    wait_for("the step", lambda: lines(tmp_path / "log"))

    # when
    worker.kill()
    killed = time.monotonic()
    worker.start()
    report = run.wait(PATIENCE)

    # then
    figures(
        "from kill to end of the run", f"{time.monotonic() - killed:.1f} s, with a lease of {place.options['lease']}"
    )
    assert (report.exit_code, report.step("work").attempts) == (0, 2)


def test_a_step_longer_than_the_visibility_timeout_is_done_once(
    place: Installation, tmp_path: Path, form: Form, figures: Note
) -> None:
    """Celery delivers the message of the running step again."""
    # given
    visible, long = form.of((1, 4), (5, 20))
    place.options["visibility_timeout"] = f"{visible}s"
    for name in ("one", "two"):
        place.worker(name, "--concurrency", "2").start()
    plan = Plan("long")
    plan.step("work", "command.shell.execute", command=f"echo x >> {tmp_path}/log; sleep {long}")

    # when
    report = place.run(plan).wait(PATIENCE)

    # then
    figures(
        "executions", f"{len(lines(tmp_path / 'log'))}, with a visibility timeout of {visible} s and {long} s of work"
    )
    assert (report.exit_code, report.step("work").attempts) == (0, 1)
    assert lines(tmp_path / "log") == ["x"]


def test_redis_is_down_for_longer_than_leases(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Note
) -> None:
    """Redis is killed while steps run, and starts again after the outage."""
    # given runs under way, among them steps that last longer than the outage
    lease, away = form.of((2.0, 4.0), (1.0, 60.0))  # other work of this machine's may keep a worker busy for a second
    place.options["lease"] = f"{lease:g}s"
    for name in ("one", "two"):
        place.worker(name, "--concurrency", "4").start()
    folder = tmp_path / "deeds"
    folder.mkdir()
    client = place.client()
    long = [client.start(_long(folder, away + 3.0), run_id=f"long{n}") for n in range(3)]
    short = [client.start(rules.twelve(folder, fails=False), run_id=f"short{n}") for n in range(4)]
    wait_for("the long ones to be at work", lambda: all(deeds(folder, run.id)["did", "work"] for run in long))

    # when
    own_redis.stop(signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as refused:
        place.client().start(rules.twelve(folder, fails=False))
    refusal = time.monotonic() - began
    while time.monotonic() - began < away:
        for worker in place.workers:
            worker.keep_alive()
        time.sleep(0.1)
    own_redis.start()

    # then the workers come back by themselves, or by whatever runs them
    def ended() -> bool:
        for worker in place.workers:
            worker.keep_alive()
        try:
            return all(run.report().ended for run in [*long, *short])
        except LongshoreError:
            return False

    wait_for("all to end", ended, PATIENCE)
    repeated = [run.id for run in long if deeds(folder, run.id)["did", "work"] != 1]
    lost = [name for run in long for name in names(run, "lease_lost")]
    figures("Redis was down for", f"{away:g} s, {away / lease:g} leases")
    figures("start of a run during the outage", f"refused after {refusal:.1f} s: {str(refused.value)[:60]}…")
    figures("lost or repeated attempts", len(lost) + len(repeated))
    assert (repeated, lost) == ([], [])
    assert {run.report().exit_code for run in [*long, *short]} == {0}


def _long(folder: Path, seconds: float) -> Plan:
    plan = Plan("long")
    plan.step("work", "deed.act", folder=str(folder), seconds=seconds)
    return plan


def test_a_blocked_service_holds_fifty_runs_and_resumes_them_spread(
    place: Installation, tmp_path: Path, form: Form, figures: Note
) -> None:
    """Each run calls a service that is down. The runs wait `suspended` or `pending` until the service is back."""
    # given
    count = form.of(20, 50)
    place.options |= {"slow_retry": "5s", "retry_spread": "3s"}
    for name in ("one", "two"):
        place.worker(name, "--concurrency", "4").start()
    folder = tmp_path / "deeds"
    folder.mkdir()
    (folder / "down").touch()
    plan = Plan("needy")
    first = plan.step("first", "noop.execute")
    call = plan.step("call", "deed.call", folder=str(folder)).after(first)
    plan.step("last", "noop.execute").after(call)
    client = place.client()

    # when they have all come to the service, or wait at the door for it
    runs = [client.start(plan, run_id=f"r{n}") for n in range(count)]
    wait_for("all of them to be held", lambda: all(run.state() in {"suspended", "pending"} for run in runs), PATIENCE)
    time.sleep(form.of(1.0, 15.0))
    in_vain = len(lines(folder / "calls"))
    states = Counter(str(run.state()) for run in runs)
    (folder / "down").unlink()
    for run in runs:
        assert run.wait(PATIENCE).exit_code == 0

    # then
    came = [float(line.split()[0]) for line in lines(folder / "calls")][in_vain:]
    figures("states during the outage", dict(states))
    figures("calls during the outage", in_vain)
    figures("runs whose call failed in the end", sum(run.report().step("call").status != "changed" for run in runs))
    figures("calls per half second after the return", "\n    " + "\n    ".join(histogram(came, 0.5)))
    # Not all at once: they fall into several spans, whatever the machine's speed is.
    assert len({int((moment - min(came)) / 0.25) for moment in came}) > 2
    assert Breakers(client.store).open() == []


def test_connections_are_cut_again_and_again(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Note
) -> None:
    """A proxy closes all connections between the workers and Redis."""
    # given workers that come to Redis by a way that can be cut
    with Proxy(own_redis.port) as proxy:
        through = f"redis://127.0.0.1:{proxy.port}/0"
        for number in range(2):
            place.worker(f"w{number}", "--concurrency", "3", LONGSHORE_REDIS_URL=through).start()
        load = Load(place, tmp_path / "deeds", form.of(4, 60), 6).begin()
        chance, end = random.Random(form.seed), until(load)

        # when; after the last cut the runs come to their end in peace
        most = form.of(8, 10**6)
        while not end():
            time.sleep(chance.uniform(0.3, 1.5))
            for worker in place.workers:
                worker.keep_alive()
            if proxy.cuts >= most:
                continue
            proxy.shut = True
            proxy.cut()
            time.sleep(chance.uniform(0.0, 0.8))
            proxy.shut = False

        # then
        broken = load.broken()
        figures("runs", len(load.runs))
        figures("final states", load.states())
        figures("cuts", proxy.cuts)
        figures("broken rules", len(broken))
        assert broken == []


def test_clients_are_killed_as_they_start_runs(place: Installation, tmp_path: Path, form: Form, figures: Note) -> None:
    """Each client starts one run. A killed client leaves a complete run, or none."""
    # given
    for name in ("one", "two"):
        place.worker(name, "--concurrency", "2").start()
    folder = tmp_path / "deeds"
    folder.mkdir()
    plan = tmp_path / "plan.yaml"
    plan.write_text(rules.twelve(folder, fails=False).to_yaml())
    chance = random.Random(form.seed)
    ids = [f"r{n}" for n in range(form.of(3, 40))]

    # when each is killed at some moment between its start and the end of its run
    for run_id in ids:
        process = place.popen("run", str(plan), "--run-id", run_id)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.2, 2.5))
        process.kill()
        process.communicate()

    # then a run is there whole, or not at all
    client = place.client()
    there = [run_id for run_id in ids if client.store.body(run_id) is not None]
    for run_id in there:
        report = client.get(run_id).wait(PATIENCE)
        assert list(rules.broken(report, folder, fails=False)) == []
    assert not [run_id for run_id in ids if run_id not in there and deeds(folder, run_id)]
    figures("clients killed", len(ids))
    figures("stored runs, which all ended", len(there))


@pytest.mark.skipif(not LONG, reason="only in the long form: make faults; the short one is in test_redis_itself.py")
def test_redis_is_full_for_a_while_under_load(
    place: Installation, own_redis: RedisServer, tmp_path: Path, form: Form, figures: Note
) -> None:
    """Redis has no free memory for a second at a time."""
    # given
    four_workers(place)
    load = Load(place, tmp_path / "deeds", form.of(4, 60), 6).begin()
    end, times = until(load), 0

    # when
    with own_redis.client() as admin:
        while not end():
            time.sleep(1.5)
            admin.config_set("maxmemory", "1")
            time.sleep(1.0)
            admin.config_set("maxmemory", "0")
            times += 1
            for worker in place.workers:
                worker.keep_alive()

    # then
    broken = load.broken()
    figures("runs", len(load.runs))
    figures("final states", load.states())
    figures("times that Redis was full", times)
    figures("broken rules", len(broken))
    assert broken == []


# --- eight that command one run -------------------------------------------------------------------------


def _command_at_random(settings: dict[str, Any], plan: dict[str, Any], run_id: str, seed: int, seconds: float) -> None:
    """One process: starts the run, cancels it, resumes it, undoes it, as the dice say."""
    chance = random.Random(seed)
    client = Client(Settings(**settings))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            run = client.start(Plan.model_validate(plan), run_id=run_id)
            # An undo that has been carried out is the end: it is rare.
            chance.choices([run.cancel, run.resume, run.undo, lambda: None], weights=[4, 8, 0.1, 4])[0]()
        except LongshoreError:
            pass
        time.sleep(chance.uniform(0.0, 0.3))


def test_eight_processes_command_one_run_at_random(
    place: Installation, tmp_path: Path, form: Form, figures: Note
) -> None:
    """For a minute, the processes start, cancel, resume and undo the run. *refuse* counts the refused commands."""
    # given
    four_workers(place)
    folder = tmp_path / "deeds"
    folder.mkdir()
    plan = Plan("fought-over", on_failure="keep")
    before = None
    for number in range(6):
        step = plan.step(f"s{number}", "deed.set", folder=str(folder), seconds=0.2)
        before = step.after(before) if before else step
    plan.step("lights", "deed.always", folder=str(folder)).after("s5").always()
    settings = {name: value for name, value in place.settings.model_dump().items() if value is not None}

    # when
    context = multiprocessing.get_context("spawn")
    arguments = (settings, plan.to_dict(), "one")
    people = [
        context.Process(target=_command_at_random, args=(*arguments, form.seed + n, form.of(4.0, 60.0)))
        for n in range(form.of(3, 8))
    ]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert [person.exitcode for person in people] == [0] * len(people)

    # then there is one end, and what stands is what it says
    run = place.client().get("one")
    run.cancel()
    report = run.wait(PATIENCE)
    time.sleep(2.5)
    assert run.report() == report, "it has ended, and something still moves"
    done = deeds(folder, "one")
    standing = {part for word, part in done if word == "did" and done["did", part] > done["undid", part]}
    kept = [step for step in report.steps if step.undo is None or step.undo.status != "undone"]
    changed = {step.name for step in kept if step.changed}
    # A busy machine may lose an attempt's lease while the run is being ended: the report names the step as unknown.
    unknown = {step.name for step in kept if step.status == "unknown"}
    commands = [event for event in run.events() if event.name == "command"]
    figures("commands", dict(Counter(event.fields["kind"] for event in commands)))
    figures("final states", str(report.state))
    assert report.state in TERMINAL
    steps = [(step.name, str(step.status), step.undo and str(step.undo.status), step.error) for step in report.steps]
    assert changed - {"lights"} <= standing <= (changed | unknown) - {"lights"}, steps
    assert done["always", "lights"] or report.state == "failed"


def test_threads_of_one_client_may_share_it(place: Installation, form: Form) -> None:
    """The client is used from web servers: many threads, one object."""
    place.worker("one", "--concurrency", "4").start()
    client, ended = place.client(), []

    def start(number: int) -> None:
        plan = Plan("p")
        plan.step("a", "noop.execute")
        run: Run = client.start(plan, run_id=f"r{number}")
        ended.append(run.wait(PATIENCE).exit_code)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(form.of(8, 32))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0] * len(threads)
