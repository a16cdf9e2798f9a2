//! Headers as other programs write them, and bytes that no program would.

use proptest::prelude::*;

use super::header::{Pax, number, parse_pax};
use super::*;

fn read_all(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(header) = archive.next()? {
        let mut data = Vec::new();
        loop {
            let chunk = archive.chunk()?;
            if chunk.is_empty() {
                break;
            }
            data.extend_from_slice(chunk);
            let taken = chunk.len();
            archive.consume(taken);
        }
        entries.push((header, data));
    }
    Ok(entries)
}

fn block(kind: u8, name: &str, size: u64, ustar: bool) -> tar::Header {
    let mut header = if ustar { tar::Header::new_ustar() } else { tar::Header::new_gnu() };
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

fn padded(header: &tar::Header, data: &[u8]) -> Vec<u8> {
    let mut bytes = [header.as_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

#[test]
fn numbers() {
    assert_eq!(number(b"0000644\0"), Some(0o644));
    assert_eq!(number(b"   644 \0"), Some(0o644));
    assert_eq!(number(b"77777777"), Some(0o7777_7777));
    assert_eq!(number(b"\0\0\0\0"), Some(0));
    assert_eq!(number(b"    "), Some(0));
    assert_eq!(number(b"12x\0"), None);
    assert_eq!(number(b"8\0"), None);
    assert_eq!(number(b"-1\0"), None);
    assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
    assert_eq!(number(&[0x80, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]), Some(u64::MAX));
    assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(number(&[0xff; 12]), None);
    assert_eq!(number(b""), None);
}

#[test]
fn times_before_1970() {
    let mut header = block(b'0', "f", 0, false);
    header.as_old_mut().mtime = [0xff; 12];
    header.set_cksum();
    let entries = read_all(header.as_bytes()).unwrap();
    assert_eq!(entries[0].0.mtime, (-1, 0));
}

#[test]
fn prefixes_of_ustar_names() {
    let mut header = block(b'0', "name", 0, true);
    header.as_ustar_mut().unwrap().prefix[..6].copy_from_slice(b"some/p");
    header.set_cksum();
    assert_eq!(read_all(header.as_bytes()).unwrap()[0].0.path, b"some/p/name");
}

#[test]
fn sizes_of_entries_without_data_are_ignored() {
    // The header after a symlink that claims a size follows at once.
    let mut bytes = block(b'2', "link", 700, false).as_bytes().to_vec();
    bytes.extend(padded(&block(b'0', "next", 2, false), b"hi"));
    let entries = read_all(&bytes).unwrap();
    assert_eq!(entries[0].0.size, 0);
    assert_eq!((&entries[1].0.path[..], &entries[1].1[..]), (&b"next"[..], &b"hi"[..]));
}

#[test]
fn pax_size_is_not_that_of_headers_between() {
    let pax = b"12 size=600\n";
    let mut bytes = padded(&block(b'x', "pax", pax.len() as u64, true), pax);
    bytes.extend(padded(&block(b'L', "long", 5, false), b"name\0"));
    bytes.extend(padded(&block(b'0', "short", 0, false), &[b'd'; 600]));
    let entries = read_all(&bytes).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].0.path[..], entries[0].1.len()), (&b"name"[..], 600));
}

#[test]
fn old_directories_end_in_a_slash() {
    let mut header = block(b'0', "old/", 0, true);
    assert_eq!(read_all(header.as_bytes()).unwrap()[0].0.kind, Kind::Regular);
    header.as_old_mut().linkflag = [0];
    header.set_cksum();
    assert_eq!(read_all(header.as_bytes()).unwrap()[0].0.kind, Kind::Directory);
}

#[test]
fn ends() {
    let file = padded(&block(b'0', "f", 3, true), b"abc");
    assert_eq!(read_all(b"").unwrap().len(), 0);
    assert_eq!(read_all(&file).unwrap().len(), 1);
    // Without the zeros after the data.
    assert_eq!(read_all(&file[..515]).unwrap().len(), 1);
    assert!(read_all(&file[..514]).is_err());
    assert!(read_all(&file[..100]).is_err());
    let zeros = [0u8; BLOCK];
    assert_eq!(read_all(&[&file[..], &zeros].concat()).unwrap().len(), 1);
    // What is after the end is not looked at.
    assert_eq!(read_all(&[&file[..], &zeros, &zeros, &[7; 600]].concat()).unwrap().len(), 1);
    assert!(read_all(&[&file[..], &zeros, &file].concat()).is_err());
    // Described, but not there.
    assert!(read_all(&padded(&block(b'L', "long", 5, false), b"name\0")).is_err());
}

