use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use socket2::{SockRef, Socket};
use tokio::runtime::{Builder, LocalOptions};

use super::*;
use crate::net::Stream;

const MAX_BUFFER: usize = 64 * 1024;

/// The far ends of a relay's two connections, and the relay's own ends.
struct Ends {
    client: TcpStream,
    server: TcpStream,
    down: Socket,
    up: Socket,
}

impl Ends {
    fn new() -> Self {
        let ((client, down), (up, server)) = (pair(), pair());
        for end in [&down, &up] {
            end.set_nonblocking(true).unwrap();
            SockRef::from(end).set_out_of_band_inline(true).unwrap();
            SockRef::from(end).set_linger(Some(Duration::ZERO)).unwrap();
        }
        Self { client, server, down: down.into(), up: up.into() }
    }

    /// Relays on this thread's own reactor while `meanwhile` runs beside it.
    fn relay<F: Future<Output = ()>>(
        self,
        meanwhile: impl FnOnce(TcpStream, TcpStream) -> F,
    ) -> (CloseReason, (u64, u64)) {
        let Self { client, server, down, up } = self;
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let (down, up) = (Stream::register(down).unwrap(), Stream::register(up).unwrap());
            let traffic = Traffic::default();
            let (reason, ()) = tokio::join!(
                async {
                    let reason = relay(&down, &up, &traffic, MAX_BUFFER).await;
                    drop((down, up));
                    reason
                },
                meanwhile(client, server),
            );
            (reason, traffic.totals())
        })
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Runs blocking code on a thread of its own, so that the relay's thread stays free.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn numbered(from: u64, count: u64) -> Vec<u8> {
    (from..from + count).flat_map(u64::to_le_bytes).collect()
}

#[test]
fn both_ends_finish_and_every_byte_arrives() {
    let (reason, traffic) = Ends::new().relay(|mut client, mut server| async {
        let serve = elsewhere(move || {
            let mut request = Vec::new();
            server.read_to_end(&mut request).unwrap();
            server.write_all(&numbered(0, 100_000)).unwrap();
            request
        });
        let ask = elsewhere(move || {
            client.write_all(b"request").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer
        });
        let (request, answer) = tokio::join!(serve, ask);
        assert_eq!(request, b"request");
        assert_eq!(answer, numbered(0, 100_000));
    });
    assert_eq!((reason, traffic), (CloseReason::Completed, (7, 800_000)));
}

#[test]
fn a_reset_comes_after_the_bytes_before_it() {
    let (reason, _) = Ends::new().relay(|mut client, mut server| async {
        elsewhere(move || {
            server.write_all(b"last words").unwrap();
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            drop(server);
            let mut words = [0; 10];
            client.read_exact(&mut words).unwrap();
            assert_eq!(&words, b"last words");
            assert_eq!(client.read(&mut words).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        })
        .await;
    });
    assert_eq!(reason, CloseReason::UpstreamReset);
}

/// Bytes that wait for a slow receiver must not be overtaken by those that are fetched when the sender is found reset.
#[test]
fn what_arrives_before_a_reset_has_no_holes() {
    let (reason, _) = Ends::new().relay(|mut client, server| async move {
        // Flood until both kernels' buffers and the relay's rest are full.
        server.set_nonblocking(true).unwrap();
        let (mut sent, mut quiet) = (0, 0);
        while quiet < 50 {
            let flood = numbered(sent / 8, 8192);
            match (&server).write(&flood[(sent % 8) as usize..]) {
                Ok(bytes) => (sent, quiet) = (sent + bytes as u64, 0),
                Err(_) => quiet += 1,
            }
            tokio::task::yield_now().await;
        }
        // Now, with the relay's thread held: room for the rest, bytes for the server, and the server's reset. Next the
        // relay finds all three at once.
        let mut received = vec![0; 4 << 20];
        client.set_nonblocking(true).unwrap();
        let mut got = 0;
        while let Ok(bytes @ 1..) = client.read(&mut received[got..]) {
            got += bytes;
        }
        client.write_all(b"ask").unwrap();
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let all = elsewhere(move || {
            received.truncate(got);
            client.set_nonblocking(false).unwrap();
            let ended = client.read_to_end(&mut received);
            assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            received
        })
        .await;
        assert!(all.len() > got, "nothing was delivered after the {got} bytes that had arrived");
        let hole = all.chunks_exact(8).zip(0_u64..).find(|(bytes, number)| *bytes != number.to_le_bytes());
        assert_eq!(hole, None, "of {} bytes", all.len());
    });
    assert_eq!(reason, CloseReason::UpstreamReset);
}

#[test]
fn an_urgent_byte_stays_in_its_place() {
    Ends::new().relay(|mut client, mut server| async {
        elsewhere(move || {
            client.write_all(b"ab").unwrap();
            SockRef::from(&client).send_out_of_band(b"!").unwrap();
            client.write_all(b"cd").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            SockRef::from(&server).set_out_of_band_inline(true).unwrap();
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"ab!cd");
        })
        .await;
    });
}
