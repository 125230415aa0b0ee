//! Sidecar library.
