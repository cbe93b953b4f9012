"""The asyncio client with real workers: the results of the blocking client, and one connection for all watchers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from longshore.orchestration import (
    AsyncClient,
    Client,
    Hooks,
    Plan,
    RunFailed,
    RunLost,
    RunState,
    StoreUnavailable,
    UnknownName,
    WaitTimeout,
)
from tests.integration.conftest import MakeInstallation
from tests.integration.processes import PATIENCE, Installation


def plan_with_approval(name: str = "waits") -> Plan:
    """A plan that waits for an approval after its first step."""
    plan = Plan(name)
    first = plan.step("first", "noop.execute", data={"x": 1})
    wait = plan.approval("ok").after(first)
    plan.step("last", "noop.execute").after(wait)
    return plan


def test_asyncio_client_follows_and_commands_a_run(workers: Installation, client: Client) -> None:
    async def follow() -> tuple[Any, ...]:
        async with AsyncClient(workers.settings) as asynchronous:
            run = await asynchronous.start(plan_with_approval(), run_id="async-followed")
            again = await asynchronous.start(plan_with_approval(), run_id="async-followed")
            assert (run.attached, again.attached) == (False, True)
            seen = []
            async for event in run.events():
                seen.append(event)
                if event.name == "step_waiting":
                    assert await run.state() == RunState.RUNNING
                    assert await run.answer(await run.approve("ok")) == "done"
            report = await run.wait(PATIENCE, check=True)
            return seen, await run.events(), await run.events(seen[3].id), report

    seen, so_far, later, report = asyncio.run(follow())

    blocking = client.get("async-followed")
    assert seen == so_far == blocking.events() == list(blocking.watch())
    assert later == seen[4:]
    assert report == blocking.report()


def test_hooks_may_be_coroutine_functions(workers: Installation) -> None:
    calls: list[str] = []

    async def after_step(result: Any) -> None:
        await asyncio.sleep(0)
        calls.append(f"after {result.name}")

    async def run() -> None:
        plan = Plan("async-hooks")
        plan.step("only", "noop.execute")
        async with AsyncClient(workers.settings) as client:
            hooks = Hooks(before_step=lambda name: calls.append(f"before {name}"), after_step=after_step)
            await (await client.start(plan)).wait(PATIENCE, hooks=hooks)

    asyncio.run(run())

    assert calls == ["before only", "after only"]


def test_asyncio_wait_raises_the_errors_of_the_blocking_client(workers: Installation) -> None:
    async def run() -> None:
        async with AsyncClient(workers.settings) as client:
            with pytest.raises(UnknownName):
                await client.get("nobody")
            run = await client.start(plan_with_approval())
            with pytest.raises(WaitTimeout, match=r"has not ended in 0\.5 s"):
                await run.wait(0.5)
            with pytest.raises(UnknownName, match="has no step 'third'"):
                await run.approve("third")
            await run.cancel("enough")
            with pytest.raises(RunFailed):
                await run.wait(PATIENCE, check=True)
            assert [event.name async for event in run.events()][-1] == "run_ended"
            assert await run.prune() == "done"

    asyncio.run(run())


def test_asyncio_output_is_followed_until_the_run_ends(workers: Installation) -> None:
    plan = Plan("async-output")
    plan.step("speak", "command.shell.execute", command="echo one; sleep 0.5; echo two >&2")

    async def run() -> tuple[list[tuple[str, str]], list[str]]:
        async with AsyncClient(workers.settings) as client:
            run = await client.start(plan)
            return [line async for line in run.output("speak", follow=True)], [line async for line in run.log("speak")]

    followed, lines = asyncio.run(run())

    assert followed == [("stdout", "one"), ("stderr", "two")]
    assert lines == ["one", "two"]


def test_hundred_watchers_share_one_connection(workers: Installation, client: Client) -> None:
    """Watchers of one run and of several runs; some begin late."""
    runs = [client.start(plan_with_approval(f"async-{n}")) for n in range(5)]
    name = "async-watchers"

    async def watch(asynchronous: AsyncClient, run_id: str) -> list[str]:
        run = await asynchronous.get(run_id)
        return [event.name async for event in run.watch()]

    async def main() -> tuple[list[list[str]], int, int]:
        async with AsyncClient(workers.settings) as asynchronous:
            watchers = [asyncio.create_task(watch(asynchronous, run.id)) for run in runs for _ in range(20)]
            for run in runs:
                async for event in (await asynchronous.get(run.id)).events():
                    if event.name == "step_waiting":
                        break
            blocked, all_of = connections(workers, name)
            for run in runs:
                await (await asynchronous.get(run.id)).approve("ok")
            return await asyncio.gather(*watchers), blocked, all_of

    def connections(workers: Installation, name: str) -> tuple[int, int]:
        found: Any = redis.Redis.from_url(workers.redis_url).client_list()
        readers = [each for each in found if each["cmd"] == "xread"]
        return len(readers), len(found)

    before = connections(workers, name)[1]
    seen, readers, during = asyncio.run(main())

    assert readers == 1
    assert during - before <= 6, "more connections than threads, messages and the reader need"
    for n, run in enumerate(runs):
        expected = [event.name for event in run.events()]
        assert all(names == expected for names in seen[20 * n : 20 * n + 20])


def test_slow_watcher_receives_every_event(workers: Installation, client: Client) -> None:
    plan = Plan("async-behind")
    plan.step("many", "noop.execute").foreach(list(range(160)))
    run_id = client.start(plan).id

    async def main() -> tuple[list[str], list[str]]:
        async with AsyncClient(workers.settings) as asynchronous:
            run = await asynchronous.get(run_id)
            slow = run.watch()
            ids = [(await anext(slow)).id]
            fast = [event.id async for event in run.watch()]
            return ids + [event.id async for event in slow], fast

    slow, fast = asyncio.run(main())

    expected = [event.id for event in client.get(run_id).events()]
    assert len(expected) > 256, "the reader keeps all events of the run"
    assert slow == fast == expected


def test_watcher_reports_a_deleted_record_as_lost(install: MakeInstallation) -> None:
    installation = install()

    async def main() -> None:
        async with AsyncClient(installation.settings) as client:
            run = await client.start(plan_with_approval())
            waits = asyncio.create_task(run.wait(PATIENCE))
            await asyncio.sleep(0.3)
            installation.redis.delete(installation.client().store.keys.of(run.id).request)
            with pytest.raises(RunLost):
                await waits

    asyncio.run(main())


def test_asyncio_client_reports_an_unreachable_redis(install: MakeInstallation) -> None:
    installation = install()
    client = installation.client()
    run_id = client.start(plan_with_approval()).id

    async def main() -> None:
        async with AsyncClient(installation.settings) as asynchronous:
            run = await asynchronous.get(run_id)
            gone = {"redis_url": "redis://127.0.0.1:1/0"}
            asynchronous._client.store.settings = installation.settings.model_copy(update=gone)
            with pytest.raises(StoreUnavailable, match="start Redis"):
                await run.wait(PATIENCE)

    asyncio.run(main())
