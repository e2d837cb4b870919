"""A proxy before an S3 server that injects faults: the front of the store, which may be killed and started again.

    python proxy.py --upstream PORT --port A=PORT --port B=PORT --log FILE --seed TEXT --percent P [--kinds JSON] --off FILE

Takes   HTTP/1.1 requests, one port for each client, so that the log says whose request it was.
Gives   the server's answers: status, headers and body unchanged but for the framing of the connection. On P percent of
        the requests a fault, drawn by weight; none while the file --off exists. Every request is a line of JSON in --log,
        written when it ended: t, client, method, path, status (0: no answer), seconds, fault, and the keys that it deletes.

| fault | the request is done | what the client sees |
|---|---|---|
| 503 | no | SlowDown |
| 500 | yes | InternalError |
| reset_before | no | the connection is reset |
| reset_after | yes | the connection is reset |
| slow | yes | the answer, 2 to 30 s later |
| hang | yes | nothing for 60 to 90 s, then the connection is reset |
| truncated | yes | half of the body, then the connection ends (GET with a body; else reset_after) |
| 403 | no | ExpiredToken |
| flip | yes | one bit of the body is another one (GET of a scan; else no fault); off unless --kinds asks for it |
"""

import argparse
import asyncio
import json
import os
import random
import re
import socket
import struct
import time

WEIGHTS = {
    "503": 3, "500": 2, "reset_before": 2, "reset_after": 2, "slow": 3, "hang": 0.5, "truncated": 3, "403": 0.5,
}  # fmt: skip
ERRORS = {"503": ("503 Slow Down", "SlowDown"), "500": ("500 Internal Server Error", "InternalError"),
          "403": ("403 Forbidden", "ExpiredToken")}  # fmt: skip
# They belong to one connection, not to the request or the answer.
HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class Broken(Exception):
    """The other side ended the connection within a message."""


async def read_head(reader):
    """The first line and the headers of a message; none at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise Broken from end
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    return first, [tuple(part.strip() for part in line.split(":", 1)) for line in lines]


def value(headers, name):
    return next((v for k, v in headers if k.lower() == name), None)


async def read_body(reader, headers, until_end):
    """The body of a message, by its headers; `until_end`: of unknown length, it ends with the connection."""
    try:
        if (value(headers, "transfer-encoding") or "").lower() == "chunked":
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
            return body
        if (length := value(headers, "content-length")) is not None:
            return await reader.readexactly(int(length))
        return await reader.read() if until_end else b""
    except asyncio.IncompleteReadError as end:
        raise Broken from end


class Proxy:
    def __init__(self, options):
        self.upstream = options.upstream
        self.log = open(options.log, "a", buffering=1)
        self.random = random.Random(options.seed)
        self.share = options.percent / 100
        self.weights = json.loads(options.kinds) if options.kinds else WEIGHTS
        self.off = options.off

    def fault(self):
        # Drawn also while faults are off, so that the sequence is the same.
        hit = self.random.random() < self.share
        kind = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        return kind if hit and not os.path.exists(self.off) else None

    async def ask(self, method, target, headers, body):
        """The server's answer: status line, headers and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20)
        try:
            lines = [f"{method} {target} HTTP/1.1"]
            lines += [f"{k}: {v}" for k, v in headers if k.lower() not in HOP | {"content-length"}]
            lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            writer.write("\r\n".join(lines).encode("latin-1") + body)
            await writer.drain()
            head = await read_head(reader)
            if head is None:
                raise Broken
            status, answered = head
            bodiless = method == "HEAD" or status.split()[1] in ("204", "304")
            return status, answered, b"" if bodiless else await read_body(reader, answered, True)
        finally:
            writer.close()

    async def answer(self, method, target, headers, body, fault):
        """What the client sees: status line, headers and body, how many bytes of it, and the fault that was injected."""
        if fault in ("503", "403"):
            return *error(fault), None, fault
        if fault == "reset_before":
            return None, [], b"", 0, fault
        status, answered, content = await self.ask(method, target, headers, body)
        match fault:
            case "500":
                return *error(fault), None, fault
            case "slow":
                await asyncio.sleep(self.random.uniform(2, 30))
            case "hang":
                await asyncio.sleep(self.random.uniform(60, 90))
                return None, [], b"", 0, fault
            case "truncated" if method == "GET" and len(content) > 1:
                return status, answered, content, len(content) // 2, fault
            case "truncated" | "reset_after":
                return None, [], b"", 0, "reset_after"
            case "flip" if method == "GET" and ".nii" in target and content:
                flipped = bytearray(content)
                flipped[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
                return status, answered, bytes(flipped), None, fault
            case "flip":
                fault = None
        return status, answered, content, None, fault

    async def serve(self, client, reader, writer):
        try:
            while (head := await read_head(reader)) is not None:
                if not await self.request(client, head, reader, writer):
                    break
        except (Broken, ConnectionError):
            pass
        finally:
            writer.close()

    async def request(self, client, head, reader, writer):
        """Answers one request; whether the connection stays."""
        began = time.time()
        (first, headers), status, body, fault = head, None, b"", self.fault()
        method, target, _ = first.split(" ")
        try:
            if (value(headers, "expect") or "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await read_body(reader, headers, False)
            try:
                status, answered, content, cut, fault = await self.answer(method, target, headers, body, fault)
            except (OSError, Broken):
                status, answered, content, cut = "HTTP/1.1 502 Bad Gateway", [], b"", None
            if status is None:
                reset(writer)
                return False
            bodiless = method == "HEAD" or status.split()[1] in ("204", "304")
            lines = [f"HTTP/1.1 {status.split(' ', 1)[1]}"]
            left_out = HOP if bodiless else HOP | {"content-length"}
            lines += [f"{k}: {v}" for k, v in answered if k.lower() not in left_out]
            lines += [] if bodiless else [f"Content-Length: {len(content)}"]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content[:cut])
            await writer.drain()
            return cut is None
        finally:
            self.log.write(json.dumps({
                "t": round(time.time(), 3), "client": client, "method": method, "path": target,
                "status": int(status.split()[1]) if status else 0, "seconds": round(time.time() - began, 3),
                "fault": fault, **({"deletes": deleted(body)} if method == "POST" and "?delete" in target else {}),
            }) + "\n")  # fmt: skip


def deleted(body):
    """The keys that a request to delete many objects names."""
    return [key.decode() for key in re.findall(rb"<Key>(.*?)</Key>", body)]


def error(fault):
    status, code = ERRORS[fault]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    return f"HTTP/1.1 {status}", [("Content-Type", "application/xml")], body


def reset(writer):
    """Ends the connection with a reset instead of a regular end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", type=int, required=True)
    parser.add_argument("--port", action="append", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--percent", type=float, required=True)
    parser.add_argument("--kinds")
    parser.add_argument("--off", required=True)
    options = parser.parse_args()
    proxy = Proxy(options)
    for named in options.port:
        client, port = named.split("=")
        serve = lambda reader, writer, client=client: proxy.serve(client, reader, writer)
        await asyncio.start_server(serve, "127.0.0.1", int(port), limit=1 << 20)
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
