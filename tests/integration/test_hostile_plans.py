"""Plans of a hostile client with a key, against an installation that `longshore init` created.

A grammar writes plans that try to read, write, start and call things outside of the worker's allow lists, to stop the
worker, and to read the secret of another run. The test does not trust reports. The test checks decoys that must not
be read, a folder that must not change, a server that must not be called, and the processor time of the worker.
"""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from longshore.orchestration import Client, LongshoreError, Param, Plan, Run
from longshore.orchestration.settings import Settings
from tests import servers
from tests.conftest import get
from tests.integration.processes import PATIENCE, Installation, Worker, fork_server, tree
from tests.unit.tasks.operations.test_http import Service

pytestmark = [pytest.mark.operations, pytest.mark.timeout(1800)]

#: The number of plans. Tests of the allow lists have each case.
COUNT = 200
#: The limit of processor time of a worker for one plan, in seconds; an ordinary plan takes about 0.05 s.
PROCESSOR = 5.0

Make = Callable[["Target", random.Random], Plan]


class Target:
    """An installation with decoys: files, variables and servers that a plan must not reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside, self.roots = folder / "outside", folder / "roots"
        for made in (self.outside, self.roots, folder / "tools"):
            made.mkdir()
        self.decoy = f"decoy-{uuid.uuid4().hex}"
        (self.outside / "secret").write_text(self.decoy)
        (self.roots / "link").symlink_to(self.outside)
        (self.roots / "file-link").symlink_to(self.outside / "secret")
        self.tool = folder / "tools" / "greet"
        self.tool.write_text("#!/bin/bash\necho hello\n")
        self.tool.chmod(0o755)
        self.mark = self.outside / "started"
        (folder / "profile").write_text(f"touch {self.mark}\n")
        self.admitted, self.forbidden = _serving("127.0.0.1"), _serving("127.0.0.2")
        self.forbidden.body = self.decoy.encode()
        self.redirecting = _serving("127.0.0.1")
        self.redirecting.codes = [302]
        self.redirecting.headers = {"Location": f"{self.forbidden.url}/stolen"}

    def params(self, plan: Plan, chance: random.Random, **values: str) -> dict[str, str]:
        """The values in the plan, or in parameters, which the client cannot check."""
        if chance.random() < 0.5:
            return values
        for name, value in values.items():
            plan.params[name] = Param(type="string", default=value)
        return {name: f"{{{{ params.{name} }}}}" for name in values}

    def close(self) -> None:
        for service in (self.admitted, self.forbidden, self.redirecting):
            service.server.shutdown()
            service.server.server_close()


def _serving(address: str) -> Service:
    service = Service()
    service.server.server_close()
    service.server = ThreadingHTTPServer((address, 0), service.server.RequestHandlerClass)
    service.url = f"http://{address}:{service.server.server_port}"
    threading.Thread(target=service.server.serve_forever, daemon=True).start()
    return service


# --- the grammar -------------------------------------------------------------------------------------------


def reads_a_secret(target: Target, chance: random.Random) -> Plan:
    """Send a secret outside of the allow list to an allowed server."""
    state, keys = target.folder / "state", target.folder / "secrets" / "worker" / "keys.json"
    source = chance.choice(
        [
            f"file:{target.outside}/secret", f"file:{target.roots}/file-link", f"file:{target.roots}/../outside/secret",
            f"file:/run/secrets/../..{target.outside}/secret", f"file:{keys}", f"file:{state}/../outside/secret",
            "env:DECOY", "env:LONGSHORE_REDIS_URL", "env:LONGSHORE_KEYS", "env:LONGSHORE_SECRET_X\n",
            "file:/proc/self/environ",
            f"file:/proc/self/root{target.outside}/secret", "file:/dev/fd/../environ", "env:longshore_secret_DECOY",
        ]
    )  # fmt: skip
    plan = Plan("reads-a-secret")
    text = f"{{{{ secret({source!r}) }}}}"
    where = chance.choice(["body", "header", "file", "env"])
    if where == "body":
        plan.step("a", "network.http.request", url=f"{target.admitted.url}/x", body=text)
    elif where == "header":
        plan.step("a", "network.http.request", url=f"{target.admitted.url}/x", headers={"X-Decoy": text})
    elif where == "file":
        plan.step("a", "file.deploy.execute", path=f"{target.roots}/{uuid.uuid4().hex}", content=text)
    else:
        plan.step("a", "command.exec.execute", argv=[str(target.tool)], env={"LANG": text})
    return plan


def reads_a_file(target: Target, chance: random.Random) -> Plan:
    """Read a file outside of the roots as an object, a template, a body or a working folder."""
    path = chance.choice(
        [f"{target.outside}/secret", f"{target.roots}/link/secret", f"{target.roots}/file-link",
         f"{target.roots}//link//secret", f"/proc/self/root{target.outside}/secret"]
    )  # fmt: skip
    scheme = chance.choice(
        ["file://", "file:", "local://", "simplecache::file://", "filecache::file://", "dir://::file://",
         "blockcache::file://",
         "reference://::file://", "zip://x::file://", "FILE://", "file://localhost"]
    )  # fmt: skip
    plan = Plan("reads-a-file")
    given = target.params(plan, chance, object=f"{scheme}{path}")
    plan.step("a", "file.deploy.execute", path=f"{target.roots}/{uuid.uuid4().hex}", **given)
    plan.step("b", "file.status.get", path=path)
    return plan


def writes_a_file(target: Target, chance: random.Random) -> Plan:
    """Write a file outside of the roots by its name, a link, a template, or in place of a link."""
    name = uuid.uuid4().hex
    path = chance.choice(
        [f"{target.outside}/{name}", f"{target.roots}/../outside/{name}", f"{target.roots}/link/{name}",
         f"{target.roots}/./link/./{name}", f"//{target.outside}/{name}", f"{target.roots}/file-link",
         f"/proc/self/root{target.outside}/{name}", f"{target.roots}-/{name}", f"{target.outside}/secret"]
    )  # fmt: skip
    plan = Plan("writes-a-file", on_failure="keep")
    given = target.params(plan, chance, path=path)
    kind = chance.choice(["file.deploy.execute", "file.undeploy.execute", "command.exec.execute"])
    if kind == "command.exec.execute":
        plan.step("a", kind, argv=[str(target.tool)], cwd=given["path"], creates=f"{target.outside}/secret")
    elif kind == "file.undeploy.execute":
        plan.step("a", kind, **given)
    else:
        plan.step("a", kind, content="written", **given)
    return plan


def starts_a_program(target: Target, chance: random.Random) -> Plan:
    """Start a program outside of the allow list, directly or through a file or variable of an allowed program."""
    tool, touch = str(target.tool), f"touch {target.mark}"
    argv, env = chance.choice(
        [
            (["sh", "-c", touch], {}), (["/bin/sh", "-c", touch], {}), (["/tools/../bin/sh", "-c", touch], {}),
            ([f"{target.folder}/tools/../../../../../../bin/touch", str(target.mark)], {}),
            ([f"{target.folder}/tools/./../outside/x"], {}), ([tool], {"BASH_ENV": f"{target.folder}/profile"}),
            ([tool], {"ENV": f"{target.folder}/profile"}), ([tool], {"LD_PRELOAD": "/x.so"}),
            ([tool], {"PATH": str(target.outside)}),
            ([tool], {"BASH_FUNC_echo%%": f"() {{ {touch}; }}"}), ([tool], {"SHELLOPTS": "xtrace",
            "PS4": f"$({touch})"}),
            (["env", "sh", "-c", touch], {}), (["greet\nsh", "-c", touch], {}), (["touch", str(target.mark)], {}),
        ]
    )  # fmt: skip
    plan = Plan("starts-a-program")
    if chance.random() < 0.3:
        plan.step(
            "a", "command.shell.execute", command=chance.choice([touch, f"{tool}; {touch}", f"{tool} $({touch})"])
        )
    elif chance.random() < 0.5:
        given = target.params(plan, chance, program=argv[0])
        plan.step("a", "command.exec.execute", argv=[given["program"], *argv[1:]], env=env)
    else:
        plan.step("a", "command.exec.execute", argv=argv, env=env)
    if chance.random() < 0.3:
        plan.step("b", "command.exec.execute", argv=[tool]).undo("command.exec.execute", argv=argv)
        plan.step("c", "noop.execute", fail="so that b is undone").after("b")
    return plan


def reaches_a_server(target: Target, chance: random.Random) -> Plan:
    """Call a server outside of the allow list by an ambiguous URL or a redirect."""
    port, free = target.forbidden.server.server_port, target.admitted.server.server_port
    host = chance.choice(
        ["127.0.0.2", "127.0.0.2.", "2130706434", "0x7f.0.0.2", "0177.0.0.2", "127.2", "[::ffff:127.0.0.2]",
         "[::ffff:7f00:2]",
         "127.0.0.1@127.0.0.2", f"127.0.0.1:{free}@127.0.0.2", "127.0.0.2%00.x"]
    )  # fmt: skip
    url = chance.choice(
        [f"http://{host}:{port}/x", f"http://127.0.0.2:{port}\\@127.0.0.1:{free}/x",
         f"http://127.0.0.1:{free}#@127.0.0.2:{port}/x", f"http://127.0.0.2:{port}/x?@127.0.0.1:{free}",
         target.redirecting.url, f"http:\\\\127.0.0.2:{port}/x", f"http://127.0.0.2%3A{port}/x",
         f"http://127.0.0.2\t:{port}/x"]
    )  # fmt: skip
    plan = Plan("reaches-a-server")
    kind = chance.choice(["network.http.request", "network.http.get", "file.deploy.execute"])
    if kind == "file.deploy.execute":
        given = target.params(plan, chance, object=chance.choice(["", "simplecache::"]) + url)
        plan.step("a", kind, path=f"{target.roots}/{uuid.uuid4().hex}", **given)
    else:
        plan.step("a", kind, **target.params(plan, chance, url=url))
    return plan


def stops_the_worker(target: Target, chance: random.Random) -> Plan:
    """Cause endless work for the reader of the plan, of its parameters or of its templates."""
    size = chance.choice([10**4, 10**6, 10**9])
    text = chance.choice(
        [
            f"{{% for i in range({size}) %}}{{% for j in range({size}) %}}x{{% endfor %}}{{% endfor %}}",
            f"{{{{ 'x' * {size} * {size} }}}}", f"{{{{ 9 ** 9 ** 9 ** {size} }}}}",
            f"{{{{ range({size}) | list | length }}}}",
            f"{{{{ ('x' * {size}) | center({size}) }}}}", f"{{{{ '%{size}d' | format(1) }}}}",
            "{{ " + "(" * 400 + "1" + ")" * 400 + " }}", "{{ " + "not " * 5000 + "1 }}",
            f"{{{{ [[1] * {size}] * {size} }}}}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            f"{{{{ ('a' * {min(size, 10**6)}) | replace('a', 'b' * {min(size, 10**6)}) }}}}", f"{{{{ 1 << {size} }}}}",
            f"{{{{ ('a b ' * {min(size, 10**5)}) | wordwrap(1) | title | urlencode }}}}",
        ]
    )  # fmt: skip
    plan = Plan("stops-the-worker")
    way = chance.choice(["with", "when", "foreach", "pattern"])
    if way == "with":
        plan.step("a", "noop.execute", data={"text": text})
    elif way == "when":
        plan.step("a", "noop.execute").when(text.removeprefix("{{").removesuffix("}}"))
    elif way == "foreach":
        plan.step("a", "noop.execute").foreach(text)
    else:
        pattern, end = chance.choice([("(a+)+$", ""), ("(a|a)*b", "b"), ("(.*)*x", "x")])
        plan.params["p"] = Param(type="string", pattern=pattern, default="a" * 5000 + end)
        plan.step("a", "noop.execute")
    return plan


def learns_a_secret(target: Target, chance: random.Random) -> Plan:
    """Read the data, the environment or the backups of another run."""
    text = chance.choice(
        ["{{ runs.victim }}", "{{ steps.victim.data }}", "{{ run.victim }}", "{{ self }}", "{{ secret }}",
         "{{ params.__class__ }}",
         "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ lipsum.__globals__ }}",
         "{{ cycler.__init__.__globals__ }}",
         "{{ secret.__globals__ }}", "{{ namespace.__init__ }}", "{{ ''|attr('__class__') }}",
         "{% import 'os' as o %}{{ o }}",
         "{% include '/etc/passwd' %}", "{{ config }}", "{{ ''.format.__self__ }}", "{{ '{0.__class__}'.format(1) }}"]
    )  # fmt: skip
    plan = Plan("learns-a-secret")
    plan.step("a", "network.http.request", url=f"{target.admitted.url}/learnt", body=text)
    plan.step("b", "file.deploy.execute", path=f"{target.roots}/{uuid.uuid4().hex}", content=text, template=True)
    return plan


GRAMMAR: tuple[Make, ...] = (
    reads_a_secret, reads_a_file, writes_a_file, starts_a_program, reaches_a_server, learns_a_secret, stops_the_worker,
)  # fmt: skip


# --- the test ---------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    made = Target(tmp_path)
    yield made
    made.close()


class Deployment(Installation):
    """The users of Redis with their URLs, and the keys, as `longshore init` creates them."""

    access: dict[str, str]
    #: The folder of Redis's append-only file.
    aof: Path


@pytest.fixture
def place(target: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """An installation by `longshore init` with one worker, which allows one folder, one program and one server."""
    secrets = target.folder / "secrets"
    server = get(lambda: servers.RedisServer("--appendfsync", "always"))
    command = ["longshore", "-q", "init", str(secrets), "--redis", server.url]
    assert fork_server().start(command, env=os.environ, cwd=target.folder, log=target.folder / "init.log").wait() == 0
    access = dict(line.split("=", 1) for line in (secrets / "env").read_text().splitlines())
    server.options = (*server.options, "--aclfile", str(secrets / "redis" / "users.acl"))
    server.url = f"redis://admin:{access['REDIS_ADMIN_PASSWORD']}@127.0.0.1:{server.port}/0"
    with server:
        made = Deployment(access["LONGSHORE_WORKER_URL"], target.folder, "longshore", {
            "keys": str(secrets / "worker" / "keys.json"),
            "allowed_roots": str(target.roots),
            "allowed_commands": str(target.tool),
            "allowed_hosts": "127.0.0.1",
            "lease": "5s",
        })  # fmt: skip
        made.access, made.aof = access, server.folder
        made.worker("worker", "-c", "2", DECOY=target.decoy, LONGSHORE_SECRET_VICTIM=f"victim-{target.decoy}").start()
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def client(place: Deployment, target: Target) -> Iterator[Client]:
    """A client with the key and the Redis user of applications."""
    made = Client(
        Settings(
            redis_url=place.access["LONGSHORE_CLIENT_URL"], state_dir=target.folder / "client",
            keys=str(target.folder / "secrets" / "client" / "keys.json"), actor="eve",
        )
    )  # fmt: skip
    yield made
    made.close()


def processor_seconds(worker: Worker) -> float:
    """The processor time of all processes of a worker, in seconds."""
    ticks = 0
    for pid in [worker.pid, *worker.children()]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_hostile_plan_reaches_nothing_outside_the_allow_lists(
    target: Target, place: Deployment, client: Client
) -> None:
    seed = int(os.environ.get("LONGSHORE_FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))
    chance = random.Random(seed)
    victim = Plan("victim")
    victim.step(
        "a",
        "network.http.request",
        url=f"{target.admitted.url}/victim",
        body="{{ secret('env:LONGSHORE_SECRET_VICTIM') }}",
    )
    assert client.start(victim, run_id="victim").wait(timeout=PATIENCE).state == "succeeded"
    delivered = len(target.admitted.asked)
    worker = place.workers[0]
    before, refused, dearest = tree(target.outside), 0, (0.0, "")

    begun: list[tuple[Run, Plan]] = []
    for number in range(COUNT):
        make = GRAMMAR[number % len(GRAMMAR)]
        spent = processor_seconds(worker)
        try:
            plan = make(target, chance)
            run = client.start(plan, run_id=f"hostile-{number}")
        except LongshoreError:
            refused += 1
            continue
        begun.append((run, plan))
        if make is stops_the_worker:
            # All earlier plans have ended, so that the processor time belongs to this plan.
            run.wait(timeout=PATIENCE)
            dearest = max(dearest, (processor_seconds(worker) - spent, f"plan {number}"))
        if number % len(GRAMMAR) == GRAMMAR.index(stops_the_worker) - 1 or number == COUNT - 1:
            for other, _ in begun:
                assert target.decoy not in other.wait(timeout=PATIENCE).model_dump_json(), (seed, other.id)
            assert target.forbidden.asked == [], (seed, begun)
            assert tree(target.outside) == before, (seed, begun)
            begun.clear()

    assert refused < COUNT / 2, "too few plans reached a worker"
    assert dearest[0] < PROCESSOR, (seed, dearest)
    assert not any(target.decoy.encode() in repr(asked).encode() for asked in target.admitted.asked[delivered:]), seed
    assert not any(
        target.decoy in path.read_text() for path in target.roots.iterdir() if path.is_file() and not path.is_symlink()
    )
    assert not any(target.decoy.encode() in path.read_bytes() for path in place.aof.rglob("*") if path.is_file()), seed
    assert target.decoy not in worker.log.read_text(errors="replace")
    honest = Plan("honest")
    honest.step("a", "command.exec.execute", argv=[str(target.tool)], changes=False)
    assert client.start(honest).wait(timeout=PATIENCE).state == "succeeded"
    print(f"seed {seed}: {COUNT} plans, {refused} refused by the client, the dearest took {dearest[0]:.2f} s")
