"""The app of Django: sets Longshore up when Django starts."""

from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings
from django.utils.module_loading import autodiscover_modules

from longshore.orchestration.django.configuration import configure


class LongshoreConfig(AppConfig):
    """Reads the settings `LONGSHORE` and `CELERY_BROKER_URL`, and imports the operations of all apps."""

    name = "longshore.orchestration.django"
    label = "longshore"
    verbose_name = "Longshore"

    def ready(self) -> None:
        configure(getattr(settings, "LONGSHORE", {}), str(getattr(settings, "CELERY_BROKER_URL", None) or ""))
        autodiscover_modules("operations")