#[test]
fn checksums_matter() {
    let mut bytes = block(b'0', "f", 0, true).as_bytes().to_vec();
    bytes[0] ^= 1;
    assert!(matches!(read_all(&bytes), Err(Error::Archive { offset: 0, .. })));
}

#[test]
fn old_sparse_files() {
    let mut header = block(b'S', "sparse", 4, false);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(2000);
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(1);
    gnu.set_is_extended(true);
    header.set_cksum();
    let mut more = tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(1000);
    more.sparse_mut()[0].set_length(3);
    let bytes = [&header.as_bytes()[..], more.as_bytes(), b"abcd"].concat();
    let entries = read_all(&bytes).unwrap();
    let sparse = entries[0].0.sparse.as_ref().unwrap();
    assert_eq!((sparse.size, &sparse.extents[..]), (2000, &[(0, 1), (1000, 3)][..]));
    assert_eq!(entries[0].1, b"abcd");
    // One byte more than the file has.
    more.sparse_mut()[0].set_offset(1998);
    let bytes = [&header.as_bytes()[..], more.as_bytes(), b"abcd"].concat();
    assert!(read_all(&bytes).is_err());
}

#[test]
fn maps_that_lie() {
    let sparse = |size, extents: &[(u64, u64)]| Sparse { size, extents: extents.to_vec() };
    assert!(check_sparse(&sparse(10, &[(0, 2), (5, 5)]), 7).is_ok());
    for (size, extents, data) in [
        (10, &[(5, 5), (0, 2)][..], 7),
        (10, &[(0, 6), (5, 5)], 11),
        (9, &[(5, 5)], 5),
        (10, &[(5, 5)], 6),
        (u64::MAX, &[(u64::MAX, 2)], 2),
        (u64::MAX, &[], 0),
    ] {
        assert!(check_sparse(&sparse(size, extents), data).is_err());
    }
}

#[test]
fn malformed_pax_headers() {
    for bad in [
        &b"5 a=\n"[..2],
        b"6 a=b",
        b"99 a=b\n",
        b"x a=b\n",
        b"6 a=bc\n",
        b"5 ab\n",
        b"0 a=b\n",
        b"2 a=b\n",
        b"99999999999999999999999 a=b\n",
        b"10 uid=-1\n",
        b"11 size=1x\n",
        b"12 mtime=.x\n",
    ] {
        assert!(parse_pax(bad, &mut Pax::default()).is_err(), "{:?}", String::from_utf8_lossy(bad));
    }
    let mut pax = Pax::default();
    parse_pax(b"7 uid=1\n7 uid=\n16 mtime=-0.250\n\0\0", &mut pax).unwrap_err();
    let mut pax = Pax::default();
    parse_pax(b"8 uid=1\n7 uid=\n16 mtime=-0.250\n\0\0", &mut pax).unwrap();
    assert_eq!((pax.uid, pax.mtime), (None, Some((-1, 750_000_000))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pax_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_pax(&bytes, &mut Pax::default());
    }

    /// Headers with right checksums and random fields, with anything between them.
    #[test]
    fn any_fields(
        headers in prop::collection::vec((any::<[u8; 32]>(), 0usize..480, "[0-7xgLKSV]"), 1..5),
        between in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        let mut bytes = Vec::new();
        for (noise, at, kind) in headers {
            let mut header = block(kind.as_bytes()[0], "name", 3, noise[0] & 1 == 0);
            header.as_mut_bytes()[at..at + 32].copy_from_slice(&noise);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&between);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        if let Ok(entries) = read_all(&bytes) {
            let total: usize = entries.iter().map(|(_, data)| data.len()).sum();
            prop_assert!(total <= bytes.len());
        }
    }

    /// What the reference writer writes is read back.
    #[test]
    fn round_trip(
        files in prop::collection::vec(("[a-z]{1,150}", prop::collection::vec(any::<u8>(), 0..2000)), 0..6),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o640);
            builder.append_data(&mut header, name, &data[..]).unwrap();
        }
        let entries = read_all(&builder.into_inner().unwrap()).unwrap();
        prop_assert_eq!(entries.len(), files.len());
        for ((header, data), (name, expected)) in entries.iter().zip(&files) {
            prop_assert_eq!(&header.path[..], name.as_bytes());
            prop_assert_eq!(data, expected);
        }
    }
}
