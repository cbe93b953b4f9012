"""`compose.config` and `compose.ps`: the resolved files of a project, and its containers."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from longshore.orchestration.operations.compose import CONFIG, PS
from longshore.orchestration.operations.compose_params import ConfigParams, PsParams
from longshore.tasks.host.engine.factory import engine
from longshore.tasks.implementation import Change, Context, NoUndo, Prediction, implements
from longshore.tasks.operations.compose import revisions
from longshore.tasks.operations.compose.cli import PROJECT, Compose
from longshore.tasks.operations.compose.project import project_of, source_for
from longshore.tasks.operations.compose.state import Member


@implements(CONFIG)
class Config(NoUndo[ConfigParams]):
    """Resolves the files, without the values of variables, which may be secret."""

    def change(self, ctx: Context, params: ConfigParams, before: dict[str, Any]) -> Change:
        yield Prediction(f"would read the files of {params.project or params.project_dir}", changed=False)
        docker = engine()
        target = Compose(ctx, docker).resolve(source_for(docker, params), params.services)
        services = {
            name: {
                "image": target.image(name),
                "hash": target.hashes.get(name, ""),
                "replicas": target.replicas(name),
                "depends_on": sorted(service.get("depends_on") or {}),
                "build": bool(service.get("build")),
            }
            for name, service in target.services.items()
            if not params.services or name in params.services
        }
        digest = hashlib.sha256(target.text.encode()).hexdigest()
        return {"project": target.project, "services": services, "sha256": digest}


@implements(PS)
class Ps(NoUndo[PsParams]):
    """Lists the containers of a project by labels, which all versions of Compose set."""

    def change(self, ctx: Context, params: PsParams, before: dict[str, Any]) -> Change:
        yield Prediction(f"would list the containers of project {params.project or params.project_dir}", changed=False)
        docker = engine()
        project = project_of(ctx, docker, params)
        found = []
        for container in docker.containers({PROJECT: project}):
            member = Member.of(container)
            if params.services and member.service not in params.services:
                continue
            once = container.labels.get(f"{PROJECT.rpartition('.')[0]}.oneoff") == "True"
            more = {"exit_code": member.exit_code, "restart_count": container.restart_count, "one_off": once}
            found.append(member.as_result() | more)
        found.sort(key=lambda one: (one["service"], one["number"], one["name"]))
        kept = [asdict(revision) for revision in revisions.history(project)]
        return {"project": project, "exists": bool(found), "containers": found, "revisions": kept}
