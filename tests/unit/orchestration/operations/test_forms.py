"""Messages about texts of a wrong form: the expected form, not a regular expression."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from longshore.orchestration.errors import plain
from longshore.orchestration.operations.base import find

DIGEST = "shop@sha256:" + "a" * 64
WRONG = [
    ("file.deploy.execute", {"path": ".", "content": "x"}, "path: '.' is not an absolute path"),
    ("file.deploy.execute", {"path": "/x", "content": "x", "mode": "rw"}, "mode: 'rw' is not an octal mode"),
    ("docker.network-create.execute", {"name": "a b"}, "name: 'a b' is not a name"),
    ("docker.build.execute", {"image": DIGEST, "context": "/x"}, f"image: {DIGEST!r} contains a digest"),
    ("docker.push.execute", {"image": DIGEST}, f"image: {DIGEST!r} contains a digest"),
    ("docker.tag.execute", {"image": "shop:1", "name": DIGEST}, f"name: {DIGEST!r} contains a digest"),
]


@pytest.mark.parametrize(("operation", "params", "message"), WRONG)
def test_text_of_a_wrong_form_is_reported_with_the_expected_form(operation: str, params: object, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        find(operation).params.model_validate(params)

    (error,) = raised.value.errors()
    assert f"{error['loc'][0]}: {plain(error['msg'])}".startswith(message)
    assert "pattern" not in error["msg"]


def test_template_in_place_of_a_tag_is_accepted() -> None:
    image = "shop:{{ params.tag | default('@') }}"
    assert find("docker.push.execute").params.model_validate({"image": image}).image == image  # type: ignore[attr-defined]


def test_template_in_place_of_a_path_is_accepted() -> None:
    path = "{{ params.folder }}"
    assert find("file.deploy.execute").params.model_validate({"path": path, "content": "x"}).path == path  # type: ignore[attr-defined]
