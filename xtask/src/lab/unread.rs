//! What an application sees of bytes that came by TCP and are unread, while its socket is in a sockmap.

use super::bpf::SockHash;
use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::null_mut,
};

const SENT: usize = 1000;
const KEY: u32 = 1;

/// What a map has that a socket is in; `None`: it is in no map.
type Programs = Option<fn(&SockHash) -> Result<()>>;

const PLACES: [(&str, Programs); 3] = [
    ("no sockmap", None),
    ("sk_msg, nothing redirected", Some(|map| map.send_into(&SockHash::new()?))),
    ("sk_skb verdict that passes everything", Some(SockHash::pass_all)),
];

/// Looks and prints.
pub(super) fn show() -> Result<()> {
    let title = format!("Of {SENT} B that came by TCP");
    println!("{title:40}  {:>12}  {:>22}  {:>22}", "FIONREAD", "splice", "recv out of the map");
    for (name, programs) in PLACES {
        let [told, spliced, left] = [told as See, spliced, left].map(|see| {
            let seen = seen(programs, see).with_context(|| name.to_owned())?;
            Ok::<_, anyhow::Error>(seen.map_or_else(|error| error.kind().to_string(), |bytes| bytes.to_string()))
        });
        println!("  {name:38}  {:>12}  {:>22}  {:>22}", told?, spliced?, left?);
    }
    println!();
    Ok(())
}

type See = fn(&TcpStream, Option<&SockHash>) -> io::Result<usize>;

fn seen(programs: Programs, see: See) -> Result<io::Result<usize>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let app = TcpStream::connect(listener.local_addr()?).context("connect over loopback")?;
    let (mut peer, _) = listener.accept()?;
    app.set_nonblocking(true)?;
    let map = programs.map(|attach| {
        let map = SockHash::new()?;
        attach(&map)?;
        map.insert(KEY, &app).map(|()| map)
    });
    let map = map.transpose()?;
    peer.write_all(&[1; SENT])?;
    let events = &mut [PollFd::new(app.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(events, PollTimeout::from(1000_u16))? == 1, "nothing came over loopback");
    Ok(see(&app, map.as_ref()))
}

fn told(app: &TcpStream, _map: Option<&SockHash>) -> io::Result<usize> {
    let mut unread = 0_i32;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(app.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    counted(result as isize).map(|_| unread as usize)
}

fn spliced(app: &TcpStream, _map: Option<&SockHash>) -> io::Result<usize> {
    let (_from, into) = nix::unistd::pipe()?;
    let (app, into) = (app.as_raw_fd(), into.as_raw_fd());
    // SAFETY: both are open descriptors, and no offsets are given.
    counted(unsafe { libc::splice(app, null_mut(), into, null_mut(), SENT, libc::SPLICE_F_NONBLOCK) })
}

/// As when the fast path is switched off, or the application goes over to blocking mode.
fn left(mut app: &TcpStream, map: Option<&SockHash>) -> io::Result<usize> {
    map.map_or(Ok(()), |map| map.remove(KEY)).map_err(io::Error::other)?;
    app.read(&mut [0; SENT])
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
