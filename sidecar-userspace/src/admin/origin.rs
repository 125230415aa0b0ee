//! Whether a request to the loopback admin port can have come from a web page.
//!
//! A page in a browser on this machine reaches loopback too. Its cross-site POST carries `Origin` or `Sec-Fetch-Site`;
//! a name of its own that it has made point to 127.0.0.1 (DNS rebinding) stands in `Host`.

use std::net::IpAddr;

use hyper::{
    Method, Request,
    header::{HOST, ORIGIN},
};

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("refused: `Host: {0}` is not a loopback address; ask 127.0.0.1, [::1] or localhost")]
    Host(String),
    #[error("refused: this request comes from a web page")]
    WebPage,
}

/// Refuses what a web page could have sent.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    for host in request.headers().get_all(HOST) {
        let host = String::from_utf8_lossy(host.as_bytes());
        if !is_loopback(&host) {
            return Err(Refusal::Host(host.into_owned()));
        }
    }
    // Where a request names its target in full, hyper keeps that name in the URI.
    if let Some(host) = request.uri().host().filter(|host| !is_loopback(host)) {
        return Err(Refusal::Host(host.to_owned()));
    }
    let headers = request.headers();
    let from_page = headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site");
    if from_page && !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::WebPage);
    }
    Ok(())
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_could_send_is_refused_and_what_people_send_is_not() {
        let rebound = |name: &str| Err(Refusal::Host(name.to_owned()));
        for (method, headers, expected) in [
            (Method::GET, vec![("host", "127.0.0.1:15000")], Ok(())),
            (Method::POST, vec![("host", "localhost:15000")], Ok(())),
            (Method::POST, vec![("host", "[::1]:15000")], Ok(())),
            (Method::POST, vec![("host", "127.8.9.1")], Ok(())),
            (Method::POST, vec![], Ok(())),
            (Method::GET, vec![("host", "evil.example:15000")], rebound("evil.example:15000")),
            (Method::GET, vec![("host", "localhost.evil.example")], rebound("localhost.evil.example")),
            (Method::GET, vec![("host", "10.0.0.1:15000")], rebound("10.0.0.1:15000")),
            (Method::GET, vec![("host", "localhost"), ("host", "evil.example")], rebound("evil.example")),
            (Method::POST, vec![("host", "127.0.0.1"), ("origin", "http://evil.example")], Err(Refusal::WebPage)),
            (Method::POST, vec![("host", "127.0.0.1"), ("origin", "null")], Err(Refusal::WebPage)),
            (Method::POST, vec![("host", "127.0.0.1"), ("sec-fetch-site", "cross-site")], Err(Refusal::WebPage)),
            (Method::GET, vec![("host", "127.0.0.1"), ("sec-fetch-site", "none")], Ok(())),
        ] {
            let mut request = Request::builder().method(method.clone()).uri("/logging");
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            assert_eq!(check(&request.body(()).unwrap()), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_foreign_name_in_the_request_line_is_refused() {
        let request = Request::builder().uri("http://evil.example/config_dump").body(()).unwrap();
        assert_eq!(check(&request), Err(Refusal::Host("evil.example".to_owned())));
    }
}
