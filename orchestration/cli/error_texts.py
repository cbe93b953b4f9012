"""The meaning, causes and remedy of each error code: the texts of `longshore explain` and of the reference page."""

from __future__ import annotations

from dataclasses import dataclass

from longshore.orchestration import errors
from longshore.orchestration.errors import LongshoreError


@dataclass(frozen=True)
class ErrorText:
    """The entry of one error code."""

    #: The exit codes of a command that ends with this error, for people: `2`, `1 or 3`, or `none`.
    exit_codes: str
    means: str
    raised: str
    remedy: str


_STEP = "1 or 3"  # a run ends with 3 where an effect of one of its steps remains, or is in doubt
_NONE = "none"  # no command ends with this error

ERRORS: dict[str, ErrorText] = {
    "general": ErrorText(
        "1",
        "A command or a call of the library failed, and no other code applies. The message names the object and the "
        "reason.",
        "Any failure without a code of its own.",
        "Follow the remedy in the message. `-v` prints the traceback.",
    ),
    # --- invalid requests
    "usage": ErrorText(
        "2",
        "The request is invalid, and nothing was started or changed.",
        "An option or argument has a wrong form, options contradict each other, or a file that the command would "
        "write already exists.",
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
        "The policy of the installation refuses the plan. If you tried to start a run, the audit trail contains the "
        "refusal.",
        "The plan with its parameters and files is larger than LONGSHORE_MAX_PLAN. Or the plan contains a plaintext "
        "secret, a file path with `..`, a template with a name such as `__class__`, or more than 524288 characters "
        "inside the tags (`{{ }}`, `{% %}`) of its templates.",
        "Replace a plaintext secret with `{{ secret('file:/run/secrets/NAME') }}`. Store large data in files on the "
        "hosts, or as objects in Redis. Remove paths and names that the message forbids, and shorten the templates.",
    ),
    "params-invalid": ErrorText(
        "2",
        "The values do not match the `params` of the plan, and no run was started.",
        "A parameter is missing or unknown, or its value has another type than declared.",
        "Correct the option `-p NAME=VALUE`, or the file of `--params`. The `params` of the plan define the names and "
        "types.",
    ),
    "unknown-name": ErrorText(
        "2",
        "The plan, run, step, operation, host, service or schedule of that name does not exist.",
        "The name is misspelt, the run was deleted after its retention, or no worker of the host has started. Or your "
        "value of LONGSHORE_PLANS, LONGSHORE_REDIS_URL or LONGSHORE_NAMESPACE differs from that of the workers.",
        "List the names: `longshore runs ls`, `longshore ops ls`, `longshore hosts ls`, `longshore schedules ls`. "
        "`longshore runs show RUN` prints the steps of a run.",
    ),
    "job-not-found": ErrorText(
        "2",
        "None of the hosts that answered has a job of that name.",
        "The labels of the job are missing or invalid, its containers do not exist, or its host has no live worker.",
        "`longshore job ls` prints the known jobs and the problems of their labels. `longshore hosts ls` prints the "
        "hosts with live workers.",
    ),
    "bad-identifier": ErrorText(
        "2",
        "A run id, or another name that becomes part of a key or path, has characters that are not allowed.",
        "The name is empty or too long, or contains spaces, slashes or control characters.",
        "Use only characters of the pattern in the message.",
    ),
    "run-conflict": ErrorText(
        "2",
        "The run id belongs to a run of another plan, or of the same plan with other parameters. Nothing was started.",
        "A caller uses the same run id for two requests, or repeats a request after a change of the plan.",
        "Choose another run id, or read the existing run: `longshore runs show RUN`.",
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
        "Redis does not answer, or refuses the request. Runs continue when Redis answers again.",
        "LONGSHORE_REDIS_URL has a wrong address or user, Redis is down or loading, its memory is full, or too few "
        "replicas are connected.",
        "Check the address, user and password in LONGSHORE_REDIS_URL, then run `longshore doctor`.",
    ),
    "wrong-type": ErrorText(
        "1",
        "A key of Longshore in Redis has an unexpected type.",
        "Another application uses the same key in the same database, or a person has changed the key.",
        "`longshore doctor` finds the key. Give Longshore a database of its own, or set another LONGSHORE_NAMESPACE.",
    ),
    "damaged-entry": ErrorText(
        "1",
        "An entry in Redis cannot be decoded. The worker that reads the entry moves it to the dead letters.",
        "A person has changed the entry, or an incompatible version has written it.",
        "`longshore doctor` counts the dead letters. If a run is missing in `longshore runs ls`, follow the remedy of "
        "`run-lost`.",
    ),
    "decode-failed": ErrorText(
        "1",
        "The data of a step does not exist, or does not match the type that the caller requested.",
        "The step was skipped or failed, its name is misspelt, or the type has fields that the operation does not "
        "return.",
        "Compare the type with the result in `longshore ops show OP`. Check in `longshore runs show RUN` that the "
        "step has succeeded.",
    ),
    "wait-timeout": ErrorText(
        "1",
        "The client stopped waiting for the end of a run, or for the answer to a command. The run or command "
        "continues.",
        "The run takes longer than the timeout of the call. Or no running worker serves the queue or host of a step.",
        "`longshore runs watch RUN` waits again. `longshore hosts ls` lists the hosts with live workers.",
    ),
    "queue-full": ErrorText(
        "1",
        "Too many runs wait for their admission. Nothing was stored.",
        "With this run, more runs than LONGSHORE_MAX_QUEUED would wait. Runs wait for LONGSHORE_MAX_RUNS, "
        "LONGSHORE_MAX_RUNS_PER_PLAN or a concurrency key, or because no worker is running.",
        "Try again later, or raise LONGSHORE_MAX_RUNS or LONGSHORE_MAX_QUEUED.",
    ),
    "service-down": ErrorText(
        "1",
        "A service that the plan needs is down, and LONGSHORE_ON_BLOCKED is `refuse`. Nothing was stored.",
        "The breaker of the service is open.",
        "Repair the service. If runs wait for the service (`longshore breaker ls`), one of them calls the service "
        "within about 30 s, and closes the breaker. Otherwise, close the breaker: `longshore breaker reset SERVICE`.",
    ),
    "run-lost": ErrorText(
        "1",
        "Neither the record nor the request of the run is in Redis. The run cannot continue or be undone.",
        "The run was pruned, or Redis lost its data: by a restart without persistence, an eviction or a flush.",
        "Check the effects of the run on its hosts by hand, then start the plan with a new run id. `longshore doctor` "
        "checks that Redis persists its data.",
    ),
    "refused": ErrorText(
        "1",
        "A worker has refused a command to a run, such as `cancel` or `undo`, or with `--dry-run`, would refuse the "
        "command. Nothing was changed.",
        "The state of the run or step does not allow the command. Or the step was already approved, rejected or "
        "resolved. Or the run is past its point of no return: a step with `irreversible: true` has succeeded. Or the "
        "command has no valid signature.",
        "The message contains the reason. `longshore runs show RUN` prints the states of the run and its steps.",
    ),
    # --- ended runs and jobs
    "run-failed": ErrorText(
        "1 or 3",
        "The run has ended without success.",
        "A step failed, the run was cancelled, or the `timeout` of the run has passed.",
        "`longshore runs show RUN` prints each step with its error. `longshore runs logs RUN STEP` prints the output "
        "of a step.",
    ),
    "job-failed": ErrorText(
        "1",
        "The job has ended without success.",
        "A step of the job failed, and no more specific code applies, such as `stop-failed` or `worker-failed`.",
        "`longshore runs show RUN` prints each step with its error.",
    ),
    "image-missing": ErrorText(
        "1",
        "The image of a job container is missing and could not be pulled. The stack was not stopped.",
        "The name of the image is wrong, the registry does not answer, or the host is not logged in to the registry.",
        "Pull the image on the host, then start the job again: `longshore job run NAME`.",
    ),
    "stop-failed": ErrorText(
        "1",
        "At least one container of the stack did not stop. Longshore then starts the stopped containers again, unless "
        "the job ran with `--keep-stopped`.",
        "A container still runs although Docker has killed it, or the engine refused the stop or did not answer.",
        "`longshore runs show RUN` prints the error. Repair the container or the engine, then start the job again.",
    ),
    "worker-failed": ErrorText(
        "1",
        "The job container failed or did not start.",
        "The command of the container returned another exit code than 0. Or a volume, network or command in the labels "
        "of the job is wrong.",
        "`longshore runs logs RUN work` prints the output of the container.",
    ),
    "job-timeout": ErrorText(
        "1",
        "The job container exceeded its timeout, and was stopped.",
        "The container needs more time than the timeout of the job, or does not end.",
        "Raise the timeout in the labels of the job. For a single run, use `longshore job run NAME --timeout 2h`.",
    ),
    "job-cancelled": ErrorText(
        "1",
        "The run of the job was cancelled. Longshore then starts the stopped containers again, unless the job ran with "
        "`--keep-stopped`.",
        "A person or an application cancelled the run.",
        "`longshore audit` names the actor. Start the job again: `longshore job run NAME`.",
    ),
    "start-failed": ErrorText(
        "3",
        "Some containers of the stack did not become healthy again after the job. The job container may have "
        "succeeded.",
        "After the job, a container exits, fails its health check, or needs more time than the start timeout of the "
        "job.",
        "`longshore runs show RUN` names the containers. Repair them, or start the stack with Compose. Workers also "
        "try to start the stack, up to three times within about half an hour.",
    ),
    # --- errors of operations, recorded as the error of a step
    "operation-failed": ErrorText(
        _STEP,
        "An operation failed on a worker. The step is `failed`, but may have acted in part. If the run is undone, the "
        "step is undone, too.",
        "The operation met an error, and no retry was left.",
        "`longshore runs show RUN` prints the error. `longshore runs logs RUN STEP` prints the output of the step.",
    ),
    "transient": ErrorText(
        _STEP,
        "An operation met a temporary error. The step is retried, and fails after the last attempt. With some "
        "operations, such as `command.*` and `file.*`, the step is retried only if the step or the plan has `retry`.",
        "An engine is busy, a registry is unreachable, or a connection broke.",
        "Wait for the retries. If the error lasts longer, set higher `attempts` and `initial` in `retry` of the step.",
    ),
    "permanent": ErrorText(
        _STEP,
        "An operation met an error that another attempt would meet again. The step is not retried, even if the step or "
        "the plan has `retry`.",
        "The code of the operation raised `Permanent`, for example because a payment was declined.",
        "Correct the cause, then start a new run, or resume the run if it ended `failed` or `partial`: "
        "`longshore runs resume RUN`.",
    ),
    "unsuccessful": ErrorText(
        _STEP,
        "The operation was completed without success. The step is retried only if the step or the plan has `retry`.",
        "A command or container returned another exit code than 0, or a service returned a status that is not in "
        "`ok_codes` of the step. Or the operation raised an unexpected exception: the error then begins with its type.",
        "Read the output: `longshore runs logs RUN STEP`. If the exit code or status means success, add it to "
        "`ok_codes` of the step. After an unexpected exception, the output has the traceback.",
    ),
    "delayed": ErrorText(
        _STEP,
        "The effect has begun, and its outcome is not known yet. The next attempt begins after a delay. If the "
        "operation has a `done` function, the attempt calls the operation only if `done` finds no effect. If the "
        "outcome is still not known when the `timeout` of the step has passed since the first `Delayed`, the step ends "
        "`unknown`.",
        "The service has accepted a request that it completes later.",
        "Wait, or raise the `timeout` of the step if the service needs longer.",
    ),
    "in-doubt": ErrorText(
        _STEP,
        "The effect of the step may have happened, and cannot be verified. The step ends `unknown`. With `on_unknown: "
        "ask`, the step first waits for the decision of a person.",
        "A worker or a connection was lost after the step had begun to act, and a second attempt could double the "
        "effect.",
        "Find out on the host or service whether the effect exists. If the run waits for your decision, or has ended "
        "without an undo of the step, record the outcome: `longshore runs resolve RUN STEP`.",
    ),
    "blocked": ErrorText(
        _STEP,
        "A service is down, and no effect happened. The breaker of the service opens, and the run is suspended until "
        "the breaker closes.",
        "A service returned a status in `blocked_codes` of the step, or an operation of your own raised `Blocked`. A "
        "refused connection does not open the breaker (`http-no-answer`).",
        "Repair the service. The run then continues by itself. `longshore breaker ls` prints the open breakers.",
    ),
    "preflight": ErrorText(
        _STEP,
        "The operation failed before any effect. The step has nothing to undo.",
        "A check before the effect failed: a missing file, program, image, container or secret.",
        "Correct the cause that the error names, then proceed as for `permanent`. To pull a missing image, set `pull: "
        "missing` in the step `compose.up.execute`, or add a step `docker.pull.execute`.",
    ),
    "not-allowed": ErrorText(
        _STEP,
        "The settings of the worker forbid the step. No effect happened.",
        "A LONGSHORE_ALLOWED_… setting of the worker does not list the operation, path, program, variable, image, "
        "host or secret. Or a container needs LONGSHORE_ALLOW_PRIVILEGED.",
        "`longshore audit --refused` prints the refusals. Extend the setting that the message names, or change the "
        "step.",
    ),
    "step-timeout": ErrorText(
        _STEP,
        "An attempt at a step exceeded its time limit. The step is retried only if the step or the plan has `retry`.",
        "The operation needs more time than the `timeout` of the step (by default LONGSHORE_STEP_TIMEOUT), or does "
        "not end.",
        "`longshore runs logs RUN STEP` prints the last output of the step. If the step needs more time, raise its "
        "`timeout`.",
    ),
    "step-cancelled": ErrorText(
        _STEP,
        "An attempt at a step was stopped, because the run was aborted.",
        "A person or an application cancelled the run, another step failed, or the `timeout` of the run passed.",
        "`longshore runs show RUN` prints the cause. If the report names the step in `in_doubt`, check the effect of "
        "the step by hand.",
    ),
    # --- errors of workers
    "foreign-run": ErrorText(
        _NONE,
        "A worker does not process the run, because the worker does not accept the request of the run (plan and "
        "parameters).",
        "The request is missing, was changed after the start of the run, or has no valid signature. Or the policy of "
        "the worker refuses the plan.",
        "`longshore audit --refused` prints the reason. `longshore doctor` compares the keys of workers and clients.",
    ),
    "newer-run": ErrorText(
        _NONE,
        "A worker does not process the run, because a newer version of Longshore has written the request or the "
        "record of the run, in a new format.",
        "Workers of several versions use the same Redis, for example during an upgrade.",
        "Upgrade the old workers. Until then, the newer workers process the run.",
    ),
    "unknown-operation": ErrorText(
        _NONE,
        "A worker does not process the run, because the worker does not know an operation of the plan. Workers that "
        "know the operation process the run.",
        "The worker does not import the module that defines the operation, or has an older version of the module.",
        "Add the module to LONGSHORE_IMPORTS of the workers, and restart them. `longshore doctor` names the operations "
        "that no worker knows.",
    ),
    "http-no-answer": ErrorText(
        _STEP,
        "A step `network.http.request` got no response. The step is retried, and fails after the last attempt. If the "
        "request may have arrived, and a second one could double the effect, the step ends `unknown` instead "
        "(`in-doubt`).",
        "The connection was refused or broke, or the response exceeded the timeout of the request.",
        "Try `curl` on the host of the worker. If the service is only slow, raise the parameter `timeout`.",
    ),
    "engine-not-found": ErrorText(
        _STEP,
        "A container, image, network or volume that the step needs does not exist on the Docker engine.",
        "The object was removed, or its name is misspelt.",
        "`longshore runs show RUN` prints the host. Search for the object there, for example with `docker ps --all`.",
    ),
    "engine-conflict": ErrorText(
        _STEP,
        "The Docker engine refused the call: the name is in use, or the state of the object forbids the call.",
        "Another container has the name, or the object is still in use.",
        "Remove or rename the other object, or choose another name in the step.",
    ),
    "engine-timeout": ErrorText(
        _STEP,
        "The Docker engine did not respond in time, and may complete the call later. The step is retried, and fails "
        "after the last attempt.",
        "The host is overloaded, or its engine hangs.",
        "Check the engine on the host: `longshore doctor` and `longshore hosts ls` report unhealthy engines.",
    ),
}


def error_text(code: str) -> str:
    """The entry of one code, as `longshore explain` prints it. Raises KeyError for an unknown code."""
    entry = ERRORS[code]
    exits = "no exit code" if entry.exit_codes == _NONE else f"exit code {entry.exit_codes}"
    return f"{code} ({exits})\n\n{entry.means}\n\nUsual causes: {entry.raised}\n\nRemedy: {entry.remedy}".replace(
        "`", ""
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
