//! What a connection begins with: a TLS ClientHello of another sidecar, one of an application, or something else.
//!
//! Pure functions of the first bytes (RFC 8446 §4.1.2, §5.1; RFC 7301).

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// They can be the beginning of any of the others.
    Unclear,
    /// A ClientHello that offers the native transport.
    Native,
    /// A ClientHello that does not: the application's own TLS.
    OtherTls,
    /// No ClientHello.
    Plaintext,
}

/// ALPN name of the native transport.
pub const NATIVE_ALPN: &[u8] = b"sidecar/1";

/// Most bytes that a ClientHello may have before it is taken for one of an application: far above what clients send.
pub const LONGEST_HELLO: usize = 16 * 1024;

/// Content type, version and length.
const RECORD_HEADER: usize = 5;

/// Tells what the connection that begins with `bytes` is.
pub fn opening(bytes: &[u8]) -> Opening {
    match client_hello(bytes) {
        Ok(Some(alpn)) if offers(alpn.as_deref().unwrap_or_default(), NATIVE_ALPN) => Opening::Native,
        Ok(Some(_)) => Opening::OtherTls,
        Ok(None) if bytes.len() >= LONGEST_HELLO => Opening::OtherTls,
        Ok(None) => Opening::Unclear,
        Err(NotTls) => Opening::Plaintext,
    }
}

/// The bytes cannot be a ClientHello.
struct NotTls;

/// The contents of the ALPN extension of the ClientHello; the inner `None`: it has none; the outer: it is not whole.
fn client_hello(mut bytes: &[u8]) -> Result<Option<Option<Vec<u8>>>, NotTls> {
    // A handshake message may be spread over records.
    let mut message = Vec::new();
    loop {
        check_record(bytes)?;
        let Some((header, rest)) = bytes.split_at_checked(RECORD_HEADER) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let here = &rest[..length.min(rest.len())];
        message.extend_from_slice(here);
        check_message(&message)?;
        if let Some(hello) = whole(&message) {
            return Ok(Some(alpn(hello)));
        }
        if here.len() < length {
            return Ok(None);
        }
        bytes = &rest[length..];
    }
}

/// Whether `bytes` can begin a record that holds a handshake message.
fn check_record(bytes: &[u8]) -> Result<(), NotTls> {
    const HANDSHAKE: u8 = 22;
    const MAJOR: u8 = 3;
    let good = bytes.first().is_none_or(|kind| *kind == HANDSHAKE)
        && bytes.get(1).is_none_or(|major| *major == MAJOR)
        && bytes.get(2).is_none_or(|minor| *minor <= 4)
        // RFC 8446 §5.1: no more than 2^14 bytes, and no empty fragment of a handshake message.
        && bytes.get(3).is_none_or(|length| *length <= 0x40)
        && bytes.get(3..5).is_none_or(|length| length != [0, 0]);
    if good { Ok(()) } else { Err(NotTls) }
}

/// Whether `message` can begin a ClientHello: its type, and a length of less than 2^17.
fn check_message(message: &[u8]) -> Result<(), NotTls> {
    const CLIENT_HELLO: u8 = 1;
    let good = message.first().is_none_or(|kind| *kind == CLIENT_HELLO) && message.get(1).is_none_or(|high| *high <= 1);
    if good { Ok(()) } else { Err(NotTls) }
}

/// The body of the message, if all of it is there.
fn whole(message: &[u8]) -> Option<&[u8]> {
    let (header, body) = message.split_first_chunk::<4>()?;
    body.get(..usize::try_from(u32::from_be_bytes([0, header[1], header[2], header[3]])).ok()?)
}

/// The ALPN extension of a ClientHello; `None`: none, or the message makes no sense, which whoever accepts it will say.
fn alpn(hello: &[u8]) -> Option<Vec<u8>> {
    const ALPN: u16 = 16;
    let mut rest = Reader(hello);
    rest.take(2 + 32)?;
    let session_id = rest.u8()?;
    rest.take(session_id.into())?;
    let suites = rest.u16()?;
    rest.take(suites.into())?;
    let compressions = rest.u8()?;
    rest.take(compressions.into())?;
    let extensions = rest.u16()?;
    let mut extensions = Reader(rest.take(extensions.into())?);
    loop {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let body = extensions.take(length.into())?;
        if kind == ALPN {
            return Some(body.to_vec());
        }
    }
}

/// Whether the names in the extension (RFC 7301 §3.1) include `wanted`.
fn offers(extension: &[u8], wanted: &[u8]) -> bool {
    let mut names = Reader(extension.get(2..).unwrap_or_default());
    std::iter::from_fn(|| {
        let length = names.u8()?;
        names.take(length.into())
    })
    .any(|name| name == wanted)
}

/// Takes bytes from the front as long as there are enough.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

#[cfg(test)]
mod tests;
