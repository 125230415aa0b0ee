//! Where the running kernel keeps what the fast path must know, from its own type information (BTF,
//! Documentation/bpf/btf.rst).
//!
//! aya parses all of it, which takes about 95 ms. Here one pass finds the beginnings of the types, and only those that are
//! asked for are looked into: a few milliseconds.

use std::{fs, io};

use aya::{Btf, BtfError, Endianness};
use sidecar_common::fastpath::{ABSENT, Fields};

/// Where the kernel shows it.
const PATH: &str = "/sys/kernel/btf/vmlinux";
/// What a `bpf_iter` program of TCP sockets is attached to.
const ITERATOR: &str = "bpf_iter_tcp";
/// A structure within structures is looked into this far; the kernel's nest less.
const DEPTH: usize = 8;

/// Why there is no fast path on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No type information.
    #[error("{PATH}: {0}; the fast path needs a kernel with CONFIG_DEBUG_INFO_BTF=y")]
    Read(#[from] io::Error),
    /// Not in the format that is known.
    #[error("{PATH} is not in BTF format version 1 (at {0})")]
    Format(&'static str),
    /// The kernel does not have it.
    #[error("this kernel has no `{0}`, which the fast path reads")]
    Missing(&'static str),
    /// aya does not take what is handed to it.
    #[error("the type of `{ITERATOR}`: {0}")]
    Iterator(#[from] BtfError),
}

/// What was found.
pub(super) struct KernelTypes {
    /// The offsets.
    pub(super) fields: Fields,
    /// Type information in which the iterator has the number that it has in the kernel's, and nothing else is.
    pub(super) iterator: Btf,
}

/// Reads what is needed of the running kernel's type information.
pub(super) fn read() -> Result<KernelTypes, Error> {
    parse(&fs::read(PATH)?)
}

fn parse(bytes: &[u8]) -> Result<KernelTypes, Error> {
    let types = Types::index(bytes)?;
    let offset = |path: &'static str| match types.offset_of(path) {
        None if path == "task_struct.io_uring" => Some(ABSENT),
        found => found,
    };
    let fields = Fields::from_offsets(offset).map_err(Error::Missing)?;
    let number = types.number_of(kind::FUNC, ITERATOR).ok_or(Error::Missing(ITERATOR))?;
    Ok(KernelTypes { fields, iterator: lone_function(number)? })
}

/// Kinds of types (linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const LAST: u32 = ENUM64;
}

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Name, information, size or type.
const TYPE: usize = 12;
/// Name, type, offset.
const MEMBER: usize = 12;

/// The beginnings of all types.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// By number; number 0 is `void`.
    begins: Vec<u32>,
}

/// One type.
#[derive(Clone, Copy)]
struct Type {
    begins: usize,
    name: u32,
    kind: u32,
    members: usize,
    /// Offsets of members say how many bits a bit field has.
    bit_fields: bool,
    refers_to: u32,
}

impl<'a> Types<'a> {
    fn index(bytes: &'a [u8]) -> Result<Self, Error> {
        let word = |at| word(bytes, at).ok_or(Error::Format("the header"));
        if word(0)? & 0xff_ffff != u32::from(MAGIC) | 1 << 16 || word(4)? as usize != HEADER {
            return Err(Error::Format("the header"));
        }
        let part = |from: u32, length: u32| {
            let from = HEADER + from as usize;
            bytes.get(from..from + length as usize).ok_or(Error::Format("the sections"))
        };
        let mut types =
            Self { types: part(word(8)?, word(12)?)?, strings: part(word(16)?, word(20)?)?, begins: vec![0] };
        let mut at = 0;
        while at < types.types.len() {
            types.begins.push(at as u32);
            let found = types.at(at).ok_or(Error::Format("a type"))?;
            at += TYPE + found.trailing().ok_or(Error::Format("a type of an unknown kind"))?;
        }
        Ok(types)
    }

    fn at(&self, begins: usize) -> Option<Type> {
        let info = word(self.types, begins + 4)?;
        Some(Type {
            begins,
            name: word(self.types, begins)?,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            bit_fields: info >> 31 != 0,
            refers_to: word(self.types, begins + 8)?,
        })
    }

    fn numbered(&self, number: u32) -> Option<Type> {
        self.begins.get(number as usize).filter(|_| number != 0).and_then(|begins| self.at(*begins as usize))
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let rest = self.strings.get(name as usize..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn number_of(&self, kind: u32, name: &str) -> Option<u32> {
        let is_it = |found: Type| found.kind == kind && self.is_named(found.name, name);
        (1..self.begins.len() as u32).find(|number| self.numbered(*number).is_some_and(is_it))
    }

    /// Bytes from the beginning of a structure to the member of a member of it.
    fn offset_of(&self, path: &str) -> Option<u32> {
        let mut names = path.split('.');
        let mut within = self.numbered(self.number_of(kind::STRUCT, names.next()?)?)?;
        let mut bits = 0;
        for name in names {
            let (offset, member) = self.member(within, name, DEPTH)?;
            bits += offset;
            within = self.numbered(self.resolved(member)?)?;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bits to a member, and the number of its type; those of members without a name count as the structure's own.
    fn member(&self, within: Type, name: &str, depth: usize) -> Option<(u32, u32)> {
        if depth == 0 || within.kind != kind::STRUCT && within.kind != kind::UNION {
            return None;
        }
        (0..within.members).find_map(|index| {
            let at = within.begins + TYPE + index * MEMBER;
            let (named, number, offset) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let offset = if within.bit_fields { offset & 0xff_ffff } else { offset };
            if self.is_named(named, name) {
                return Some((offset, number));
            }
            if named != 0 {
                return None;
            }
            let (inner, number) = self.member(self.numbered(number)?, name, depth - 1)?;
            Some((offset + inner, number))
        })
    }

    /// The type behind other names and qualifiers.
    fn resolved(&self, mut number: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let found = self.numbered(number)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    number = found.refers_to;
                }
                _ => return Some(number),
            }
        }
        None
    }
}

impl Type {
    /// Bytes that follow the type itself.
    fn trailing(self) -> Option<usize> {
        Some(match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.members,
            kind::ENUM | kind::FUNC_PROTO => 8 * self.members,
            1..=kind::LAST => 0,
            _ => return None,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Type information with [`ITERATOR`] at this number, behind forward declarations of nothing: of all that aya would parse, it
/// asks for this number alone.
fn lone_function(number: u32) -> Result<Btf, Error> {
    let strings = format!("\0{ITERATOR}\0x\0");
    let (function, other) = (1, 2 + ITERATOR.len() as u32);
    let types = number as usize * TYPE;
    let mut bytes = Vec::with_capacity(HEADER + types + strings.len());
    let header = [u32::from(MAGIC) | 1 << 16, HEADER as u32, 0, types as u32, types as u32, strings.len() as u32];
    bytes.extend(header.into_iter().flat_map(u32::to_ne_bytes));
    for _ in 1..number {
        bytes.extend([other, kind::FWD << 24, 0].into_iter().flat_map(u32::to_ne_bytes));
    }
    bytes.extend([function, kind::FUNC << 24, 1].into_iter().flat_map(u32::to_ne_bytes));
    bytes.extend(strings.as_bytes());
    Ok(Btf::parse(&bytes, Endianness::default())?)
}

#[cfg(test)]
mod tests;
