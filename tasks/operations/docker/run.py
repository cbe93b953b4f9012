"""`docker.run.execute`: a container that runs one command and exits."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from longshore.orchestration.errors import OperationError, StepCancelled, StepTimeout, Transient, Unsuccessful
from longshore.orchestration.operations import Params
from longshore.orchestration.operations.docker.programs import RUN, RunParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.host.engine.port import Container, Engine
from longshore.tasks.host.file_lock import exclusive
from longshore.tasks.implementation import Change, Context, Implementation, Outcome, Prediction, implements, obstacle
from longshore.tasks.operations.docker import spec

#: Bytes kept of each stream of its output: the end.
_OUTPUT = 64 * 1024
#: Seconds between two polls, at first and at most.
_POLL = (0.02, 0.5)
#: The exit code after SIGKILL; and seconds until the engine reports an out-of-memory kill.
_KILLED, _MEMORY_EVENT = 137, 2.0


class Bounded(Protocol):
    """The parameters that all such operations share."""

    @property
    def ok_codes(self) -> list[int]: ...
    @property
    def grace(self) -> float: ...


P = TypeVar("P", bound=Params)


def captured_output(docker: Engine, ended: Container) -> Container:
    """The final state of an exited container: the engine may report an out-of-memory kill after the exit."""
    until = time.monotonic() + _MEMORY_EVENT
    while ended.exit_code == _KILLED and not ended.oom_killed and time.monotonic() < until:
        time.sleep(0.05)
        ended = docker.inspect(ended.id) or ended
    return ended


def data_of(ctx: Context, docker: Engine, container: Container) -> dict[str, Any]:
    """The outcome of a container and the end of its output."""
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
    """Runs a container once: a later attempt waits for the existing container and never starts it again.

    Only a retry after a reported failure creates a new container.
    """

    def begin(self, ctx: Context, docker: Engine, params: P, before: dict[str, Any]) -> Container:
        """The step's container, created and started by this attempt or an earlier one."""
        raise NotImplementedError

    def intent(self, ctx: Context, params: Any, before: dict[str, Any]) -> Prediction:
        """The prediction of the run."""
        raise NotImplementedError

    def change(self, ctx: Context, params: Any, before: dict[str, Any]) -> Change:
        yield self.intent(ctx, params, before)
        docker = engine()
        # Without the lock two deliveries could both start a short container, which would run twice.
        with exclusive(f"run {docker.url} {ctx.op_id}", ctx.check):
            container = self._reported(docker, ctx)
            if container is None:
                container = self.begin(ctx, docker, params, before)
        container = self._wait(docker, ctx, params, container)
        data = data_of(ctx, docker, container)
        if container.exit_code in params.ok_codes and not container.oom_killed:
            return data
        self._report(docker, ctx, container)
        why = "ran out of memory" if container.oom_killed else f"exited with code {container.exit_code}"
        last_line = (data["stderr"] or data["stdout"]).strip().splitlines()[-1:]
        what = f"container {data['name']} {why}" + (f": {last_line[0]}" if last_line else "")
        raise Unsuccessful(what, data=data)

    def undo(self, ctx: Context, params: Any, before: dict[str, Any], data: dict[str, Any] | None) -> Outcome:
        removed, left = spec.remove_own(engine(), ctx, grace=params.grace)
        return Outcome(changed=removed, data={"left_volumes": left} if left else {})

    @staticmethod
    def _reported(docker: Engine, ctx: Context) -> Container | None:
        """The container whose failure was reported, if this attempt is a late delivery and not a retry."""
        failed = [container for container in spec.own(docker, ctx) if spec.FAILED in container.name]
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
        """Rename the container: the new name records the reported failure, and the old one is free for a retry."""
        if spec.FAILED in container.name:
            return
        name = f"{container.name}{spec.FAILED}{container.labels[spec.ATTEMPT]}"
        try:
            docker.rename(container.id, name)
        except OperationError as error:
            ctx.log(f"container {container.name} could not be renamed: {error.message}")


def _archive(files: Mapping[str, str]) -> bytes:
    """Files that every user of the container can read and none can change."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in files.items():
            info, data = tarfile.TarInfo(path.lstrip("/")), content.encode()
            info.size, info.mode, info.mtime = len(data), 0o444, time.time()
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


@implements(RUN)
class Run(RunsOnce[RunParams]):
    """Creates a container from an image and runs it once."""

    def before(self, ctx: Context, params: RunParams) -> dict[str, Any]:
        return {"image_id": spec.need(engine(), params.image).id}

    def begin(self, ctx: Context, docker: Engine, params: RunParams, before: dict[str, Any]) -> Container:
        marks = {spec.KEEP_FAILED: "true"} if params.keep_failed else {}
        container, _ = spec.make(docker, ctx, params, before["image_id"], kind="run", marks=marks)
        if container.started_at is None:
            if params.files:
                docker.write_archive(container.id, "/", _archive(params.files))
            docker.start(container.id)
        return container

    def intent(self, ctx: Context, params: RunParams, before: dict[str, Any]) -> Prediction:
        spec.allow(ctx, params)
        name = spec.name_of(ctx, params)
        if ctx.dry_run and params.name and engine().inspect(name) is not None:
            return obstacle(ctx, f"the name {name} belongs to another container")
        command = " ".join([*(params.entrypoint or []), *(params.command or [])])
        undo = f"remove {name}; the effects of its program stay"
        return Prediction(f"would run {params.image} {command}".rstrip(), undo=undo)
