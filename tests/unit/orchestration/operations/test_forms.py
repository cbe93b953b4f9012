"""Messages about texts of a wrong form: the expected form, not a regular expression."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from longshore.orchestration.operations.base import find

WRONG = [
    ("file.deploy.execute", {"path": ".", "content": "x"}, "path: '.' is not an absolute path"),
    ("file.deploy.execute", {"path": "/x", "content": "x", "mode": "rw"}, "mode: 'rw' is not an octal mode"),
    ("docker.network-create.execute", {"name": "a b"}, "name: 'a b' is not a name"),
]


@pytest.mark.parametrize(("operation", "params", "message"), WRONG)
def test_text_of_a_wrong_form_is_reported_with_the_expected_form(operation: str, params: object, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        find(operation).params.model_validate(params)

    (error,) = raised.value.errors()
    assert f"{error['loc'][0]}: {error['msg']}".startswith(message)
    assert "pattern" not in error["msg"]


def test_template_in_place_of_a_path_is_accepted() -> None:
    path = "{{ params.folder }}"
    assert find("file.deploy.execute").params.model_validate({"path": path, "content": "x"}).path == path  # type: ignore[attr-defined]
