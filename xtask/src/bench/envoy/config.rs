//! Envoy's configurations.

use super::super::identity::{self, TRUST_DOMAIN};
use crate::world::{folder::Folder, pod::Pod};
use anyhow::Result;
use std::path::PathBuf;

/// Writes the one that carries plain TCP.
pub(in super::super) fn plaintext(folder: &Folder) -> Result<PathBuf> {
    folder.write("envoy.yaml", &text("", "original_dst", ""))
}

/// Writes the one that has mutual TLS between the two pods.
pub(in super::super) fn mtls(folder: &Folder, pod: &Pod) -> Result<PathBuf> {
    let identity = identity::of(folder, pod).display().to_string();
    let (server, client) = (socket("Downstream", &identity), socket("Upstream", &identity));
    let cluster = CLUSTER.replace("NAME", "original_dst_mtls") + &format!("    transport_socket: {client}\n");
    folder.write(
        &format!("envoy-{}.yaml", pod.name),
        &text(&format!("      transport_socket: {server}\n"), "original_dst_mtls", &cluster),
    )
}

fn text(inbound: &str, outbound_cluster: &str, clusters: &str) -> String {
    LISTENERS.replace("OUTBOUND_CLUSTER", outbound_cluster)
        + inbound
        + "  clusters:\n"
        + &CLUSTER.replace("NAME", "original_dst")
        + clusters
}

/// A transport socket. Sessions are resumed as Envoy does by default; AES-GCM with 128 or 256 bits is what BoringSSL
/// chooses where the CPU has instructions for it.
fn socket(direction: &str, identity: &str) -> String {
    let client = if direction == "Downstream" { "require_client_certificate: true, " } else { "" };
    let of = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    format!(
        r#"{{name: envoy.transport_sockets.tls, typed_config: {{"@type": {of}.{direction}TlsContext, {client}common_tls_context: {{
        tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}},
        tls_certificates: [{{certificate_chain: {{filename: {identity}/cert.pem}}, private_key: {{filename: {identity}/key.pem}}}}],
        validation_context: {{trusted_ca: {{filename: {identity}/roots.pem}},
          match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: "spiffe://{TRUST_DOMAIN}/"}}}}]}}}}}}}}"#
    )
}

/// Two listeners that forward to the original destination.
const LISTENERS: &str = r#"
static_resources:
  listeners:
  - name: outbound
    address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
    listener_filters: &original_dst
    - name: envoy.filters.listener.original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: out, cluster: OUTBOUND_CLUSTER}
  - name: inbound
    address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
    listener_filters: *original_dst
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: in, cluster: original_dst}
"#;

/// The limit of connections is raised above its default of 1024, at which the measurement with 1000 connections would
/// fail now and then.
const CLUSTER: &str = r#"  - name: NAME
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 2s
    circuit_breakers: {thresholds: [{max_connections: 100000}]}
"#;
