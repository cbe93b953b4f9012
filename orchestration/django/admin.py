"""The latest runs in Django's admin, read-only, for users with the permission `longshore.view_run`."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from longshore.orchestration.django.models import Run
from longshore.orchestration.django.runs import client
from longshore.orchestration.errors import LongshoreError
from longshore.orchestration.runs.search import Filter, search


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):
    """A list of the latest hundred runs; a search finds ids, plans and errors."""

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_changelist"
        return [path("", self.admin_site.admin_view(self.changelist_view), name=name)]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = request.GET.get("q", "")
        context = {**self.admin_site.each_context(request), "title": "Runs", "opts": self.opts, "query": query}
        try:
            context["runs"] = search(client().store, Filter.read(query), limit=100)
        except LongshoreError as error:
            context["error"] = str(error)
        return TemplateResponse(request, "longshore/runs.html", context | (extra_context or {}))
