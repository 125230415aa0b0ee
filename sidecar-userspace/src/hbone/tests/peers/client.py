"""An HBONE client on the `h2` package: asks for a tunnel, sends what standard input holds, prints what came of it as JSON.

Arguments: address and port of the server, the folder with root.pem, cert.pem and key.pem, the method, the authority.
"""

import hashlib
import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes

address, port, folder, method, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{folder}/root.pem")
context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
context.check_hostname = False
context.set_alpn_protocols(["h2"])
tls = context.wrap_socket(socket.create_connection((address, int(port))))
# This version's checks know nothing of CONNECT: they would miss its path.
config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
http2 = h2.connection.H2Connection(config)
result = {"alpn": tls.selected_alpn_protocol(), "status": None, "ended": None, "baggage": None}
digest, length = hashlib.sha256(), 0


def step():
    """Takes what the server sent."""
    global length
    tls.sendall(http2.data_to_send())
    received = tls.recv(65536)
    if not received:
        result["ended"] = result["ended"] or "eof"
    for event in http2.receive_data(received):
        if isinstance(event, h2.events.ResponseReceived):
            answer = dict(event.headers)
            result.update(status=answer[":status"], baggage=answer.get("baggage"))
        elif isinstance(event, h2.events.DataReceived):
            digest.update(event.data)
            length += len(event.data)
            http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            result["ended"] = "end"
        elif isinstance(event, h2.events.StreamReset):
            result["ended"] = f"reset {event.error_code}"
    tls.sendall(http2.data_to_send())


http2.initiate_connection()
headers = [(":method", method), (":authority", authority)]
if method != "CONNECT":
    headers += [(":scheme", "https"), (":path", "/")]
http2.send_headers(1, headers + [("forwarded", 'for="127.0.0.1:4711"')])
while result["status"] is None and result["ended"] is None:
    step()
data = sys.stdin.buffer.read() if result["status"] == "200" else b""
while data and result["ended"] is None:
    room = min(http2.local_flow_control_window(1), http2.max_outbound_frame_size, len(data))
    if room == 0:
        step()
        continue
    http2.send_data(1, data[:room])
    data = data[room:]
    tls.sendall(http2.data_to_send())
if result["status"] == "200":
    http2.end_stream(1)
while result["ended"] is None:
    step()
settings = http2.remote_settings
result |= {
    "sha256": digest.hexdigest(),
    "length": length,
    "stream_window": settings.initial_window_size,
    "max_frame": settings.max_frame_size,
    "max_streams": settings.max_concurrent_streams,
    "max_headers": settings.max_header_list_size,
    "connect_protocol": settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL, 0),
}
print(json.dumps(result))
