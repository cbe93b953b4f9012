"""Longshore in a Django project: settings, operations, the command `manage.py longshore`, and a list of runs.

    INSTALLED_APPS += ["longshore.orchestration.django"]
    LONGSHORE = {"redis_url": "redis://localhost:6379/0"}

`LONGSHORE` holds settings of Longshore by their names in lower case; variables `LONGSHORE_*` of the environment take
precedence, and without `redis_url`, a Redis of `CELERY_BROKER_URL` counts. Each app's module `operations` is imported
by the project and by its workers, which call `django.setup()` before.
"""

from longshore.orchestration.django.runs import client, start_on_commit

__all__ = ["client", "start_on_commit"]
