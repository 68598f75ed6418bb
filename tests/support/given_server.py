"""The tests on an S3 server that runs already, in the place of those that `servers.py` starts:

    pytest --s3-url http://127.0.0.1:9000 --s3-keys KEY,SECRET tests/contract tests/s3

Only tests that ask a server are run, each once, in buckets of their own, which are removed. Those
that are not for this server are skipped, and pytest says why: marked `own_server(why)` is what
needs more of moto or rclone than S3 promises, and marked `preconditions_ignored`, what needs a
server that ignores all preconditions.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import servers
from servers import Server

from castore.s3.client.bucket import Bucket
from castore.s3.client.probe import IGNORED, ServerFeatures, probe

_ASKING = {"moto_server", "rclone_server", "s3_server"}
_made: list[Server] = []  # for the test that runs


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "run the tests that ask an S3 server on this one, http://host:port"
    parser.addoption("--s3-url", metavar="URL", help=said)
    said = "keys for --s3-url, which may make and remove buckets"
    parser.addoption("--s3-keys", metavar="KEY,SECRET", help=said)


def pytest_configure(config: pytest.Config) -> None:
    said = "own_server(why): needs the server that the tests start, and not that of --s3-url"
    config.addinivalue_line("markers", said)
    said = "preconditions_ignored: needs a server that ignores all preconditions"
    config.addinivalue_line("markers", said)
    url, keys = config.getoption("--s3-url"), config.getoption("--s3-keys")
    if url is None:
        return
    if not url.startswith("http://"):
        raise pytest.UsageError("--s3-url is http://host:port: what fails requests speaks no TLS")
    if not keys or keys.count(",") != 1:
        raise pytest.UsageError("--s3-url needs --s3-keys KEY,SECRET")
    servers.ACCESS_KEY, servers.SECRET_KEY = keys.split(",")
    config.option.reportchars = (config.option.reportchars or "") + "s"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--s3-url") is None:
        return
    asking = [item for item in items if _asks(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _asks(item)])
    items[:] = asking
    for item in asking:
        why = item.get_closest_marker("own_server")
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs the tests' own server: {why.args[0]}"))


def _asks(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if parameters.get("s3_server") == "rclone":
        return False  # the same test is there for moto
    asks_one = "s3" in (parameters.get("place"), parameters.get("any_store"))
    return asks_one or not _ASKING.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def _features(request: pytest.FixtureRequest) -> ServerFeatures:
    with Bucket(_with_bucket(request.config.getoption("--s3-url")).settings()) as bucket:
        return probe(bucket)


@pytest.fixture
def given_server(aws_environment: None, request: pytest.FixtureRequest) -> Server:
    """That of `--s3-url`."""
    features: ServerFeatures = request.getfixturevalue("_features")
    ignores_all = [*features.instead.values()] == [IGNORED] * 3
    if request.node.get_closest_marker("preconditions_ignored") and not ignores_all:
        pytest.skip("needs a server that ignores all preconditions")
    honours = not features.instead
    return _with_bucket(request.config.getoption("--s3-url"), preconditions=honours)


def _with_bucket(endpoint_url: str, *, preconditions: bool = False) -> Server:
    made = servers.with_bucket(endpoint_url, preconditions=preconditions)
    _made.append(made)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Once all fixtures are gone, and with them whoever looks at what the test left."""
    try:
        return (yield)
    finally:
        while _made:
            servers.remove_bucket(_made.pop())
