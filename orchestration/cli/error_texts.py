"""The meaning, causes and remedy of each error code: the texts of `longshore explain` and of the reference page."""

from __future__ import annotations

from dataclasses import dataclass

from longshore.orchestration import errors
from longshore.orchestration.errors import LongshoreError


@dataclass(frozen=True)
class ErrorText:
    """The entry of one error code."""

    #: The exit codes of a command that ends with this error, for people: `2`, or `1 or 3`.
    exit_codes: str
    means: str
    raised: str
    remedy: str


_STEP = "1 or 3"  # a run ends with 3 where an effect of one of its steps remains, or is in doubt

ERRORS: dict[str, ErrorText] = {
    "general": ErrorText(
        "1",
        "A command or a call of the library failed, and no other code applies. The message names the object and the "
        "reason.",
        "Any failure without a code of its own.",
        "Follow the remedy in the message. `-v` before the command prints the traceback.",
    ),
    # --- invalid requests
    "usage": ErrorText(
        "2",
        "The request is invalid, and nothing was started or changed.",
        "An option or argument has a wrong form, options contradict each other, or a file exists already.",
        "Correct the value that the message names. `--help` after the command lists its options.",
    ),
    "plan-invalid": ErrorText(
        "2",
        "The plan has errors, and no run was started.",
        "The file cannot be read or is not valid YAML, a field or an operation is unknown, parameters of a step do not "
        "match its operation, or `after` names a step that the plan does not have.",
        "`longshore plan validate PLAN` lists every problem with its line. `longshore ops show OP` prints the "
        "parameters of an operation.",
    ),
    "plan-denied": ErrorText(
        "2",
        "The plan is valid, but the policy of the installation refuses it. The refusal is in the audit trail.",
        "The plan with its parameters and files is larger than LONGSHORE_MAX_PLAN, contains a plaintext secret, has a "
        "file path with `..`, or has templates with a forbidden name or with too much code.",
        "Replace plaintext secrets with `secret('file:/run/secrets/NAME')`, and pass large data as files of the hosts "
        "or as objects.",
    ),
    "params-invalid": ErrorText(
        "2",
        "The values do not match the `params` of the plan, and no run was started.",
        "A parameter is missing or unknown, or its value has another type than declared.",
        "Correct the `-p NAME=VALUE` or the file of `--params`. `longshore plan explain PLAN` prints the plan.",
    ),
    "unknown-name": ErrorText(
        "2",
        "The plan, run, step, operation or schedule of that name does not exist.",
        "The name is misspelt, the record of the run has expired, or LONGSHORE_PLANS or LONGSHORE_REDIS_URL names "
        "another place.",
        "List the names: `longshore runs ls`, `longshore ops ls`, `longshore schedules ls`.",
    ),
    "job-not-found": ErrorText(
        "2",
        "No host that answered has a job of that name.",
        "The labels of the job are missing or invalid, its containers do not exist, or its host has no live worker.",
        "`longshore job ls` prints the known jobs and the problems of their labels; `longshore hosts ls` the hosts.",
    ),
    "bad-identifier": ErrorText(
        "2",
        "A run id, or another name that becomes part of a key or path, has characters that are not allowed.",
        "The name is empty or too long, or contains spaces, slashes or control characters.",
        "Use letters, digits and the characters of the pattern in the message.",
    ),
    "run-conflict": ErrorText(
        "2",
        "The run id belongs to a run of another plan, or of the same plan with other parameters. Nothing was started.",
        "A caller uses the same run id for two requests, or the plan was changed between two attempts at one request.",
        "Choose another run id, or read the existing run: `longshore runs show RUN`. The same request with the same id "
        "never conflicts: the command watches the existing run.",
    ),
    "config-invalid": ErrorText(
        "2",
        "The settings are invalid or contradict each other, or a program or package is missing.",
        "A variable LONGSHORE_* or the settings file has an invalid value, the settings file does not exist, or an "
        "optional dependency is not installed.",
        "Correct the setting that the message names. `longshore doctor` checks the installation.",
    ),
    # --- Redis and records
    "store-unavailable": ErrorText(
        "1",
        "Redis does not answer, or refuses the request. Runs keep their state and continue when Redis answers again.",
        "LONGSHORE_REDIS_URL names a wrong address or user, Redis is down or loading, its memory is full, or too few "
        "replicas are connected.",
        "Check the address, user and password in LONGSHORE_REDIS_URL, then run `longshore doctor`.",
    ),
    "wrong-type": ErrorText(
        "1",
        "A key of Longshore in Redis has an unexpected type.",
        "Another application writes to the same database and namespace, or a key was changed by hand.",
        "`longshore doctor` finds the key. Give each application its own LONGSHORE_NAMESPACE or database.",
    ),
    "damaged-entry": ErrorText(
        "1",
        "An entry in Redis cannot be read. The reader moves the entry to the dead letters and continues.",
        "An entry was changed by hand, or written by an incompatible version.",
        "`longshore doctor` counts such entries. Start the request again if its run is missing in `longshore runs ls`.",
    ),
    "decode-failed": ErrorText(
        "1",
        "The data of a step does not exist, or does not match the type that the caller requested.",
        "The step was skipped or failed, its name is misspelt, or the type has fields that the operation does not "
        "return.",
        "Compare the type with the result in `longshore ops show OP`, and check that the step has succeeded.",
    ),
    "wait-timeout": ErrorText(
        "1",
        "The caller stopped waiting. The run, or the command to the run, continues.",
        "The run takes longer than the timeout of the call, or no live worker serves the queue or the host.",
        "`longshore runs watch RUN` waits again; `longshore hosts ls` lists the hosts with live workers.",
    ),
    "queue-full": ErrorText(
        "1",
        "The run queue is full. Nothing was stored, and the same request may be repeated.",
        "As many runs are pending as LONGSHORE_MAX_QUEUED allows, because LONGSHORE_MAX_RUNS, "
        "LONGSHORE_MAX_RUNS_PER_PLAN or a concurrency key limits the admitted runs.",
        "Try again later, or raise LONGSHORE_MAX_RUNS or LONGSHORE_MAX_QUEUED.",
    ),
    "service-down": ErrorText(
        "1",
        "A service that the plan needs is down, and LONGSHORE_ON_BLOCKED is `refuse`. Nothing was stored.",
        "The breaker of the service is open, because recent calls found the service down.",
        "`longshore breaker ls` prints the open breakers. `longshore breaker reset SERVICE` closes one by hand.",
    ),
    "run-lost": ErrorText(
        "1",
        "The record of the run is no longer in Redis, and the run cannot continue or be undone.",
        "The run was pruned, or Redis lost its data: by a restart without persistence, an eviction or a flush.",
        "Check the effects of the run on its hosts by hand, then start it again under a new id. `longshore doctor` "
        "checks that Redis persists its data.",
    ),
    # --- ended runs and jobs
    "run-failed": ErrorText(
        "1 or 3",
        "The run has ended without success; its report is complete. Exit code 3: changes are left over or in doubt.",
        "A step failed, the run was cancelled, or its deadline has passed.",
        "`longshore runs show RUN` prints each step with its error; `longshore runs logs RUN STEP` the output of one.",
    ),
    "job-failed": ErrorText(
        "1 or 3",
        "The job has ended without success. Exit code 3: its stack is not fully up.",
        "A step of the job failed, and none of the more specific codes below applies.",
        "`longshore runs show RUN` prints each step with its error.",
    ),
    "image-missing": ErrorText(
        "1",
        "The image of a job container is missing and could not be pulled. The stack was not stopped.",
        "The name of the image is wrong, the registry does not answer, or the host is not logged in there.",
        "Pull the image on the host, then start the job again: `longshore job run NAME`. A step of a plan whose image "
        "is missing fails with `preflight`.",
    ),
    "stop-failed": ErrorText(
        "1 or 3",
        "The stack, or a part of it, did not stop. The stopped containers were started again.",
        "A container did not exit within its stop timeout, or the engine refused to stop it.",
        "Read the error in `longshore runs show RUN`, and raise `--stop-timeout` if the stack needs more time.",
    ),
    "worker-failed": ErrorText(
        "1 or 3",
        "The job container failed or did not start.",
        "Its command returned another exit code than 0, or a volume, network or command of the job is wrong.",
        "`longshore runs logs RUN work` prints the output of the container.",
    ),
    "job-timeout": ErrorText(
        "1 or 3",
        "The job container exceeded its timeout and was killed.",
        "The work takes longer than the timeout of the job, or does not end.",
        "Raise the timeout in the labels of the job, or for one run: `longshore job run NAME --timeout 2h`.",
    ),
    "job-cancelled": ErrorText(
        "1 or 3",
        "The run of the job was cancelled, and its stack was started again.",
        "A person or an application cancelled the run.",
        "`longshore audit` names the actor. Start the job again: `longshore job run NAME`.",
    ),
    "start-failed": ErrorText(
        "3",
        "Some containers of the stack did not become healthy again. The work itself may have succeeded.",
        "A container exits or fails its health check after the job, or needs longer than the start timeout.",
        "`longshore runs show RUN` names the containers. Repair them, then start the stack again.",
    ),
    # --- errors of operations, recorded as the error of a step
    "operation-failed": ErrorText(
        _STEP,
        "An operation failed on a worker. The step is `failed` and may have acted in part; its undo therefore runs.",
        "The operation found an error, and there was no further retry. The error of the step has the reason.",
        "`longshore runs show RUN` prints the error, `longshore runs logs RUN STEP` the output of the step.",
    ),
    "transient": ErrorText(
        _STEP,
        "An operation met a temporary error. The step is retried, and fails after the last attempt.",
        "An engine is busy, a registry is unreachable, or a connection broke.",
        "Wait for the retries. If the error lasts longer, give the step more attempts with `retry` in the plan.",
    ),
    "permanent": ErrorText(
        _STEP,
        "An operation met an error that another attempt would meet again. The step is not retried, not even with "
        "`retry`.",
        "The operation itself marked the error, such as a declined payment.",
        "Correct the cause, then start a new run, or resume a failed one: `longshore runs resume RUN`.",
    ),
    "unsuccessful": ErrorText(
        _STEP,
        "The operation was completed without success. The step is retried only if the step or the plan has `retry`.",
        "A command or container returned another exit code than 0, or a service another status than expected.",
        "Read the output: `longshore runs logs RUN STEP`. If another exit code or status means success, add it to "
        "`ok_codes` of the step.",
    ),
    "delayed": ErrorText(
        _STEP,
        "The effect has begun, and its outcome is not known yet. The operation is polled until the step times out.",
        "The service has accepted the request and works on it.",
        "Wait, or raise the `timeout` of the step if the service needs longer.",
    ),
    "in-doubt": ErrorText(
        _STEP,
        "The effect of the step may have happened and cannot be verified. The step ends `unknown`.",
        "A worker or a connection was lost after the request was sent, and a repetition could double the effect.",
        "Find out the outcome on the host or service. If the run waits for a decision, or has ended without an undo of "
        "the step, record the outcome with `longshore runs resolve RUN STEP`.",
    ),
    "blocked": ErrorText(
        _STEP,
        "The service is down, and no effect happened. Its breaker opens, and the run is suspended until it closes.",
        "The service refused connections, or returned a status in `blocked_codes` of the step.",
        "Repair the service; the run continues by itself. `longshore breaker ls` prints the open breakers.",
    ),
    "preflight": ErrorText(
        _STEP,
        "The operation failed before any effect: the step has nothing to undo.",
        "A check before the effect failed: a missing file, program, image, container or secret.",
        "Correct the cause in the error of the step, then start a new run, or resume a failed one. For a missing "
        "image, set `pull: missing` on `compose.up.execute`, or add a step `docker.pull.execute` before.",
    ),
    "not-allowed": ErrorText(
        _STEP,
        "The settings of the worker deny the operation. No effect happened; the denial is in the audit trail.",
        "A path, command, image, host, secret or operation is outside of the worker's settings LONGSHORE_ALLOWED_….",
        "`longshore audit` prints the denials. Extend the setting on the worker, or change the step.",
    ),
    "step-timeout": ErrorText(
        _STEP,
        "An attempt at a step exceeded its timeout.",
        "The operation takes longer than the `timeout` of the step (LONGSHORE_STEP_TIMEOUT without one), or does not "
        "end.",
        "Raise the `timeout` of the step; `longshore runs logs RUN STEP` prints its last output.",
    ),
    "step-cancelled": ErrorText(
        _STEP,
        "An attempt at a step was stopped, because its run ended early.",
        "A person or an application cancelled the run, another step failed, or the deadline of the run passed.",
        "`longshore runs show RUN` prints the cause. If the report names the step in `in_doubt`, check its effect by "
        "hand.",
    ),
    # --- errors of workers
    "foreign-run": ErrorText(
        "1",
        "A worker does not process this run.",
        "The record of the run is damaged or unknown to this version, or its signature is missing.",
        "`longshore doctor` compares the versions and the keys of workers and clients.",
    ),
    "newer-run": ErrorText(
        "1",
        "A worker does not process this run, because a newer version started the run.",
        "Workers of several versions share one Redis, as during an upgrade.",
        "Upgrade the remaining workers. Newer workers process the run in the meantime.",
    ),
    "unknown-operation": ErrorText(
        "1",
        "A worker does not know an operation of the run. Another worker may process the run.",
        "The worker does not import the module of an application's own operation, or has an older version of it.",
        "Name the module in LONGSHORE_IMPORTS of the workers. `longshore doctor` names operations that no worker "
        "provides.",
    ),
    "http-no-answer": ErrorText(
        _STEP,
        "An HTTP request had no response. The step is retried if the request cannot have had an effect.",
        "The connection was refused or broke, or the response exceeded the timeout of the request.",
        "Check the address from the host of the worker, and raise the `timeout` of the step if necessary.",
    ),
    "engine-not-found": ErrorText(
        _STEP,
        "The Docker engine does not have the object, or an object that the call needs.",
        "A container, image, network or volume was removed, or its name is misspelt.",
        "Check the name on the host that `longshore runs show RUN` prints.",
    ),
    "engine-conflict": ErrorText(
        _STEP,
        "The Docker engine refused the call: the name is in use, or the state of the object forbids the call.",
        "Another container has the name, or the object is still in use.",
        "Remove or rename the other object, or choose another name in the step.",
    ),
    "engine-timeout": ErrorText(
        _STEP,
        "The Docker engine did not respond in time. The call may still be completed; the step is retried.",
        "The host is overloaded, or its engine hangs.",
        "Check the engine on the host: `longshore doctor` and `longshore hosts ls` report unhealthy engines.",
    ),
}


def error_text(code: str) -> str:
    """The entry of one code, as `longshore explain` prints it. Raises KeyError for an unknown code."""
    entry = ERRORS[code]
    return (
        f"{code} (exit code {entry.exit_codes})\n\n{entry.means}\n\n"
        f"Usual causes: {entry.raised}\n\nRemedy: {entry.remedy}".replace("`", "")
    )


def error_reference() -> str:
    """All entries as Markdown, one heading a code, in the order of the exception hierarchy."""
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, LongshoreError)]
    exceptions = {each.code: f"- **Exception:** `{each.__name__}`\n" for each in found}
    parts = [
        f"## {code}\n\n{entry.means}\n\n{exceptions.get(code, '')}"
        f"- **Exit code:** {entry.exit_codes}\n- **Causes:** {entry.raised}\n- **Remedy:** {entry.remedy}\n"
        for code, entry in ERRORS.items()
    ]
    return "\n".join(parts)
