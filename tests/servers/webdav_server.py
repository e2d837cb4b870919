"""A WebDAV server (WsgiDAV) for tests that serves a folder to read: prints its port, and serves until standard input ends.

    python webdav_server.py FOLDER
"""

import sys
import threading

from cheroot.wsgi import Server
from wsgidav.fs_dav_provider import FilesystemProvider
from wsgidav.wsgidav_app import WsgiDAVApp

application = WsgiDAVApp(
    {
        "provider_mapping": {"/": FilesystemProvider(sys.argv[1], readonly=True)},
        "simple_dc": {"user_mapping": {"*": True}},
        "logging": {"enable": False},
        "verbose": 0,
    }
)
server = Server(("127.0.0.1", 0), application)
server.prepare()
threading.Thread(target=server.serve, daemon=True).start()
print(server.bind_addr[1], flush=True)
sys.stdin.read()
server.stop()
