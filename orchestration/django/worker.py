"""Imported by workers before their operations: sets Django up, which imports the operations of all apps."""

from __future__ import annotations

import django
from django.apps import apps

if not apps.ready and not apps.loading:  # in a process of the project itself, Django is set up already
    django.setup()
