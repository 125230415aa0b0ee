//! Which endpoint each interface has, and what it answers.

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};

use super::{Hooks, origin};
use crate::lifecycle::readiness::Unready;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// The version is part of the type: Prometheus 3 refuses a scrape without it.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One of the sets of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    Metrics,
    Health,
    Admin,
    /// The same as [`Self::Admin`] for whoever can open the socket's file; browsers cannot.
    AdminSocket,
}

type Answer = Response<Full<Bytes>>;

/// A path and what it does.
struct Endpoint {
    path: &'static str,
    about: &'static str,
    read: fn(&Hooks) -> Answer,
    /// What a POST with this query does; `None`: there is nothing to change.
    write: Option<fn(&Hooks, &str) -> Answer>,
}

const METRICS: &[Endpoint] = &[
    Endpoint { path: "/metrics", about: "all metrics, Prometheus text format", read: metrics, write: None },
    Endpoint { path: "/stats/prometheus", about: "the same", read: metrics, write: None },
];

const HEALTH: &[Endpoint] = &[
    Endpoint { path: "/healthz/ready", about: "200 when ready, 503 and why when not", read: ready, write: None },
    Endpoint {
        path: "/healthz/live",
        about: "200 unless only a restart can help; else 503 and why",
        read: live,
        write: None,
    },
];

const ADMIN: &[Endpoint] = &[
    Endpoint { path: "/ready", about: "200 when ready, 503 and why when not", read: ready, write: None },
    Endpoint { path: "/config_dump", about: "the configuration in force", read: config_dump, write: None },
    Endpoint { path: "/connections", about: "the open connections", read: connections, write: None },
    Endpoint { path: "/stats/prometheus", about: "all metrics, Prometheus text format", read: metrics, write: None },
    Endpoint {
        path: "/fastpath",
        about: "the fast path; POST /fastpath?switch=off (or on) switches it",
        read: fast_path,
        write: Some(switch_fast_path),
    },
    Endpoint {
        path: "/drain",
        about: "whether it drains, and what remains; POST /drain begins",
        read: drain_state,
        write: Some(|hooks, _| {
            (hooks.drain)();
            drain_state(hooks)
        }),
    },
    Endpoint {
        path: "/logging",
        about: "the log level; POST /logging?level=debug changes it",
        read: logging,
        write: Some(set_logging),
    },
];

impl Interface {
    fn endpoints(self) -> &'static [Endpoint] {
        match self {
            Self::Metrics => METRICS,
            Self::Health => HEALTH,
            Self::Admin | Self::AdminSocket => ADMIN,
        }
    }
}

/// Answers one request. Bodies are not read: nothing here needs one.
pub(super) fn answer(interface: Interface, hooks: &Hooks, request: &Request<Incoming>) -> Answer {
    if interface == Interface::Admin
        && let Err(refusal) = origin::check(request)
    {
        return text(StatusCode::FORBIDDEN, format!("{refusal}\n"));
    }
    let path = request.uri().path();
    if path == "/" && is_read(request.method()) {
        return text(StatusCode::OK, list(interface));
    }
    let Some(endpoint) = interface.endpoints().iter().find(|endpoint| endpoint.path == path) else {
        return text(StatusCode::NOT_FOUND, format!("no such endpoint; there are\n{}", list(interface)));
    };
    let query = request.uri().query().unwrap_or_default();
    match (request.method(), endpoint.write) {
        (&Method::POST, Some(write)) => write(hooks, query),
        // A read that carries a new value is a mistake worth telling.
        (method, None) if is_read(method) => (endpoint.read)(hooks),
        (method, Some(_)) if is_read(method) && query.is_empty() => (endpoint.read)(hooks),
        (_, write) => wrong_method(endpoint.path, write.is_some()),
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn list(interface: Interface) -> String {
    interface.endpoints().iter().map(|endpoint| format!("{:<20} {}\n", endpoint.path, endpoint.about)).collect()
}

fn wrong_method(path: &str, writable: bool) -> Answer {
    let (allow, said) = if writable {
        ("GET, HEAD, POST", format!("{path} is read with GET and changed with POST\n"))
    } else {
        ("GET, HEAD", format!("{path} can only be read: use GET\n"))
    };
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, said);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

fn ready(hooks: &Hooks) -> Answer {
    health("ready\n", &(hooks.ready)())
}

fn live(hooks: &Hooks) -> Answer {
    health("live\n", &(hooks.live)())
}

fn health(well: &str, unready: &[Unready]) -> Answer {
    if unready.is_empty() {
        return text(StatusCode::OK, well.to_owned());
    }
    let reasons = unready.iter().map(|unready| format!("{}: {}\n", unready.name, unready.reason)).collect();
    text(StatusCode::SERVICE_UNAVAILABLE, reasons)
}

fn metrics(hooks: &Hooks) -> Answer {
    respond(StatusCode::OK, PROMETHEUS, (hooks.metrics)())
}

fn config_dump(hooks: &Hooks) -> Answer {
    json(&(hooks.config_dump)())
}

fn connections(hooks: &Hooks) -> Answer {
    json(&(hooks.connections)())
}

fn fast_path(hooks: &Hooks) -> Answer {
    json(&(hooks.fast_path)())
}

fn switch_fast_path(hooks: &Hooks, query: &str) -> Answer {
    let on = match query {
        "switch=on" => true,
        "switch=off" => false,
        _ => {
            return text(
                StatusCode::BAD_REQUEST,
                "say which: POST /fastpath?switch=on or /fastpath?switch=off\n".to_owned(),
            );
        }
    };
    match (hooks.switch_fast_path)(on) {
        Ok(()) => fast_path(hooks),
        Err(error) => text(StatusCode::CONFLICT, format!("{error}\n")),
    }
}

fn drain_state(hooks: &Hooks) -> Answer {
    json(&(hooks.drain_state)())
}

fn logging(hooks: &Hooks) -> Answer {
    text(StatusCode::OK, format!("{}\n", (hooks.log_level)()))
}

/// Directives hold no character that a query must escape, except that curl users may write `%3D` for `=` and `%2C`
/// for `,`.
fn set_logging(hooks: &Hooks, query: &str) -> Answer {
    let Some(level) = query.split('&').find_map(|pair| pair.strip_prefix("level=")).filter(|level| !level.is_empty())
    else {
        return text(StatusCode::BAD_REQUEST, "say which level: POST /logging?level=debug\n".to_owned());
    };
    let level = level.replace("%3D", "=").replace("%2C", ",").replace("%3A", ":");
    match (hooks.set_log_level)(&level) {
        Ok(()) => logging(hooks),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn json(value: &serde_json::Value) -> Answer {
    respond(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn text(status: StatusCode, body: String) -> Answer {
    respond(status, TEXT, body)
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
