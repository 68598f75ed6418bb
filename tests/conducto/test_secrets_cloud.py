"""Parameter Store that denies, throttles, fails or is down: a clear error, nothing lost, and no
value in an error or a log."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest

import conducto as co
from castore.errors import AccessDenied, CredentialsError, EndpointUnreachable, RemoteError
from conducto import secrets
from conducto.errors import ContextError, SecretsError, SecretsUnavailable
from conducto.secrets import ssm

pytest_plugins = ["servers"]

VALUE = "s3kr1t-of-nobody"
OLD = "s3kr1t-of-yesterday"


class ParameterServer(ThreadingHTTPServer):
    """Keeps parameters, and fails as the next of `failures` says, if there is one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.parameters: dict[str, str] = {}
        self.failures: list[tuple[int, str, str] | None] = []

    def answer(self, action: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            status, code, message = failure
            return status, {"__type": code, "message": message.replace("%", repr(request))}
        if action == "PutParameter":
            self.parameters[request["Name"]] = request["Value"]
            return 200, {"Version": 1}
        if action == "DeleteParameters":
            for name in request["Names"]:
                self.parameters.pop(name, None)
            return 200, {"DeletedParameters": request["Names"], "InvalidParameters": []}
        below = request["Path"] + "/"
        found = [
            {"Name": name, "Value": value}
            for name, value in self.parameters.items()
            if name.startswith(below)
        ]
        return 200, {"Parameters": found}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ParameterServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        action = self.headers["X-Amz-Target"].rpartition(".")[2]
        status, reply = self.server.answer(action, json.loads(body))
        if status == 0:  # the connection breaks
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        raw = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def running() -> Iterator[ParameterServer]:
    with ParameterServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(30)


@pytest.fixture
def server(
    aws_environment: None, running: ParameterServer, monkeypatch: pytest.MonkeyPatch
) -> ParameterServer:
    """An empty one, which this process is to use and asks everything once."""
    for name in [name for name in os.environ if name.startswith("CONDUCTO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONDUCTO_EXECUTION_ENV", "worker_cloud")
    monkeypatch.setenv("CONDUCTO_IDENTITY_ID", "me")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", f"http://127.0.0.1:{running.server_port}")
    # It takes longer to make a client than all that is asked of it.
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setattr(ssm, "ATTEMPTS_MAX", 1)
    running.parameters, running.failures = {}, []
    return running


def shown(error: BaseException) -> str:
    """All that a report could show of it, with the locals of all frames but the tests'."""
    found: Any = traceback.TracebackException.from_exception(error, capture_locals=True)
    said = ""
    while found is not None:
        frames = [frame for frame in found.stack if f"{os.sep}tests{os.sep}" not in frame.filename]
        said += "".join(found.format_exception_only()) + repr([f.locals for f in frames])
        found = found.__cause__ or found.__context__
    return said


# As AWS says them; `%` is the request, with the value in it.
FAILURES = [
    (
        (400, "AccessDeniedException", "not authorized: %"),
        AccessDenied,
        "ssm:PutParameter is denie",
    ),
    ((403, "Forbidden", "%"), AccessDenied, "is denied on /conducto/user/me/A"),
    ((400, "ThrottlingException", "Rate exceeded"), RemoteError, "was throttled, again and again"),
    ((400, "TooManyUpdates", "%"), RemoteError, "throttled"),
    ((400, "ExpiredTokenException", "expired"), CredentialsError, "does not accept the AWS creden"),
    ((400, "UnrecognizedClientException", "%"), CredentialsError, "renew them"),
    (
        (400, "ValidationException", "Value '%' failed"),
        RemoteError,
        "ssm:PutParameter on /conducto",
    ),
    ((400, "InvalidKeyId", "no such key"), ContextError, "CONDUCTO_SECRETS_KMS_KEY_ID is no key"),
    ((500, "InternalServerError", "%"), RemoteError, "500 InternalServerError"),
    ((503, "ServiceUnavailable", ""), RemoteError, "failed"),
    ((0, "", ""), EndpointUnreachable, "can't be reached"),
]


@pytest.mark.parametrize(
    ("failure", "kind", "words"), FAILURES, ids=[str(each[0][1] or "broken") for each in FAILURES]
)
def test_it_says_what_failed(
    server: ParameterServer,
    failure: tuple[int, str, str],
    kind: type[Exception],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    api = co.api.Secrets()
    api.put_user_secrets({"A": OLD})
    server.failures = [failure]
    with pytest.raises(kind) as caught:
        api.put_user_secrets({"A": VALUE})
    assert words in str(caught.value)
    assert VALUE not in shown(caught.value)
    assert VALUE not in caplog.text
    server.failures = []
    assert api.get_user_secrets() == {"A": OLD}
    server.failures = [failure]
    with pytest.raises(kind) as caught:
        secrets.environment()
    assert OLD not in shown(caught.value)
    assert OLD not in caplog.text


def test_what_passes_is_repeated(server: ParameterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssm, "ATTEMPTS_MAX", 2)
    ssm._client.cache_clear()
    throttled = (400, "ThrottlingException", "Rate exceeded")
    api = co.api.Secrets()
    server.failures = [throttled, None, (500, "InternalServerError", ""), None, (0, "", "")]
    api.put_user_secrets({"A": VALUE})
    assert api.get_user_secrets() == {"A": VALUE}
    api.delete_user_secrets(["A"])
    assert api.get_user_secrets() == {}
    ssm._client.cache_clear()


def test_some_of_several(server: ParameterServer) -> None:
    """It says which were put, and takes nothing away before all are."""
    api = co.api.Secrets()
    api.put_user_secrets({"OLD": "old"})
    server.failures = [None, None, (400, "AccessDeniedException", "no")]
    with pytest.raises(AccessDenied, match="on /conducto/user/me/C") as caught:
        api.put_user_secrets({"A": VALUE, "B": VALUE, "C": VALUE, "D": VALUE}, replace=True)
    assert caught.value.__notes__ == ["A, B (user) were put before"]
    assert api.get_user_secrets() == {"OLD": "old", "A": VALUE, "B": VALUE}


def test_a_name_that_is_given_twice_is_deleted_once(server: ParameterServer) -> None:
    """AWS refuses a request that names a parameter twice."""
    asked: list[list[str]] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        asked.append(json.loads(params["body"])["Names"])

    api = co.api.Secrets()
    api.put_user_secrets({"A": VALUE, "B": VALUE})
    client = ssm._client(os.getpid(), ssm._settings())
    client.meta.events.register("before-call.ssm.DeleteParameters", note)
    api.delete_user_secrets(["A", "B", "A"])
    client.meta.events.unregister("before-call.ssm.DeleteParameters", note)
    assert asked == [["/conducto/user/me/A", "/conducto/user/me/B"]]


def test_denied_is_told_before_a_value_is_asked_for(server: ParameterServer) -> None:
    secrets.backend().check()
    server.failures = [(400, "AccessDeniedException", "no")]
    with pytest.raises(AccessDenied, match="ssm:GetParametersByPath is denied"):
        secrets.backend().check()


def test_down(server: ParameterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(EndpointUnreachable, match=r"127\.0\.0\.1.* can't be reached") as caught:
            co.api.Secrets().put_user_secrets({"A": VALUE})
    assert VALUE not in shown(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_whatever_botocore_raises(server: ParameterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be anything that a handler of somebody's raises, with the request in it."""

    def fail(params: dict[str, Any], **_: Any) -> None:
        raise ValueError(f"can't handle {params}")

    client = ssm._client(os.getpid(), ssm._settings())
    client.meta.events.register("before-call.ssm.PutParameter", fail)
    with pytest.raises(SecretsError, match=r"ssm:PutParameter on .* failed: ValueError") as caught:
        co.api.Secrets().put_user_secrets({"A": VALUE})
    assert VALUE not in shown(caught.value)
    client.meta.events.unregister("before-call.ssm.PutParameter", fail)


def test_no_log_has_a_value_and_others_log_on(
    server: ParameterServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api = co.api.Secrets()
    api.put_user_secrets({"A": VALUE})
    assert api.get_user_secrets() == {"A": VALUE}
    api.delete_user_secrets(["A"])
    assert VALUE not in caplog.text
    assert "PutParameter" not in caplog.text
    # Their own requests are theirs to log.
    boto3.Session().client("ssm").put_parameter(Name="/x", Value="theirs", Type="String")
    assert "PutParameter" in caplog.text


def test_a_child_has_its_own_connections(server: ParameterServer) -> None:
    api = co.api.Secrets()
    api.put_user_secrets({"A": VALUE})
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if api.get_user_secrets() == {"A": VALUE} else 2
        finally:
            os._exit(code)
    assert api.get_user_secrets() == {"A": VALUE}
    assert os.waitpid(child, 0)[1] == 0


def test_where_there_is_no_parameter_store(
    server: ParameterServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.failures = [(400, "NoSuchBucket", "this is an S3 server")]
    with pytest.raises(RemoteError, match="set CONDUCTO_SECRETS_PATH=none"):
        secrets.environment()
    server.failures = [(500, "InternalError", "nobody asks")] * 9
    monkeypatch.setenv("CONDUCTO_SECRETS_PATH", "none")
    assert secrets.environment() == {}
    for change in (
        lambda: co.api.Secrets().put_user_secrets({"KEY": VALUE}),
        lambda: co.api.Secrets().delete(co.api.SecretKey("KEY", "user")),
    ):
        with pytest.raises(SecretsUnavailable, match="no Parameter Store here"):
            change()
    assert len(server.failures) == 9
