"""Stands for a command: `launch.py PLACE COMMAND ARGUMENT...` has the server at PLACE run it.

The process has the caller's streams, environment and folder, gets its signals and dies with it.
"""

import array
import json
import os
import signal
import socket
import sys

place, *words = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.connect(place)
# Not pathlib, whose import takes longer than all of this.
folder = os.getcwd()  # noqa: PTH109
asked = {"words": words, "env": dict(os.environ), "folder": folder}
streams = array.array("i", [0, 1, 2])
ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
text = json.dumps(asked).encode() + b"\n"
sent = server.sendmsg([text], ancillary)
server.sendall(text[sent:])
answers = server.makefile()
pid = int(answers.readline())
for sort in (signal.SIGINT, signal.SIGTERM):
    signal.signal(sort, lambda number, _: os.kill(pid, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
