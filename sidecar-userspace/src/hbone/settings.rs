//! HTTP/2 settings, those of ztunnel where it has some, and the bounds on what a peer may cost.

use std::time::Duration;

/// Bytes that may be under way on one stream (ztunnel's `window_size`).
const STREAM_WINDOW: u32 = 4 << 20;

/// Bytes that may be under way on all streams of a connection (ztunnel's `connection_window_size`). Four times the window
/// of a stream: with equal windows one stream that nobody reads would stop all others.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Longest payload of a frame (ztunnel's `frame_size`).
const FRAME: u32 = 1 << 20;

/// Streams that a client may have open on one connection; ztunnel's servers allow as many.
pub(super) const MAX_STREAMS: u32 = 200;

/// Streams that our client opens on one connection before it makes another (ztunnel's `pool_max_streams_per_conn`).
pub(super) const STREAMS_PER_CONNECTION: usize = 100;

/// Decoded headers of a request: some twenty times what HBONE needs. Also bounds CONTINUATION frames: h2 computes from it how
/// many it takes.
const REQUEST_HEADERS: u32 = 64 << 10;

/// Decoded headers of a response, which carries next to none.
const RESPONSE_HEADERS: u32 = 16 << 10;

/// Bytes of one stream that wait for the TLS connection: two full reads of the relay, so that one can be encrypted while the
/// next is read.
const SEND_BUFFER: usize = 128 << 10;

/// Streams that we reset and whose late frames are still expected, and for how long: more are treated as a peer's fault.
const RESET_STREAMS: usize = 50;
const RESET_STREAMS_FOR: Duration = Duration::from_secs(1);

/// Streams that the peer opened and reset again before we came to look (CVE-2023-44487); more end the connection.
const RESET_BEFORE_ACCEPT: usize = 20;

/// Streams that we had to reset because of the peer's errors, in a connection's life (CVE-2025-8671); more end it.
const RESET_FOR_ERRORS: usize = 1024;

/// Our side of a connection that we accepted. Extended CONNECT (RFC 8441) stays off: it would bring requests with paths.
pub(super) fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(REQUEST_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_STREAMS_FOR)
        .max_pending_accept_reset_streams(RESET_BEFORE_ACCEPT)
        .max_local_error_reset_streams(Some(RESET_FOR_ERRORS));
    builder
}

/// Our side of a connection that we opened.
pub(super) fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(RESPONSE_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_STREAMS_FOR)
        .max_local_error_reset_streams(Some(RESET_FOR_ERRORS))
        .initial_max_send_streams(STREAMS_PER_CONNECTION)
        .enable_push(false);
    builder
}
