from datetime import UTC, datetime

import pytest

from voxtile.cases.s3 import s3_request
from voxtile.errors import DataError

WHEN = datetime(2013, 5, 24, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Amazon's example user."""
    for name in (
        "SESSION_TOKEN", "NO_SIGN_REQUEST", "REGION", "DEFAULT_REGION", "ENDPOINT_URL", "ENDPOINT_URL_S3", "REQUEST_PAYER",
    ):  # fmt: skip
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")


def test_the_signature_is_that_of_amazons_own_example(monkeypatch):
    """ "GET Object" in "Signature Calculations for the Authorization Header" of the API reference; its host names no region."""
    monkeypatch.setattr("voxtile.cases.s3._address", lambda url, region: "https://examplebucket.s3.amazonaws.com/test.txt")
    _, headers = s3_request("s3://examplebucket/test.txt", {"Range": "bytes=0-9"}, WHEN)
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_temporary_credentials_and_who_pays_are_signed_too(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    _, headers = s3_request("s3://b/k.tif", {}, WHEN)
    assert headers["x-amz-security-token"] == "token"
    assert headers["x-amz-request-payer"] == "requester"
    names = "host;x-amz-content-sha256;x-amz-date;x-amz-request-payer;x-amz-security-token"
    assert f"SignedHeaders={names}," in headers["authorization"]


@pytest.mark.parametrize(
    ("url", "variables", "address"),
    [
        ("s3://b/x/k é+.tif", {}, "https://b.s3.us-east-1.amazonaws.com/x/k%20%C3%A9%2B.tif"),
        ("s3://b/k.tif", {"AWS_REGION": "eu-west-1"}, "https://b.s3.eu-west-1.amazonaws.com/k.tif"),
        ("s3://b/k.tif", {"AWS_DEFAULT_REGION": "eu-west-1"}, "https://b.s3.eu-west-1.amazonaws.com/k.tif"),
        ("s3://b.c/k.tif", {}, "https://s3.us-east-1.amazonaws.com/b.c/k.tif"),
        ("s3://b/k.tif", {"AWS_ENDPOINT_URL_S3": "http://store:9000/"}, "http://store:9000/b/k.tif"),
    ],
)
def test_where_a_bucket_is_asked_for(monkeypatch, url, variables, address):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert s3_request(url, {})[0] == address


def test_without_credentials_it_says_how_to_give_them(monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"s3://b/k\.tif needs credentials.*AWS_SECRET_ACCESS_KEY.*AWS_NO_SIGN_REQUEST=YES"):
        s3_request("s3://b/k.tif", {})
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert s3_request("s3://b/k.tif", {"Range": "bytes=0-1"})[1] == {"range": "bytes=0-1"}
