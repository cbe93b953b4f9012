"""The names of the images that revisions keep."""

from __future__ import annotations

import re

import pytest

from longshore.tasks.operations.compose.revisions import _repository

#: The grammar of a repository name in a Docker registry.
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")


@pytest.mark.parametrize("project", ["shop", "a_b", "a___b", "a_-b", "a-_b", "a-", "a_"])
def test_repository_of_any_project_is_valid_and_unique(project: str) -> None:
    repository = _repository(project)

    assert _NAME.fullmatch(repository), repository
    assert all(_repository(other) != repository for other in {"shop", "a-b", "a", "a_b"} - {project})
