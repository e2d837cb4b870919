"""What tables need of a store, checked before the soak through the proxy without faults: conditional writes, one winner of
many, ranges and entity tags.

    python contract.py PORT_OF_PROXY PORT_OF_STORE
"""

import concurrent.futures
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from fleet import BUCKET

KEY = {"Bucket": BUCKET, "Key": "contract"}


def client(port):
    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test", config=Config(retries={"total_max_attempts": 1}, max_pool_connections=32),
    )  # fmt: skip


def refused(put, **condition):
    try:
        put(**KEY, Body=b"no", **condition)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    return False


def check(proxy, store):
    """Raises where the store or the proxy breaks the contract."""
    s3, direct = client(proxy), client(store)

    def must(held, what):
        if not held:
            raise SystemExit(f"the store behind the proxy breaks its contract: {what}")

    first = s3.put_object(**KEY, Body=b"0123456789", IfNoneMatch="*")["ETag"]
    must(refused(s3.put_object, IfNoneMatch="*"), "If-None-Match: * wrote over an object")
    second = s3.put_object(**KEY, Body=b"abcdefghij", IfMatch=first)["ETag"]
    must(refused(s3.put_object, IfMatch=first), "If-Match wrote over another version")
    got = s3.get_object(**KEY, Range="bytes=2-4")
    must(got["Body"].read() == b"cde" and got["ContentRange"] == "bytes 2-4/10", "a range is not what was asked for")
    head, whole = s3.head_object(**KEY), direct.get_object(**KEY)
    must(head["ETag"] == second == whole["ETag"] and head["ContentLength"] == 10, "head differs from the object")
    s3.delete_object(**KEY)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        lost = list(pool.map(lambda _: refused(s3.put_object, IfNoneMatch="*"), range(64)))
    must(lost.count(False) == 1, f"{lost.count(False)} of 64 writers at once won")
    s3.delete_object(**KEY)


if __name__ == "__main__":
    check(*map(int, sys.argv[1:]))
