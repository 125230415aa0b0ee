//! The version of what is kept across processes.

/// The layout of the maps. Pinned maps outlive the binary that made them, and another one takes them over only if both know the same
/// number: it grows with every change of a map's name, key, value or meaning, of the meaning of a counter's place, and of what
/// programs and proxy expect of one another.
pub const LAYOUT: u32 = 4;
