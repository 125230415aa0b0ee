//! The one message of the SPIFFE Workload API that is read
//! (<https://github.com/spiffe/go-spiffe/blob/main/proto/spiffe/workload/workload.proto>), in protobuf's wire format.

/// `X509SVIDResponse`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    /// `svids = 1`; the first is the default identity.
    pub(super) svids: Vec<Svid>,
    /// `crl = 2`: DER.
    pub(super) crls: Vec<Vec<u8>>,
    /// `federated_bundles = 3`: trust domain's ID → DER certificates, one after the other.
    pub(super) federated: Vec<(String, Vec<u8>)>,
}

/// `X509SVID`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Svid {
    /// `x509_svid = 2`: DER certificates, leaf first.
    pub(super) chain: Vec<u8>,
    /// `x509_svid_key = 3`: PKCS #8.
    pub(super) key: Vec<u8>,
    /// `bundle = 4`: DER certificates.
    pub(super) bundle: Vec<u8>,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a response.
pub(super) fn response(message: &[u8]) -> Result<Response, Malformed> {
    let mut response = Response::default();
    each_field(message, |number, value| {
        match number {
            1 => response.svids.push(svid(value)?),
            2 => response.crls.push(value.to_vec()),
            3 => response.federated.push(entry(value)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(response)
}

fn svid(message: &[u8]) -> Result<Svid, Malformed> {
    let mut svid = Svid::default();
    each_field(message, |number, value| {
        match number {
            2 => svid.chain = value.to_vec(),
            3 => svid.key = value.to_vec(),
            4 => svid.bundle = value.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(svid)
}

/// An entry of a map: a message with `key = 1` and `value = 2`.
fn entry(message: &[u8]) -> Result<(String, Vec<u8>), Malformed> {
    let (mut key, mut value) = (String::new(), Vec::new());
    each_field(message, |number, bytes| {
        match number {
            1 => key = String::from_utf8(bytes.to_vec()).map_err(|_| Malformed)?,
            2 => value = bytes.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, value))
}

/// Calls `field` for each that has a length (wire type 2); the others are passed over.
fn each_field(mut rest: &[u8], mut field: impl FnMut(u64, &[u8]) -> Result<(), Malformed>) -> Result<(), Malformed> {
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            0 => {
                varint(&mut rest)?;
            }
            1 => {
                take(&mut rest, 8)?;
            }
            2 => {
                let length = varint(&mut rest)?;
                field(tag >> 3, take(&mut rest, length)?)?;
            }
            5 => {
                take(&mut rest, 4)?;
            }
            _ => return Err(Malformed),
        }
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    let (taken, left) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_response_is_read_and_fields_of_later_versions_are_passed_over() {
        let svid = [b"\x0a\x01x\x12\x02AB\x1a\x01K\x22\x03CCC\x2a\x01h".as_slice()].concat();
        let mut message = vec![0x0a, svid.len() as u8];
        message.extend(&svid);
        message.extend(b"\x12\x02RL\x1a\x07\x0a\x02td\x12\x01B\x28\x96\x01\x35aaaa\x31bbbbbbbb");
        let expected = Response {
            svids: vec![Svid { chain: b"AB".to_vec(), key: b"K".to_vec(), bundle: b"CCC".to_vec() }],
            crls: vec![b"RL".to_vec()],
            federated: vec![("td".into(), b"B".to_vec())],
        };
        assert_eq!(response(&message), Ok(expected));
    }

    #[test]
    fn lengths_beyond_the_end_are_refused() {
        for message in [b"\x0a".as_slice(), b"\x0a\x05ab", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b"]
        {
            assert_eq!(response(message), Err(Malformed), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = response(&message);
        }
    }
}
