//! The value of every key that nobody gave.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

use super::{
    Acceleration, AccessLog, Capture, Cidr, InboundCapture, LogFormat, MapSizes, OnFailure, OutboundCapture, Pod,
    Proxy, Telemetry,
};

/// Where every cloud serves its instance metadata. It is answered by the host, often by source address, so that a
/// connection from the sidecar is not the same as one from the application.
const CLOUD_METADATA: Cidr = Cidr { network: IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), prefix: 32 };

/// More threads than this are seldom worth their memory beside a service; `proxy.workers` raises it.
const MOST_WORKERS: usize = 2;

impl Default for Pod {
    fn default() -> Self {
        Self { cgroup: None, netns: None, workload: "unknown".into(), namespace: "unknown".into() }
    }
}

impl Default for OutboundCapture {
    fn default() -> Self {
        Self { enabled: true, port: 15001, exclude_ports: Vec::new(), exclude_cidrs: vec![CLOUD_METADATA] }
    }
}

impl Default for InboundCapture {
    fn default() -> Self {
        Self { enabled: true, port: 15006, exclude_ports: Vec::new() }
    }
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { flows: 16384, listeners: 4096, accelerated: 16384 }
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            outbound: OutboundCapture::default(),
            inbound: InboundCapture::default(),
            on_failure: OnFailure::Open,
            heartbeat_max_age: Duration::from_secs(1),
            acceleration: Acceleration::Off,
            maps: MapSizes::default(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            workers: thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connections: 65536,
            max_connecting: 4096,
            max_buffer: 128 * 1024,
            socket_buffer: None,
            keepalive: Duration::from_secs(180),
            drain_deadline: Duration::from_secs(5),
            hung_after: Duration::from_secs(3),
            user: None,
            proxy_protocol_ports: Vec::new(),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            metrics: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15020)),
            health: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15021)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)),
            admin_socket: None,
            access_log: AccessLog::Text,
            log_level: "info".into(),
            log_format: LogFormat::Text,
            bpf_log: false,
        }
    }
}
