"""The runs as a model without a table, for the permission and the place in the admin."""

from __future__ import annotations

from django.db import models


class Run(models.Model):
    """A run of Longshore, which is stored in Redis."""

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "run"
        verbose_name_plural = "runs"
