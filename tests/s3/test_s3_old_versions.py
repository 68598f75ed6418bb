"""What a versioned bucket keeps of older versions is removed, whatever the names are."""

from __future__ import annotations

from typing import Any

import pytest

from castore.s3.client import versions
from castore.s3.client.faults import Refused
from castore.s3.client.settings import S3Settings


def test_a_name_that_xml_can_not_hold_keeps_no_other_from_going(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As S3 has it, which refuses a request for many of which one can't be named in it."""
    kept = {(f"p/names/{name}", id) for name in ("a", "b\x01", "c\r", "d") for id in "12"}
    latest = {(key, "3") for key, _ in kept}

    class Server:
        def call(self, operation: str, **given: Any) -> dict[str, Any]:
            if operation == "list_object_versions":
                return {
                    "Versions": [
                        {"Key": key, "VersionId": id, "IsLatest": (key, id) in latest}
                        for key, id in sorted(kept | latest)
                        if key.startswith(given["Prefix"])
                    ]
                }
            if operation == "delete_object":
                kept.remove((given["Key"], given["VersionId"]))
                return {}
            doomed = [(each["Key"], each["VersionId"]) for each in given["Delete"]["Objects"]]
            if any(character < " " for key, _ in doomed for character in key):
                raise Refused(400, "MalformedXML", "", {})
            kept.difference_update(doomed)
            return {"Deleted": given["Delete"]["Objects"]}

    monkeypatch.setattr(versions, "is_versioned", lambda _: True)
    monkeypatch.setattr(versions, "_connection", lambda *_: Server())
    assert versions.remove_old_versions(S3Settings("bucket", "p"), "names/c\r") == 2
    assert versions.remove_old_versions(S3Settings("bucket", "p"), "names/", below=True) == 6
    assert kept == set()
