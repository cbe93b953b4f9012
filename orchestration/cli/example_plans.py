"""The example plans of `longshore init plan`, one for each kind of use."""

from __future__ import annotations

_COMMANDS = """\
# Commands and files on one host. Run: longshore run {file}
name: {name}
description: Write a configuration, migrate, and check the result.
params:
  folder: {type: string, pattern: "/.*", default: /tmp/longshore-example, description: Where the files go}
  tag: {type: string, default: "1.0"}
steps:
  config:                       # the operation has its own undo: the earlier file, or no file
    op: file.deploy.execute
    with: {path: "{{ params.folder }}/config", content: "tag={{ params.tag }}\\n"}

  migrate:                      # a command has no undo of its own: the plan gives one
    op: command.shell.execute
    with: {cwd: "{{ params.folder }}", command: "echo {{ params.tag }} >> versions"}
    undo:
      op: command.shell.execute
      with: {cwd: "{{ params.folder }}", command: "sed -i '$d' versions"}
    after: config               # steps without `after` begin at once, in parallel

  check:                        # changes: false declares a command that only reads
    op: command.exec.execute
    with: {argv: [grep, -q, "{{ params.tag }}", versions], cwd: "{{ params.folder }}", changes: false}
    after: migrate              # if this step fails, migrate and config are undone, in this order
"""

_SAGA = """\
# Tasks of a Celery application, each with its compensation. Run: longshore run {file} -p order=17
# The application needs the line install(app) from longshore.orchestration.celery, or no `fenced` here.
name: {name}
description: Reserve, charge and ship an order, or compensate all of it.
params:
  order: {type: integer, default: 1}
timeout: 10m                    # limit of the whole run
retry: {attempts: 3, initial: 2s}
steps:
  reserve:
    op: celery.task.execute
    with: {task: shop.tasks.reserve, args: ["{{ params.order }}"], queue: celery, fenced: true}
    timeout: 1m                 # required for a task: no worker may be there to run it
    undo:
      op: celery.task.execute
      with: {task: shop.tasks.release, args: ["{{ params.order }}"], queue: celery, fenced: true}

  charge:                       # idempotent: true repeats the task if its worker is lost
    op: celery.task.execute
    with: {task: shop.tasks.charge, args: ["{{ params.order }}"], queue: celery, fenced: true, idempotent: true}
    timeout: 1m
    undo:
      op: celery.task.execute
      with: {task: shop.tasks.refund, args: ["{{ params.order }}"], queue: celery, fenced: true, idempotent: true}
    after: reserve

  ship:                         # undo: none declares that nothing remains to compensate
    op: celery.task.execute
    with: {task: shop.tasks.ship, args: ["{{ params.order }}"], queue: celery, fenced: true}
    timeout: 1m
    undo: none
    after: charge
"""

_RELEASE = """\
# A release of a Compose stack, which a failed check takes back. Run: longshore run {file} -p tag=2.1
name: {name}
description: Bring a release of the stack into service.
params:
  tag: {type: string, default: "1.0"}
  folder: {type: string, pattern: "/.*", default: /srv/shop, description: The folder of compose.yaml}
  url: {type: string, default: "http://127.0.0.1:8080/", description: Where the stack answers}
concurrency: {key: "release {{ params.folder }}"}   # one release of a stack at a time; others wait
steps:
  env:                          # the earlier file is restored if a later step fails
    op: file.deploy.execute
    with: {path: "{{ params.folder }}/.env", content: "TAG={{ params.tag }}\\n", mode: "0600"}

  pull:                         # before the stack changes, so that a missing image changes nothing
    op: compose.pull.execute
    with: {project_dir: "{{ params.folder }}"}
    retry: {attempts: 3, initial: 5s}
    after: env

  up:                           # waits until all services are healthy; the undo restores the earlier revision
    op: compose.up.execute
    with: {project_dir: "{{ params.folder }}", healthy_deadline: 60s}
    after: pull

  check:
    op: network.http.get
    with: {url: "{{ params.url }}", deadline: 30s}
    after: up
"""

_BACKUP = """\
# A nightly copy of data while its stack is stopped. Run now: longshore run {file}
# For the schedule, put the file into a folder of LONGSHORE_PLANS, and start longshore beat beside the workers.
name: {name}
description: Stop the stack, copy its data, and start the stack again in any case.
params:
  folder: {type: string, pattern: "/.*", default: /srv/shop, description: The folder of compose.yaml}
  data: {type: string, pattern: "/.*", default: /srv/shop/data}
  copies: {type: string, pattern: "/.*", default: /var/backups/shop}
schedules:
  nightly: {cron: "30 3 * * *", timezone: UTC, jitter: 5m, overlap: skip, missed: once}
steps:
  stop:                         # the undo starts the same containers again, also after a failed copy
    op: compose.stop.execute
    with: {project_dir: "{{ params.folder }}"}

  copy:                         # undo: none declares that a copy may stay
    op: command.shell.execute
    with: {command: "mkdir -p {{ params.copies }} && tar -czf {{ params.copies }}/$(date +%F).tar.gz {{ params.data }}"}
    timeout: 1h
    undo: none
    after: stop

  start:
    op: compose.start.execute
    with: {project_dir: "{{ params.folder }}"}
    after: copy
"""

#: The text of each kind, the default first. `{file}` and `{name}` stand for the file and the name of the plan.
EXAMPLES = {"commands": _COMMANDS, "saga": _SAGA, "release": _RELEASE, "backup": _BACKUP}


def example(kind: str, file: str, name: str, schema: str) -> str:
    """The text of an example plan, with a modeline that names the schema for editors."""
    text = EXAMPLES[kind].replace("{file}", file).replace("{name}", name)
    return f"# yaml-language-server: $schema={schema}\n{text}"
