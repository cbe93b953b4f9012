"""`docker.run.execute`: a container that does one thing and ends."""

from __future__ import annotations

import time
from typing import Any, Protocol, TypeVar

from longshore.orchestration.errors import OperationError, StepCancelled, StepTimeout, Transient, Unsuccessful
from longshore.orchestration.operations import Params
from longshore.orchestration.operations.docker.programs import RUN, RunParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import Context, Implementation, Outcome, Prediction, implements
from longshore.tasks.operations.docker import spec

#: Bytes kept of each stream of its output: the end.
_OUTPUT = 64 * 1024
#: Ends the names of those whose failure was reported, so that a retry knows that it may run again.
_FAILED = "--failed-"
#: Seconds between two looks, at first and at most.
_POLL = (0.02, 0.5)
#: The exit code of what was killed; and seconds for the engine to say that it was for want of memory.
_KILLED, _MEMORY_EVENT = 137, 2.0


class Bounded(Protocol):
    """What the parameters of each such operation have."""

    @property
    def ok_codes(self) -> list[int]: ...
    @property
    def grace(self) -> float: ...


P = TypeVar("P", bound=Params)


def captured_output(docker: Engine, ended: Container) -> Container:
    """A container that has ended, once the engine has said all of it: that memory was the reason comes in an event of
    its own, which may come after that of the end.
    """
    until = time.monotonic() + _MEMORY_EVENT
    while ended.exit_code == _KILLED and not ended.oom_killed and time.monotonic() < until:
        time.sleep(0.05)
        ended = docker.inspect(ended.id) or ended
    return ended


def data_of(ctx: Context, docker: Engine, container: Container) -> dict[str, Any]:
    """How a container ended, and the end of what it said."""
    output = docker.logs(container.id, _OUTPUT, redact=ctx.redact)
    return {
        "id": container.id,
        "name": container.name,
        "image_id": container.image_id,
        "exit_code": container.exit_code,
        "oom_killed": container.oom_killed,
        "stdout": output.stdout,
        "stderr": output.stderr,
        "truncated": output.truncated,
        "started_at": container.started_at,
        "finished_at": container.finished_at,
    }


class RunsOnce(Implementation[P]):
    """Once: whatever finds the container again waits for it, and never starts it a second time.

    Only a retry after a failure that was reported makes another one.
    """

    def begin(self, ctx: Context, docker: Engine, params: P, before: dict[str, Any]) -> Container:
        """The step's container, made and started by this attempt or by one before it."""
        raise NotImplementedError

    def act(self, ctx: Context, params: Any, before: dict[str, Any]) -> Outcome:
        docker = engine()
        # Two who both see it not started would both start it, and a short one would run twice.
        with exclusive(f"run {docker.url} {ctx.op_id}", ctx.check):
            container = self._reported(docker, ctx)
            if container is None:
                container = self.begin(ctx, docker, params, before)
        container = self._wait(docker, ctx, params, container)
        data = data_of(ctx, docker, container)
        if container.exit_code in params.ok_codes and not container.oom_killed:
            return Outcome(changed=True, data=data)
        self._report(docker, ctx, container)
        why = "was killed for want of memory" if container.oom_killed else f"ended with {container.exit_code}"
        said = (data["stderr"] or data["stdout"]).strip().splitlines()[-1:]
        what = f"container {data['name']} {why}" + (f": {said[0]}" if said else "")
        raise Unsuccessful(what, data=data)

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        removed, left = spec.take_away(engine(), ctx, grace=params.grace)
        return Outcome(changed=removed, data={"left_volumes": left} if left else {})

    @staticmethod
    def _reported(docker: Engine, ctx: Context) -> Container | None:
        """The container whose failure was reported, if this is no retry but a late delivery."""
        failed = [container for container in spec.own(docker, ctx) if _FAILED in container.name]
        late = failed and int(failed[-1].labels[spec.ATTEMPT]) >= ctx.attempt
        return failed[-1] if late else None

    def _wait(self, docker: Engine, ctx: Context, params: Bounded, container: Container) -> Container:
        pause, longest = _POLL
        while True:
            now = docker.inspect(container.id)
            if now is None:
                raise OperationError(f"container {container.name} was removed while it ran")
            if not now.running:
                if now.started_at is None:
                    raise Transient(f"container {container.name} has not started: {now.error}")
                return captured_output(docker, now)
            try:
                ctx.sleep(pause)
            except (StepCancelled, StepTimeout) as end:
                docker.stop(now.id, params.grace)
                ended = docker.inspect(now.id) or now
                data = data_of(ctx, docker, ended)
                self._report(docker, ctx, ended)
                raise type(end)(f"container {container.name} {end.message}", data=data) from end
            pause = min(pause * 1.5, longest)

    @staticmethod
    def _report(docker: Engine, ctx: Context, container: Container) -> None:
        """Mark that its failure was read, and free its name for a retry."""
        if _FAILED in container.name:
            return
        name = f"{container.name}{_FAILED}{container.labels[spec.ATTEMPT]}"
        try:
            docker.rename(container.id, name)
        except OperationError as error:
            ctx.log(f"container {container.name} keeps its name: {error.message}")


@implements(RUN)
class Run(RunsOnce[RunParams]):
    """See its schema."""

    def before(self, ctx: Context, params: RunParams) -> dict[str, Any]:
        return {"image_id": spec.need(engine(), params.image).id}

    def begin(self, ctx: Context, docker: Engine, params: RunParams, before: dict[str, Any]) -> Container:
        container, _ = spec.make(docker, ctx, params, before["image_id"], kind="run")
        if container.started_at is None:
            docker.start(container.id)
        return container

    def predict(self, ctx: Context, params: RunParams) -> Prediction:
        spec.allow(ctx, params)
        name = spec.name_of(ctx, params)
        undo = f"remove {name}; what it did stays done"
        if engine().image_id(params.image) is None:
            what = f"image {params.image!r} is not on the Docker host"
            if ctx.has_upstream:
                return Prediction(f"would run {name}; {what} yet", undo=undo)
            return Prediction(f"would fail: {what}", changed=False, impossible=what)
        if params.name and engine().inspect(name) is not None:
            what = f"the name {name} belongs to another container"
            return Prediction(f"would run {name}", undo=undo, impossible=None if ctx.has_upstream else what)
        command = " ".join([*(params.entrypoint or []), *(params.command or [])])
        return Prediction(f"would run {params.image} {command}".rstrip(), undo=undo)
