"""What one failed request means, told from what the server said alone: a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from castore.errors import (
    AccessDenied,
    BucketNotFound,
    CredentialsError,
    EndpointUnreachable,
    RemoteError,
    StoreFull,
    WrongRegion,
)
from castore.s3.client.faults import (
    Broken,
    Fault,
    KeyAbsent,
    Late,
    PreconditionFailed,
    Refused,
    Request,
    fault_of,
)

PUT = Request("s3:PutObject", "k", "s3://b/p/k", "b", "https://s3.test", "us-east-1")
GET = replace(PUT, action="s3:GetObject")
DELETE = replace(PUT, action="s3:DeleteObject")
LIST = replace(PUT, action="s3:ListBucket")
MANY = replace(DELETE, key="")
CONDITIONAL = replace(PUT, conditional=True)


def refused(
    status: int, code: str = "", message: str = "", request: Request = PUT, **headers: str
) -> Exception:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return fault_of(Refused(status, code, message, named), request)


def fault(status: int, code: str = "", message: str = "", **headers: str) -> Fault:
    found = refused(status, code, message, **headers)
    assert isinstance(found, Fault)
    return found


def kind(found: Exception) -> tuple[bool, bool, bool]:
    """Whether it is repeated, may have been applied, and was throttled."""
    assert isinstance(found, Fault)
    return found.repeat, found.unknown, found.throttled


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (400, "Throttling"),
        (400, "ThrottlingException"),
        (503, "RequestLimitExceeded"),
        (503, "TooManyRequests"),
        (429, ""),
    ],
)
def test_what_is_throttled_was_not_begun(status: int, code: str) -> None:
    for request in (PUT, CONDITIONAL, GET):
        found = refused(status, code, request=request)
        assert kind(found) == (True, False, True)
        assert isinstance(found, Fault)
        assert isinstance(found.error, RemoteError)
        assert (found.error.status, found.error.s3_code) == (status, code)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "BadDigest"),
        (400, "IncompleteBody"),
        (409, "OperationAborted"),
        (400, "OperationAborted"),
        (400, "RequestTimeout"),
        (307, "TemporaryRedirect"),
        (400, "TemporaryRedirect"),
        (400, "XAmzContentSHA256Mismatch"),
        (503, "RequestTimeout"),
        (307, ""),
        (409, ""),
    ],
)
def test_what_was_not_applied_is_repeated(status: int, code: str) -> None:
    assert kind(refused(status, code)) == (True, False, False)


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, "InternalError"), (299, ""), (408, ""), (500, ""), (502, ""), (503, ""), (504, "")],
)
def test_what_may_have_been_applied(status: int, code: str) -> None:
    assert kind(refused(status, code)) == (True, True, False)


@pytest.mark.parametrize("status", [300, 302, 304, 400, 404, 405, 411, 412, 416, 499, 501, 505])
def test_what_is_final(status: int) -> None:
    found = fault(status, "X", "words", location="https://user:password@elsewhere/")
    assert kind(found) == (False, False, False)
    assert type(found.error) is RemoteError
    assert (found.error.status, found.error.s3_code) == (status, "X")
    said = str(found.error)
    assert said.startswith("s3:PutObject of s3://b/p/k at https://s3.test was answered with")
    assert said.endswith(": words")
    assert ("elsewhere" in said) == (status < 400)
    assert "password" not in said


def test_only_what_is_said_of_the_key_is_about_the_key() -> None:
    for request in (GET, DELETE, CONDITIONAL):
        found = refused(404, "NoSuchKey", request=request)
        assert isinstance(found, KeyAbsent)
        assert found.key == "k"
        for status, code in ((404, ""), (404, "X"), (400, "NoSuchKey")):
            assert isinstance(refused(status, code, request=request), Fault)
    for request in (PUT, LIST, MANY, replace(MANY, conditional=True)):
        assert kind(refused(404, "NoSuchKey", request=request)) == (False, False, False)


def test_a_precondition_fails_where_there_was_one() -> None:
    for status in (409, 412):
        found = refused(status, "X", request=CONDITIONAL)
        assert isinstance(found, PreconditionFailed)
        assert (found.key, found.conflict, found.any_unknown) == ("k", status == 409, False)
    assert isinstance(refused(404, "NoSuchBucket", request=CONDITIONAL), Fault)


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (404, "NoSuchBucket", BucketNotFound, "create it"),
        (403, "AuthorizationHeaderMalformed", CredentialsError, "malformed"),
        (400, "ExpiredToken", CredentialsError, "they have expired"),
        (403, "ExpiredTokenException", CredentialsError, "they have expired"),
        (403, "InvalidAccessKeyId", CredentialsError, "does not know the access key"),
        (400, "InvalidToken", CredentialsError, "session token is not valid"),
        (403, "SignatureDoesNotMatch", CredentialsError, "is not the access key's"),
        (400, "TokenRefreshRequired", CredentialsError, "they have expired"),
        (401, "", CredentialsError, r"they are not accepted \(401\)"),
        (403, "RequestTimeTooSkewed", RemoteError, "set it right"),
        (403, "InvalidObjectState", RemoteError, "InvalidObjectState"),
        (403, "", AccessDenied, "s3:PutObject"),
        (507, "", StoreFull, "free some"),
        (403, "QuotaExceeded", StoreFull, "free some"),
        (400, "InsufficientStorage", StoreFull, "free some"),
        (507, "XMinioStorageFull", StoreFull, "free some"),
        (400, "XMinioStorageFull", StoreFull, "free some"),
    ],
)
def test_what_the_user_reads(status: int, code: str, error: type[Exception], words: str) -> None:
    found = fault(status, code)
    assert kind(found) == (False, False, False)
    with pytest.raises(error, match=words) as caught:
        raise found.error
    assert type(caught.value) is error


def test_an_answer_without_words_is_told_without() -> None:
    asked = "s3:PutObject of s3://b/p/k at https://s3.test"
    assert str(fault(404).error) == f"{asked} was answered with 404"
    assert str(fault(404, "NoSuchUpload").error) == f"{asked} was answered with 404 NoSuchUpload"


def test_what_the_server_says_of_a_denial_is_told() -> None:
    error = fault(403, "AccessDenied", "no policy allows it").error
    assert isinstance(error, AccessDenied)
    assert (error.action, error.url) == ("s3:PutObject", "s3://b/p/k")
    assert "(no policy allows it)" in str(error)


def test_a_clock_that_is_wrong_is_told_in_any_words() -> None:
    said = "Request timestamp: the difference between the Request Time and now is too large"
    error = fault(403, "SignatureDoesNotMatch", said).error
    assert "set it right" in str(error)
    assert isinstance(error, RemoteError)
    assert (error.status, error.s3_code) == (403, "SignatureDoesNotMatch")


def test_a_password_that_is_cut_off_is_not_shown() -> None:
    """What is left of where it leads is short, and without the `@` that a password ends at."""
    found = fault(302, location=f"https://user:{'secret' * 100}@elsewhere/")
    assert "secret" not in str(found.error)
    assert "elsewhere" in str(found.error)


@pytest.mark.parametrize(
    ("status", "code", "message", "region"),
    [
        (301, "PermanentRedirect", "", ""),
        (301, "", "", "eu-west-3"),
        (400, "AuthorizationHeaderMalformed", "", "eu-west-3"),
        (400, "IllegalLocationConstraintException", "", "eu-west-3"),
    ],
)
def test_the_wrong_region(status: int, code: str, message: str, region: str) -> None:
    error = fault(status, code, message, x_amz_bucket_region=region).error
    assert isinstance(error, WrongRegion)
    assert (error.bucket, error.region, error.used) == ("b", region, "us-east-1")


def test_a_region_that_is_only_in_the_words() -> None:
    said = "the region 'us-east-1' is wrong; expecting 'eu-west-3'"
    error = fault(400, "AuthorizationHeaderMalformed", said).error
    assert isinstance(error, WrongRegion)
    assert error.region == "eu-west-3"
    # With each answer S3 says where the bucket is.
    assert isinstance(fault(403, "", x_amz_bucket_region="eu-west-3").error, AccessDenied)
    assert type(fault(301).error) is RemoteError


NOW = "Mon, 01 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("", 0),
        ("0", 0),
        ("7", 7),
        ("60", 60),
        ("61", 60),
        ("999999999", 60),
        ("9999999999", 0),
        ("7.5", 0),
        ("-7", 0),
        ("\u0667", 0),  # a digit, of Arabic
        (NOW, 0),
        ("Mon, 01 Jan 2024 00:00:20 GMT", 20),
        ("Mon, 01 Jan 2024 01:00:00 GMT", 60),
        ("Sun, 31 Dec 2023 23:59:00 GMT", 0),
        ("Mon, 01 Jan 99999 00:00:00 GMT", 0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0),
        ("soon", 0),
    ],
)
def test_how_long_it_asks_to_wait(value: str, wait_s: float) -> None:
    for status, code in ((503, "SlowDown"), (503, ""), (307, "")):
        assert fault(status, code, retry_after=value, date=NOW).wait_s == wait_s
    assert fault(503, retry_after="Mon, 01 Jan 2024 00:00:20 GMT").wait_s == 0, "from when?"


def test_what_got_no_answer() -> None:
    cases: list[tuple[Broken, tuple[bool, bool, bool], type[Exception], str]] = [
        (Broken("cut"), (True, True, False), RemoteError, "s3://b/p/k .* broke off: cut"),
        (Broken("no", sent=False), (True, False, False), EndpointUnreachable, "no"),
        (
            Broken("untrusted", sent=False, hopeless=True),
            (False, False, False),
            EndpointUnreachable,
            "https://s3.test.*untrusted",
        ),
        (Late(), (False, False, False), RemoteError, "was too late: .* repeat it"),
    ]
    for broken, expected, error, words in cases:
        found = fault_of(broken, PUT)
        assert isinstance(found, Fault)
        assert kind(found) == expected
        with pytest.raises(error, match=words):
            raise found.error


def test_words_of_a_server_are_bounded() -> None:
    assert Refused(400, "", f" a\n b {'x' * 1000}", {}).message == f"a b {'x' * 296}"
    assert Broken(f" a\n b {'x' * 1000}").reason == f"a b {'x' * 296}"
    found = fault(302, location=f"https://elsewhere/{'y' * 1000}").error
    assert len(str(found)) < 400
