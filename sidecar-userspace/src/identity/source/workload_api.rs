//! The SPIFFE Workload API: gRPC over a unix socket
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>).
//!
//! One call, one message. A program that does it with a library (spiffe 0.19, on tonic) is built of 159 crates and 3.6 MB
//! large; with h2, which HBONE needs anyway, of 65 and 1.8 MB.

use std::{convert::Infallible, path::Path};

use h2::{RecvStream, client};
use http::{HeaderMap, Request};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::UnixStream;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{BackOff, proto, publish};
use crate::identity::{Names, Parts, Publisher, Refused};

/// Messages beyond this are refused: a response holds some certificates. gRPC's own default.
const LARGEST: usize = 4 << 20;

/// Publishes what the API at `socket` says; calls again whenever the call ends.
pub(super) async fn run(socket: &Path, publisher: &mut Publisher) -> Infallible {
    let mut back_off = BackOff::new();
    loop {
        let mut answered = false;
        let reason = watch(socket, |message| {
            answered = true;
            publish(publisher, parts(message, socket));
        })
        .await;
        if answered {
            back_off = BackOff::new();
        }
        publisher.refuse(Refused::Unavailable { place: place(socket), reason });
        tokio::time::sleep(back_off.next()).await;
    }
}

fn place(socket: &Path) -> String {
    format!("Workload API at {}", socket.display())
}

/// Makes the call and gives each message to `each`; answers why it ended.
async fn watch(socket: &Path, mut each: impl FnMut(&[u8])) -> String {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) => return format!("{error}; start the SPIFFE agent, or correct identity.workload_api"),
    };
    let (requests, connection) = match client::handshake(stream).await {
        Ok(pair) => pair,
        Err(error) => return format!("not HTTP/2: {error}"),
    };
    tokio::select! {
        // The call first: it may have its answer although the connection has ended since.
        biased;
        outcome = call(requests, &mut each) => outcome.unwrap_or_else(|error| format!("the call failed: {error}")),
        ended = connection => ended.map_or_else(|error| error.to_string(), |()| "it closed the connection".to_owned()),
    }
}

async fn call(requests: client::SendRequest<bytes::Bytes>, each: &mut impl FnMut(&[u8])) -> Result<String, h2::Error> {
    let request = Request::post("http://localhost/SpiffeWorkloadAPI/FetchX509SVID")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        // Proof that no browser was tricked into asking (§4 of the standard of the endpoint).
        .header("workload.spiffe.io", "true")
        .body(())
        .expect("a request of constants is well formed");
    let (response, mut body) = requests.ready().await?.send_request(request, false)?;
    // An empty message: not compressed, length 0.
    body.send_data(bytes::Bytes::from_static(&[0; 5]), true)?;
    let response = response.await?;
    if !response.status().is_success() {
        return Ok(format!("HTTP status {}; is it a SPIFFE Workload API?", response.status()));
    }
    if let Some(status) = status(response.headers()) {
        return Ok(status);
    }
    let mut stream = response.into_body();
    if let Err(reason) = messages(&mut stream, each).await? {
        return Ok(reason.to_owned());
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    Ok(status(&trailers).unwrap_or_else(|| "it ended the call".to_owned()))
}

/// Takes the stream apart into messages: a byte that says whether it is compressed, and a length of four.
async fn messages(
    stream: &mut RecvStream,
    each: &mut impl FnMut(&[u8]),
) -> Result<Result<(), &'static str>, h2::Error> {
    const HEAD: usize = 5;
    let mut pending = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        pending.extend_from_slice(&data);
        stream.flow_control().release_capacity(data.len())?;
        while let Some((head, rest)) = pending.split_first_chunk::<HEAD>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if head[0] != 0 {
                return Ok(Err("it compressed a message although that was not offered"));
            }
            if length > LARGEST {
                return Ok(Err("it sent a message of more than 4 MiB"));
            }
            let Some(message) = rest.get(..length) else { break };
            each(message);
            pending.drain(..HEAD + length);
        }
    }
    Ok(Ok(()))
}

/// The status of a call, from headers or trailers, in words with the fix.
fn status(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let fix = match text("grpc-status")? {
        "0" => return Some("it ended the call".to_owned()),
        // §5.1.1 of the standard: the workload has no identity.
        "7" => "; no identity is registered for this workload: make an entry for it",
        "12" => "; it offers no FetchX509SVID",
        "14" => "; it is not ready yet",
        _ => "",
    };
    let code = text("grpc-status").unwrap_or_default();
    Some(format!("status {code}: {}{fix}", text("grpc-message").unwrap_or("no message")))
}

fn parts(message: &[u8], socket: &Path) -> Result<Parts, Refused> {
    let place = place(socket);
    let malformed = |what: &str| Refused::Unavailable { place: place.clone(), reason: format!("{what} is malformed") };
    let response = proto::response(message).map_err(|proto::Malformed| malformed("its message"))?;
    let svid = response.svids.into_iter().next().ok_or_else(|| Refused::NoCertificate { place: place.clone() })?;
    let certificates = |der: &[u8], what: &str| split(der).ok_or_else(|| malformed(what));
    let mut federated = Vec::new();
    for (domain, bundle) in &response.federated {
        let domain = domain.strip_prefix("spiffe://").unwrap_or(domain);
        federated.push((domain.to_owned(), certificates(bundle, "a federated bundle")?));
    }
    let name = |what: &str| format!("{place}: {what}");
    Ok(Parts {
        chain: certificates(&svid.chain, "the SVID")?,
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key)),
        roots: certificates(&svid.bundle, "the bundle")?,
        federated,
        crls: response.crls.into_iter().map(CertificateRevocationListDer::from).collect(),
        names: Names { chain: name("SVID"), key: name("key"), roots: name("bundle"), crls: name("revocation lists") },
    })
}

/// Certificates that follow each other without anything between.
fn split(mut der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).ok()?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
