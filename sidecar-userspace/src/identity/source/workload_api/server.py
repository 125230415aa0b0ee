"""A SPIFFE Workload API on gRPC's own implementation: server.py SOCKET

Does to the call that is open what standard input says, a line for each: `send FILE` (the bytes of a message), `end`, or the
name of a status. Says `ready` when it listens and `called` for each call.
"""

import queue
import sys
from concurrent import futures

import grpc

commands = queue.Queue()


def fetch(request, context):
    if ("workload.spiffe.io", "true") not in [tuple(pair) for pair in context.invocation_metadata()]:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
    assert request == b""
    print("called", flush=True)
    while True:
        verb, _, path = commands.get().partition(" ")
        if verb == "send":
            with open(path, "rb") as message:
                yield message.read()
        elif verb == "end":
            return
        else:
            context.abort(grpc.StatusCode[verb], "as told")


server = grpc.server(futures.ThreadPoolExecutor(4))
methods = {"FetchX509SVID": grpc.unary_stream_rpc_method_handler(fetch)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", methods),))
server.add_insecure_port("unix:" + sys.argv[1])
server.start()
print("ready", flush=True)
for line in sys.stdin:
    commands.put(line.strip())
server.stop(0)
