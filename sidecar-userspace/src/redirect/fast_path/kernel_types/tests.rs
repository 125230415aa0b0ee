use super::*;

#[test]
fn the_running_kernel_shows_what_is_needed() {
    if !std::path::Path::new(PATH).exists() {
        // A kernel without BTF: then that is the answer.
        assert!(matches!(read(), Err(Error::Read(_))));
        return;
    }
    let KernelTypes { fields, .. } = read().unwrap();
    // A socket begins with the addresses of its connection; so it has been since 2.6.
    assert_eq!((fields.remote_v4, fields.local_v4), (0, 4), "{fields:?}");
    // The registers of x86-64 are pushed in an order that is ABI (ptrace(2)).
    assert_eq!((fields.syscall, fields.third, fields.fourth), (120, 96, 56), "{fields:?}");
    assert!(fields.write_seq > fields.ulp && fields.copied_seq > fields.ulp, "{fields:?}");
}

/// Types one after the other, each a list of words.
fn blob(types: &[&[u32]], strings: &str) -> Vec<u8> {
    let types: Vec<u8> = types.concat().into_iter().flat_map(u32::to_ne_bytes).collect();
    let length = types.len() as u32;
    let header = [u32::from(MAGIC) | 1 << 16, HEADER as u32, 0, length, length, strings.len() as u32];
    header.into_iter().flat_map(u32::to_ne_bytes).chain(types).chain(strings.bytes()).collect()
}

/// `a` is at 1, `b` at 3, `c` at 5.
const NAMES: &str = "\0a\0b\0c\0";

#[test]
fn members_are_found_behind_names_and_in_nameless_structures() {
    let word = kind::INT << 24;
    let structure = |members: u32| kind::STRUCT << 24 | members;
    let bytes = blob(
        &[
            &[0, word, 4, 32],
            // 2: struct { int b; int c; }
            &[0, structure(2), 8, 3, 1, 0, 5, 1, 32],
            // 3: typedef to it
            &[5, kind::TYPEDEF << 24, 2],
            // 4: struct a { int; struct { b, c }; typedef c; }
            &[1, structure(2), 16, 0, 2, 32, 5, 3, 96],
        ],
        NAMES,
    );
    let types = Types::index(&bytes).unwrap();
    assert_eq!(types.offset_of("a.b"), Some(4));
    // The nameless structure's comes first.
    assert_eq!(types.offset_of("a.c"), Some(8));
    assert_eq!(types.offset_of("a.b.c"), None);
    assert_eq!(types.offset_of("c.b"), None);
}

#[test]
fn what_is_no_type_information_is_refused() {
    let good = blob(&[&[0, kind::INT << 24, 4, 32]], NAMES);
    for cut in 0..good.len() {
        assert!(parse(&good[..cut]).is_err(), "{cut}");
    }
    let unknown = blob(&[&[0, 31 << 24, 4, 32]], NAMES);
    assert!(matches!(parse(&unknown), Err(Error::Format(_))));
    assert!(matches!(parse(&good), Err(Error::Missing(_))));
    // A structure that says that it has more members than there are bytes.
    let short = blob(&[&[1, kind::STRUCT << 24 | 9, 4]], NAMES);
    assert!(parse(&short).is_err());
}
