"""An S3 server (moto) for tests, with one bucket: prints its port, and serves until standard input ends.

    python s3_server.py BUCKET

A line on standard input makes it kill a client, once:

    kill PID before|after METHOD PATTERN

At the first request of that method whose path matches the regular expression, the process gets SIGKILL, before or after
the request is done, in both cases before it is answered. Then `killed` is printed.

    slow SECONDS METHOD PATTERN

From now on every such request takes the given number of seconds longer.
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
lock = threading.Lock()
# moto checks a condition (If-None-Match, If-Match) and writes in two steps; a store does both at once.
one_at_a_time = threading.Lock()


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
    # The body arrives as fast as the client sends it, which is no reason for others to wait.
    if length := environ.get("CONTENT_LENGTH"):
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
    with one_at_a_time:
        answer = list(served(environ, start_response))
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
        case other:
            sys.exit(f"{other}: not understood")
server.shutdown()
