"""An S3 server (moto) for tests, with one bucket: prints its port, and serves until standard input ends.

    python s3_server.py BUCKET

A line on standard input makes it kill a client, once:

    kill PID before|after METHOD PATTERN

At the first request of that method whose path matches the regular expression, the process gets SIGKILL, before or after
the request is done, in both cases before it is answered. Then `killed` is printed.

    slow SECONDS METHOD PATTERN

From now on every such request takes the given number of seconds longer.

    fail TIMES STATUS METHOD PATTERN

So many such requests get this status, with a body as S3 sends it: it holds made-up secrets, and the path.

    flip TIMES METHOD PATTERN

In the answers to so many such requests one bit is flipped.

    calm

From now on no request is delayed or gets a fault.
"""

import io
import os
import re
import signal
import sys
import threading
import time

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

armed = None
delays = []
faults = []
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
        answer = list(served(environ, start_response))
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
client.create_bucket(Bucket=sys.argv[1])
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
        case other:
            sys.exit(f"{other}: not understood")
server.shutdown()
