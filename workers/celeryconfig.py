"""Celery's settings, each with its reason. Most were found by breaking things: killed workers, cut
connections, a full Redis.

The file stands at the top of a checkout and, as `longshore.workers.celeryconfig`, in the package: a
module named `celeryconfig` in a wheel would become the configuration of every Celery app beside it.
"""

from longshore.orchestration.schedules.celery_beat import redbeat
from longshore.orchestration.schedules.schedules import declared
from longshore.orchestration.settings import get_settings
from longshore.workers.queues import all_queues

_settings = get_settings()

broker_url = _settings.broker_url()
# Publishes the bodies of chords and keeps nothing: outcomes live in the saga.
result_backend = "longshore.workers.result_backend:SagaBackend"

# JSON only: who can write to Redis must not be able to run code by way of pickle.
task_serializer = "json"
accept_content = ["json"]
result_serializer = "json"
event_serializer = "json"

# A message is acknowledged when its step has ended, so that a killed worker's comes again.
task_acks_late = True
# Requeueing at once loops for ever on a step that kills its worker; the lease decides instead.
task_reject_on_worker_lost = False
# Results and error records would be a second truth beside the saga's.
task_ignore_result = True
task_store_errors_even_if_ignored = False
task_track_started = False

# One message a process, none hoarded behind a long step.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
# A step goes on while Redis is away, and records its outcome when it is back.
worker_cancel_long_running_tasks_on_connection_loss = False

# Without it a full or read-only Redis ends the worker.
broker_channel_error_retry = True
# A restart of Redis, however long, is waited for.
broker_connection_retry = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_transport_options = {
    # Longer than any step: a shorter one delivers it twice, which does no harm here, but is work.
    "visibility_timeout": _settings.visibility_timeout,
    # What a dead worker held is given back 10 s after its time, not 100.
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    # A connection that died without a word is noticed.
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # A message's priority is the queue it is in; Celery's four steps would make four lists a queue, and
    # every read would wait on all of them.
    "priority_steps": [0],
    # Control work and undo before new work.
    "queue_order_strategy": "longshore.workers.queues:UndoFirst",
    # Two installations on one Redis do not meet; and Sentinel is asked for the server by its name.
    **_settings.broker_options(),
}

# Everything, unless the worker is given -Q.
task_queues = all_queues()
task_default_queue = "control"

# On SIGQUIT a step has so long to end; SIGTERM waits for it as long as it takes.
worker_soft_shutdown_timeout = 7
# A leak in a library that an operation uses ends here.
worker_max_tasks_per_child = 10_000
# Flower turns workers' events on while it is there, and learns of a task when a worker receives it:
# an event for each message sent would double the cost of sending.
task_send_sent_event = False
worker_send_task_events = False
# An application's own logging is left alone.
worker_hijack_root_logger = False
timezone = "UTC"

# Two beats start one run: what is due is looked up by whoever takes the tick. A tick that nobody takes in time
# is followed by another; nothing of it has to be kept in a file.
beat_scheduler = "celery.beat:Scheduler"
if _settings.beat == "redbeat":
    # One of several beats is at it, and entries can be added and taken away while it runs.
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
