//! Tunnels over real sockets: our pool against our server, and both against peers that misbehave.

mod attacks;
mod envoy;
mod interop;
mod pool;
mod refusals;
mod transfer;
mod world;
