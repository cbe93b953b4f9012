"""The engine port over HTTP: images, local and at registries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from longshore.orchestration.errors import OperationError
from longshore.tasks.host.engine.calls import Calls, quoted
from longshore.tasks.host.engine.port import Check, Conflict, Image, Login, NotThere
from longshore.tasks.host.engine.sdk import sdk


class ImageCalls(Calls):
    """The image calls of the port."""

    def image(self, ref: str) -> Image | None:
        found = self._get(f"/images/{quoted(ref)}/json")
        if found is None:
            return None
        tags, digests = tuple(found.get("RepoTags") or ()), tuple(found.get("RepoDigests") or ())
        return Image(found["Id"], tags, digests, found["Size"], found["Architecture"], found["Os"])

    def images(self) -> list[Image]:
        """All images in one call, without the architecture and OS, which need an inspection each."""
        return [
            Image(found["Id"], tuple(found.get("RepoTags") or ()), tuple(found.get("RepoDigests") or ()), found["Size"])
            for found in self._get("/images/json") or []
        ]

    def tagged_at(self, image_id: str) -> str:
        """The time of the image's last tag, in the engine's format; '' if unknown."""
        found = self._get(f"/images/{quoted(image_id)}/json") or {}
        return str((found.get("Metadata") or {}).get("LastTagTime") or "")

    def pull(self, ref: str, *, login: Login | None, platform: str | None, check: Check) -> None:
        """Pull an image. Raises an error that the stream reports midway, which docker-py's own `pull` ignores."""
        repository, tag = _split_ref(ref)
        params = {"fromImage": repository, "tag": tag} | ({"platform": platform} if platform else {})
        self._stream("POST", "/images/create", check, params=params, headers=self._credentials(ref, login))

    def push(self, ref: str, *, login: Login | None, check: Check) -> None:
        repository, tag = _split_ref(ref)
        # The engine requires the header, even for a registry without authentication.
        headers = {"X-Registry-Auth": "e30="} | self._credentials(ref, login)
        self._stream("POST", f"/images/{repository}/push", check, params={"tag": tag}, headers=headers)

    def build(self, context: BinaryIO, params: Mapping[str, Any], on_text: Callable[[str], None], check: Check) -> str:
        """Build an image from a tar archive, and return its id."""
        built = ""

        def follow(entry: dict[str, Any]) -> None:
            nonlocal built
            if text := entry.get("stream"):
                on_text(text)
            built = (entry.get("aux") or {}).get("ID") or built

        headers = {"Content-Type": "application/x-tar"}
        self._stream("POST", "/build", check, follow, params=params, headers=headers, data=context)
        return built

    def remote_digest(self, ref: str, *, login: Login | None) -> str:
        """The current digest of a name at its registry, without a pull."""
        path = f"/distribution/{ref}/json"
        found = self._call("GET", path, headers=self._credentials(ref, login)).json()
        return str(found["Descriptor"]["digest"])

    def _credentials(self, ref: str, login: Login | None) -> dict[str, str]:
        """The headers with the given login, else with the worker's Docker configuration for the registry."""
        docker = sdk()
        registry, _ = docker.auth.resolve_repository_name(_split_ref(ref)[0])
        if login is not None:
            known = {"username": login.username, "password": login.password, "serveraddress": registry}
            return {"X-Registry-Auth": docker.auth.encode_header(known).decode()}
        try:
            found = docker.auth.load_config().resolve_authconfig(registry)
        except docker.errors.DockerException as error:
            raise OperationError(
                f"the credentials for {registry} are unreadable: {error}", remedy=f"run: docker login {registry}"
            ) from error
        return {"X-Registry-Auth": docker.auth.encode_header(found).decode()} if found else {}

    def image_id(self, ref: str) -> str | None:
        found = self._get(f"/images/{quoted(ref)}/json")
        return None if found is None else str(found["Id"])

    def tag(self, image_id: str, ref: str) -> None:
        repository, tag = _split_ref(ref)
        self._call("POST", f"/images/{quoted(image_id)}/tag", params={"repo": repository, "tag": tag})

    def untag(self, ref: str) -> bool:
        """Remove a name of an image. False if it is missing, or the last name of an image that a container uses."""
        try:
            self._call("DELETE", f"/images/{quoted(ref)}", params={"noprune": 1})
        except (NotThere, Conflict):
            return False
        return True


def _split_ref(ref: str) -> tuple[str, str]:
    """Split a name into repository and tag or digest; a colon before the last slash belongs to the registry's port."""
    repository, at, digest = ref.partition("@")
    if at:
        return repository, digest
    head, colon, tag = ref.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (ref, "latest")
