"""Celery's settings, each with its reason. Most follow from fault tests: killed workers, cut connections,
a full Redis.

The file lies at the top of a checkout and, as `longshore.workers.celeryconfig`, in the package: a
module named `celeryconfig` in a wheel would become the configuration of every Celery app beside it.
"""

from longshore.orchestration.schedules.celery_beat import redbeat
from longshore.orchestration.schedules.declarations import declared
from longshore.orchestration.settings import get_settings
from longshore.workers.queues import all_queues

_settings = get_settings()

broker_url = _settings.broker_url()
# Advances runs instead of storing results: the saga holds the outcomes.
result_backend = "longshore.workers.result_backend:SagaBackend"

# JSON only: with pickle, a client that can write to Redis could run code.
task_serializer = "json"
accept_content = ["json"]
result_serializer = "json"
event_serializer = "json"

# A message is acknowledged when its step has ended, so that a killed worker's message is redelivered.
task_acks_late = True
# An immediate requeue loops for ever on a step that kills its worker; the lease decides instead.
task_reject_on_worker_lost = False
# Results and error records would duplicate the saga's record.
task_ignore_result = True
task_store_errors_even_if_ignored = False
task_track_started = False

# One message a process, so that none waits behind a long step.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
# A step continues while Redis is unreachable, and records its outcome on reconnection.
worker_cancel_long_running_tasks_on_connection_loss = False

# By default a full or read-only Redis ends the worker.
broker_channel_error_retry = True
# The worker waits for Redis without a limit.
broker_connection_retry = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_transport_options = {
    # For the messages that no sweeper resends, which alone have a copy in Redis until they are acknowledged.
    "visibility_timeout": _settings.visibility_timeout,
    # A dead worker's messages are restored 10 s after the timeout, not 100.
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    # Detect a half-open connection.
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # A message's queue is its priority; Celery's four steps would make four lists a queue, and every read
    # would wait on all of them.
    "priority_steps": [0],
    # Control work and undo before new work.
    "queue_order_strategy": "longshore.workers.queues:UndoFirst",
    # A key prefix of the installation, and the name under which Sentinel knows the server.
    **_settings.broker_options(),
}

# All queues, without -Q.
task_queues = all_queues()
task_default_queue = "control"

# Seconds that SIGQUIT leaves a step to end; SIGTERM waits without a limit.
worker_soft_shutdown_timeout = 7
# Bounds a memory leak in a library that an operation uses.
worker_max_tasks_per_child = 10_000
# Flower enables workers' events while it runs, and records a task when a worker receives it: an event for
# each message sent would double the cost of sending.
task_send_sent_event = False
worker_send_task_events = False
# Keep an application's own logging.
worker_hijack_root_logger = False
timezone = "UTC"

# Two beats start one run: the worker that receives the tick reads which schedules are due. A tick that expires
# is followed by another, so no schedule file is needed.
beat_scheduler = "celery.beat:Scheduler"
if _settings.beat == "redbeat":
    # One of several beats is active, and entries can be added and removed while it runs.
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
