"""Requests to S3 and stores that speak its language, signed with what the environment holds (AWS Signature Version 4)."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from voxtile.errors import DataError

_NOTHING = hashlib.sha256(b"").hexdigest()  # a GET has no body


def s3_request(url: str, headers: Mapping[str, str], now: datetime | None = None) -> tuple[str, dict[str, str]]:
    """The https address of `s3://bucket/key`, and the headers of a GET with its signature.

    Credentials come from the environment only: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; AWS_NO_SIGN_REQUEST=YES
    asks without any. AWS_REGION or AWS_DEFAULT_REGION is the bucket's, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL another store than
    Amazon's, and with AWS_REQUEST_PAYER=requester the user pays for the transfer.

    Args:
        url: `s3://bucket/key`.
        headers: further headers, which are signed too.
        now: time of the request.

    Raises:
        DataError: There are no credentials.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    address = _address(url, region)
    signed = {name.lower(): value for name, value in headers.items()}
    if payer := os.environ.get("AWS_REQUEST_PAYER"):
        signed["x-amz-request-payer"] = payer
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
        return address, signed
    user, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not user or not secret:
        raise DataError(
            f"{url} needs credentials, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not both set in the environment. Set "
            "them, or AWS_NO_SIGN_REQUEST=YES if everybody may read the bucket."
        )
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        signed["x-amz-security-token"] = token
    time = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    parts = urlsplit(address)
    signed |= {"host": parts.netloc, "x-amz-content-sha256": _NOTHING, "x-amz-date": time}
    names = sorted(signed)
    # Steps and names as in "Authenticating Requests: Using the Authorization Header" of Amazon S3's API reference.
    canonical = "\n".join(
        ["GET", parts.path, "", *(f"{name}:{signed[name].strip()}" for name in names), "", ";".join(names), _NOTHING]
    )
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    signed["authorization"] = f"AWS4-HMAC-SHA256 Credential={user}/{scope},SignedHeaders={';'.join(names)},Signature={signature}"
    return address, signed


def _address(url: str, region: str) -> str:
    bucket, _, key = url.partition("://")[2].partition("/")
    path = quote(key, safe="/-_.~")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket}/{path}"
    if "." in bucket:  # which a certificate for *.s3.… does not cover
        return f"https://s3.{region}.amazonaws.com/{bucket}/{path}"
    return f"https://{bucket}.s3.{region}.amazonaws.com/{path}"
