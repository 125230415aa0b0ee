"""An HBONE server on the `h2` package: prints its port; answers tunnels to port 1 with 503, all others with 200 and an
echo of what they send; prints one JSON line for each tunnel when it ends.

Argument: the folder with root.pem, cert.pem and key.pem.
"""

import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

folder = sys.argv[1]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_verify_locations(f"{folder}/root.pem")
context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
context.verify_mode = ssl.CERT_REQUIRED
context.set_alpn_protocols(["h2"])
names = []
context.sni_callback = lambda _socket, name, _context: names.append(name)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)

tls = context.wrap_socket(listener.accept()[0], server_side=True)
# This version's checks know nothing of CONNECT: they would miss its path.
config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False)
http2 = h2.connection.H2Connection(config)
http2.initiate_connection()
asked, echo, ended = {}, {}, set()


def tell(stream, how):
    """Says how a tunnel ended."""
    told = {"headers": asked.pop(stream), "how": how, "alpn": tls.selected_alpn_protocol(), "sni": names}
    print(json.dumps(told), flush=True)


def flush(stream):
    """Echoes as much as the client takes."""
    rest = echo.get(stream)
    while rest:
        room = min(http2.local_flow_control_window(stream), http2.max_outbound_frame_size, len(rest))
        if room == 0:
            return
        http2.send_data(stream, bytes(rest[:room]))
        # What is echoed may be sent again: memory stays bounded by the window.
        http2.acknowledge_received_data(room, stream)
        del rest[:room]
    if stream in ended:
        ended.discard(stream)
        del echo[stream]
        http2.end_stream(stream)
        tell(stream, "end")


while True:
    tls.sendall(http2.data_to_send())
    try:
        received = tls.recv(65536)
    except ConnectionResetError:
        break
    if not received:
        break
    for event in http2.receive_data(received):
        if isinstance(event, h2.events.RequestReceived):
            asked[event.stream_id] = event.headers
            if dict(event.headers)[":authority"].endswith(":1"):
                http2.send_headers(event.stream_id, [(":status", "503")], end_stream=True)
                tell(event.stream_id, "refused")
            else:
                http2.send_headers(event.stream_id, [(":status", "200")])
                echo[event.stream_id] = bytearray()
        elif isinstance(event, h2.events.DataReceived):
            echo[event.stream_id] += event.data
        elif isinstance(event, h2.events.StreamEnded):
            ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset) and event.stream_id in asked:
            del echo[event.stream_id]
            tell(event.stream_id, f"reset {int(event.error_code)}")
    for stream in list(echo):
        flush(stream)
