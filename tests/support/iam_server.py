"""moto, with IAM enforced as IAM does it: run as a program, it prints its port and serves.

moto checks signatures, and that a policy allows an action on a resource; not conditions, nor
variables, nor whether what is not there may be known not to be there, nor which parameters a
request to Parameter Store is about, nor that it uses a key. These are put in here. Until
`POST /moto-api/reset-auth` with `0`, nothing is enforced; `server()` starts it, and does that when
its users are made.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import xmltodict
from moto.core.exceptions import JsonRESTError
from moto.iam import access_control
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.s3.models import s3_backends
from moto.ssm.models import ssm_backends

PREFIXED = ("s3:ListBucket", "s3:ListBucketVersions")


def allowed(
    statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]
) -> bool:
    """By the rules of IAM: an Allow that applies, and no Deny."""
    effects = {s["Effect"] for s in statements if _applies(s, action, resource, context)}
    return effects == {"Allow"}


def _applies(
    statement: dict[str, Any], action: str, resource: str, context: dict[str, str]
) -> bool:
    unknown = statement.keys() - {"Sid", "Effect", "Action", "Resource", "Condition"}
    assert not unknown, unknown
    if not any(_matches(each, action, {}) for each in _listed(statement["Action"])):
        return False
    if not any(_matches(each, resource, context) for each in _listed(statement["Resource"])):
        return False
    for operator, tests in statement.get("Condition", {}).items():
        assert operator == "StringLike", operator
        for key, patterns in tests.items():
            value = context.get(key)
            if value is None or not any(_matches(p, value, context) for p in _listed(patterns)):
                return False
    return True


def _matches(pattern: str, value: str, context: dict[str, str]) -> bool:
    regex = ""
    for part in re.findall(r"\$\{[^}]*\}|.", pattern, re.DOTALL):
        if part.startswith("${"):
            if part[2:-1] not in context:
                return False
            regex += re.escape(context[part[2:-1]])
        else:
            regex += {"*": ".*", "?": "."}.get(part, re.escape(part))
    return re.fullmatch(regex, value, re.DOTALL) is not None


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _check(self: Any, resource: str) -> None:
    if self._action == "sts:GetCallerIdentity":
        return
    statements: list[dict[str, Any]] = []
    for policy in self._access_key.collect_policies():
        found = access_control.IAMPolicy(policy)._policy_json["Statement"]
        statements += [found] if isinstance(found, dict) else found
    user = self.backend.get_user(self._access_key.arn.rpartition("/")[2])
    for action, on, more in _asked(self, resource):
        if not allowed(statements, action, on, {"aws:userid": user.id, **more}):
            if action.startswith("s3:"):
                self._raise_access_denied()
            raise JsonRESTError(
                "AccessDeniedException", f"User {user.name} is not authorized to perform: {action}"
            )


def _asked(self: Any, resource: str) -> list[tuple[str, str, dict[str, str]]]:
    """What has to be allowed: (action, resource, more of the context)."""
    action, query = self._action, parse_qs(urlsplit(self._path).query)
    if action.startswith("ssm:"):
        return _asked_of_parameters(self, action, json.loads(self._body))
    bucket, _, key = resource.rpartition(":::")[2].partition("/")
    whole = f"arn:aws:s3:::{bucket}"
    if action == "s3:HeadBucket":
        return [("s3:ListBucket", whole, {})]
    if action in PREFIXED:
        return [(action, whole, {"s3:prefix": query["prefix"][0]} if "prefix" in query else {})]
    if action == "s3:DeleteObject" and not key:
        objects = xmltodict.parse(self._body)["Delete"]["Object"]
        return [
            (f"{action}{'Version' if 'VersionId' in each else ''}", f"{whole}/{each['Key']}", {})
            for each in (objects if isinstance(objects, list) else [objects])
        ]
    asked: list[tuple[str, str, dict[str, str]]] = [(action, resource, {})]
    if action == "s3:GetObject" and not _is_there(self.account_id, bucket, key):
        # Who may not list does not learn that there is nothing: S3 asks with the key for a prefix.
        asked.append(("s3:ListBucket", whole, {"s3:prefix": key}))
    return asked


def _asked_of_parameters(
    self: Any, action: str, request: dict[str, Any]
) -> list[tuple[str, str, dict[str, str]]]:
    """The parameters or the path that a request names, and the keys it uses for them."""
    region = f"{self._region}:{self.account_id}"
    names = request.get("Names") or [request.get("Path") or request["Name"]]
    asked: list[tuple[str, str, dict[str, str]]] = [
        (action, f"arn:aws:ssm:{region}:parameter{name}", {}) for name in names
    ]
    uses = []
    if action == "ssm:PutParameter":
        uses = [("kms:Encrypt", request["Name"], request.get("KeyId"))]
    elif request.get("WithDecryption"):
        known = ssm_backends[self.account_id][self._region]._parameters
        below = [name for name in known if name.startswith(f"{names[0]}/")]
        uses = [("kms:Decrypt", name, known[name][-1].keyid) for name in below]
    return asked + [
        (use, key, {"kms:EncryptionContext:PARAMETER_ARN": f"arn:aws:ssm:{region}:parameter{name}"})
        for use, name, key in uses
        if key and key.startswith("arn:")  # the account's own key is for all who are in it
    ]


def _is_there(account_id: str, bucket: str, key: str) -> bool:
    found = s3_backends[account_id]["aws"].buckets.get(bucket)
    return found is not None and found.keys.get(key) is not None


@contextmanager
def server(set_up: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
    """The endpoint of one that enforces, and what `set_up` made there before it did."""
    with subprocess.Popen(
        [sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())
            endpoint_url = f"http://127.0.0.1:{port}"
            made = set_up(endpoint_url)
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/moto-api/reset-auth", "0")
            assert connection.getresponse().status == 200
            connection.close()
            yield endpoint_url, made
        finally:
            process.kill()


if __name__ == "__main__":
    access_control.IAMRequestBase.check_action_permitted = _check
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(json.dumps(server.get_host_and_port()[1]), flush=True)
    threading.Event().wait()
