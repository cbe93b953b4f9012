"""Celery's settings, each with its reason. Fault tests found most of the reasons: killed workers, cut connections,
a full Redis.

In a checkout, `celeryconfig.py` is a link to this module. The wheel has only `longshore.workers.celeryconfig`, because
a module named `celeryconfig` would become the configuration of every Celery app in the same environment.
"""

from longshore.orchestration.schedules.celery_beat import redbeat
from longshore.orchestration.schedules.declarations import declared
from longshore.orchestration.settings import get_settings
from longshore.workers.queues import all_queues

_settings = get_settings()

broker_url = _settings.broker_url()
# This backend advances runs and stores no results, because the records of runs have the outcomes.
result_backend = "longshore.workers.result_backend:SagaBackend"

# JSON only: with pickle, a client that can write to Redis could run code.
task_serializer = "json"
accept_content = ["json"]
result_serializer = "json"
event_serializer = "json"

# A message is acknowledged when its step has ended, so that the message of a killed worker is redelivered.
task_acks_late = True
# An immediate requeue would repeat a step that kills its worker for ever. The expiry of the lease decides instead.
task_reject_on_worker_lost = False
# Results and error records would duplicate the record of the run.
task_ignore_result = True
task_store_errors_even_if_ignored = False
task_track_started = False

# Each process has one message at a time, so that no message waits behind a long step.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
# A step continues while Redis is unreachable, and records its outcome on reconnection.
worker_cancel_long_running_tasks_on_connection_loss = False

# By default, a full or read-only Redis ends the worker.
broker_channel_error_retry = True
# The worker waits for Redis without a limit.
broker_connection_retry = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_transport_options = {
    # Only messages that the sweeper does not resend have a copy in Redis until their acknowledgement.
    "visibility_timeout": _settings.visibility_timeout,
    # The messages of a dead worker are restored 10 s after the timeout, instead of 100 s.
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    # Detect a half-open connection.
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # The queue of a message is its priority. Celery's four priority steps would create four lists for each queue, and
    # each read would wait on all of them.
    "priority_steps": [0],
    # Workers read control work and undos before new work.
    "queue_order_strategy": "longshore.workers.queues:UndoFirst",
    # The key prefix of the installation, and the name of the master in Sentinel.
    **_settings.broker_options(),
}

# Without -Q, a worker consumes all queues.
task_queues = all_queues()
task_default_queue = "control"

# After SIGQUIT, running steps have this number of seconds to end. After SIGTERM, the worker waits without a limit.
worker_soft_shutdown_timeout = 7
# A new process after this number of tasks bounds a memory leak in a library that an operation uses.
worker_max_tasks_per_child = 10_000
# Flower enables the events of workers while Flower runs, and records a task when a worker receives the task. An event
# for each sent message would double the cost of sending.
task_send_sent_event = False
worker_send_task_events = False
# Keep the logging of an application.
worker_hijack_root_logger = False
timezone = "UTC"

# Two beats start only one run, because the worker that receives a tick reads in Redis which schedules are due. After a
# lost tick, the next tick starts the missed runs, so that the beat needs no schedule file.
beat_scheduler = "celery.beat:Scheduler"
if _settings.beat == "redbeat":
    # One of several beats is active. Entries can be added and removed while the beat runs.
    beat_scheduler = "redbeat.RedBeatScheduler"
    globals().update(redbeat(_settings))
beat_schedule = {
    "longshore.tick": {
        "task": "longshore.tick",
        "schedule": _settings.tick,
        "options": {"queue": "control", "expires": 2 * _settings.tick},
    }
}
beat_schedule |= {each.entry_name: each.entry() | {"kwargs": {"name": each.name}} for each in declared(_settings)[0]}
if _settings.orchestrate_every:
    beat_schedule["longshore.orchestrate"] = {
        "task": "longshore.orchestrate",
        "schedule": _settings.orchestrate_every,
        "kwargs": {"every": _settings.orchestrate_every},
        "options": {"queue": "control", "expires": _settings.orchestrate_every},
    }
