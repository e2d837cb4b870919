"""An S3 server (moto) for tests, with buckets: prints its port, and serves until standard input ends.

    python s3_server.py BUCKET…

A line on standard input makes it kill a client, once:

    kill PID before|after METHOD PATTERN

At the first request of that method whose path matches the regular expression, the process gets SIGKILL, before or after
the request is done, in both cases before it is answered. Then `killed` is printed.

    slow SECONDS METHOD PATTERN

From now on every such request takes the given number of seconds longer.

    fail TIMES STATUS METHOD PATTERN

The next TIMES matching requests get this status. The body is like that of S3, and holds made-up secrets and the path.

    flip TIMES METHOD PATTERN

In the answers to the next TIMES matching requests, one bit is flipped.

    calm

From now on no request is delayed or gets a fault.

    policy KEY PATH

From now on requests with this access key are refused unless the IAM policy in the file allows them. Then `policy` is
printed. moto's evaluation decides about actions and resources. What it lacks is done here, as Amazon documents it: the
condition on `s3:prefix`, the deletion of many objects, each of which may be refused, and the answer 403 instead of 404 to
who may not list.

    age BUCKET KEY

This object is two days older. Then `age` is printed.
"""

import datetime
import fnmatch
import io
import json
import os
import re
import signal
import sys
import threading
import time

import xml.etree.ElementTree as xml
from urllib.parse import parse_qs

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

armed = None
delays = []
faults = []
policies = {}
lock = threading.Lock()
# moto checks a condition (If-None-Match, If-Match) and writes in two steps; a store does both at once.
one_at_a_time = threading.Lock()

REPLY = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>{code}</Code><Message>The token CANARY-MESSAGE is expired</Message><Token-0>CANARY-TOKEN</Token-0>
<AWSAccessKeyId>CANARY-KEY-ID</AWSAccessKeyId><StringToSign>CANARY-TO-SIGN {path}</StringToSign></Error>"""
CODES = {"403": "ExpiredToken", "503": "SlowDown"}


def fault(environ):
    """The kind of what goes wrong with this request, and its status."""
    with lock:
        for rule in faults:
            kind, left, status, method, pattern = rule
            if left > 0 and environ["REQUEST_METHOD"] == method and re.search(pattern, environ["PATH_INFO"]):
                rule[1] -= 1
                return kind, status
    return None, None


def flipped(answer):
    """The body with the middle bit of its middle byte flipped."""
    body = bytearray(b"".join(answer))
    if body:
        body[len(body) // 2] ^= 0x10
    return [bytes(body)]


def fires(environ, moment):
    """The process to kill at this request, if there is one; it is killed once."""
    global armed
    with lock:
        if armed is None:
            return None
        pid, when, method, pattern = armed
        request = environ["REQUEST_METHOD"] == method and re.search(pattern, environ["PATH_INFO"])
        if when != moment or not request:
            return None
        armed = None
        return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    print("killed", flush=True)


def allows(policy, action, resource, prefix=None):
    """Whether a policy allows an action. `prefix` is that of a listing."""
    statements = []
    for statement in policy["Statement"]:
        condition = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        if condition is None or (prefix is not None and fnmatch.fnmatchcase(prefix, condition)):
            statements.append({key: value for key, value in statement.items() if key != "Condition"})
    policy = IAMPolicy(json.dumps({"Statement": statements}))
    return policy.is_action_permitted(f"s3:{action}", f"arn:aws:s3:::{resource}") == PermissionResult.PERMITTED


def error(code, key=""):
    return f"<Error><Key>{key}</Key><Code>{code}</Code><Message>Access Denied</Message></Error>"


def delete_many(policy, environ, start_response, bucket):
    """Deletes what the policy allows of a list of objects; the others are named in the answer, which is no error."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    keys = [found.text for found in xml.fromstring(body).iter() if found.tag.endswith("Key")]
    refused = [key for key in keys if not allows(policy, "DeleteObject", f"{bucket}/{key}")]
    if not refused:
        environ["wsgi.input"] = io.BytesIO(body)
        return list(served(environ, start_response))
    for key in set(keys) - set(refused):
        client.delete_object(Bucket=bucket, Key=key)
    start_response("200 OK", [("Content-Type", "application/xml")])
    errors = "".join(error("AccessDenied", key) for key in refused)
    return [f'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{errors}</DeleteResult>'.encode()]


def permitted(environ, start_response):
    """Serves a request as far as the policy of its access key allows."""
    key = re.search("Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    policy = policies.get(key and key[1])
    if policy is None:
        return list(served(environ, start_response))
    method, resource = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")
    bucket, _, name = resource.partition("/")
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    if method == "POST" and "delete" in query:
        return delete_many(policy, environ, start_response, bucket)
    actions = {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}
    if name:
        allowed = allows(policy, actions.get(method, "PutObject"), resource)
    else:
        allowed = method == "GET" and allows(policy, "ListBucket", bucket, query.get("prefix", [None])[0])

    def refuse():
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [error("AccessDenied").encode()]

    if not allowed:
        return refuse()
    if method not in ("GET", "HEAD") or not name or allows(policy, "ListBucket", bucket):
        return list(served(environ, start_response))
    held = []
    body = list(served(environ, lambda *given: held.append(given)))
    if held[0][0].startswith("404"):
        return refuse()
    start_response(*held[0])
    return body


def application(environ, start_response):
    for seconds, method, pattern in delays:
        if environ["REQUEST_METHOD"] == method and re.search(pattern, environ["PATH_INFO"]):
            time.sleep(seconds)
    pid = fires(environ, "before")
    if pid is not None:
        kill(pid)
        start_response("503 Service Unavailable", [])
        return [b""]
    kind, status = fault(environ)
    if kind == "fail":
        start_response(f"{status} Fault", [("Content-Type", "application/xml")])
        return [REPLY.format(code=CODES.get(status, "Fault"), path=environ["PATH_INFO"]).encode()]
    # The body arrives as fast as the client sends it, which is no reason for others to wait.
    if length := environ.get("CONTENT_LENGTH"):
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
    with one_at_a_time:
        answer = list(permitted(environ, start_response))
    if kind == "flip":
        answer = flipped(answer)
    pid = fires(environ, "after")
    if pid is not None:
        kill(pid)
    return answer


served = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{server.server_port}",
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
for bucket in sys.argv[1:]:
    client.create_bucket(Bucket=bucket)
print(server.server_port, flush=True)
for line in sys.stdin:
    match line.split():
        case ["kill", pid, moment, method, pattern]:
            with lock:
                armed = int(pid), moment, method, pattern
        case ["slow", seconds, method, pattern]:
            delays.append((float(seconds), method, pattern))
        case ["calm"]:
            with lock:
                delays.clear()
                faults.clear()
        case ["fail", times, status, method, pattern]:
            with lock:
                faults.append(["fail", int(times), status, method, pattern])
        case ["flip", times, method, pattern]:
            with lock:
                faults.append(["flip", int(times), None, method, pattern])
        case ["policy", key, path]:
            with open(path, encoding="utf-8") as opened:
                policies[key] = json.load(opened)
            print("policy", flush=True)
        case ["age", bucket, key]:
            found = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys[key]
            found.last_modified -= datetime.timedelta(days=2)
            print("age", flush=True)
        case other:
            sys.exit(f"{other}: not understood")
server.shutdown()
