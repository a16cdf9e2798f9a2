//! Tests of the decoder: the examples of RFC 7541 appendix C, hostile blocks, and another
//! implementation's encoder.

use httlib_hpack::Encoder;
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 20;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks_exact(2).map(|d| u8::try_from(d[0] << 4 | d[1]).unwrap()).collect()
}

#[track_caller]
fn check(decoder: &mut Decoder, block: &str, fields: &[(&str, &str)]) {
    let decoded = decoder.decode(&hex(block), LIMIT).unwrap();
    let decoded: Vec<_> = decoded
        .iter()
        .map(|f| (str::from_utf8(&f.name).unwrap(), str::from_utf8(&f.value).unwrap()))
        .collect();
    assert_eq!(decoded, fields);
}

fn fails(block: &[u8]) -> Error {
    Decoder::new().decode(block, LIMIT).unwrap_err()
}

#[test]
fn appendix_c2_single_fields() {
    let custom = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(&mut Decoder::new(), custom, &[("custom-key", "custom-header")]);
    check(&mut Decoder::new(), "040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")]);
    check(&mut Decoder::new(), "82", &[(":method", "GET")]);
    let secret = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    let fields = Decoder::new().decode(&secret, LIMIT).unwrap();
    let field = Field { name: "password".into(), value: "secret".into(), sensitive: true };
    assert_eq!(fields, [field]);
}

#[test]
fn appendix_c4_requests_in_huffman_code() {
    let mut d = Decoder::new();
    let authority = (":authority", "www.example.com");
    check(
        &mut d,
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), authority],
    );
    check(
        &mut d,
        "8286 84be 5886 a8eb 1064 9cbf",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            authority,
            ("cache-control", "no-cache"),
        ],
    );
    check(
        &mut d,
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        &[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            authority,
            ("custom-key", "custom-value"),
        ],
    );
}

/// Three responses over a table of 256 bytes, which evicts.
#[test]
fn appendix_c6_eviction() {
    let mut d = Decoder::new();
    let private = ("cache-control", "private");
    let date = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    let location = ("location", "https://www.example.com");
    check(
        &mut d,
        "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
         2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        &[(":status", "302"), private, date, location],
    );
    check(&mut d, "4883 640e ffc1 c0bf", &[(":status", "307"), private, date, location]);
    check(
        &mut d,
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7
         821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed
         4ee5 b106 3d50 07",
        &[
            (":status", "200"),
            private,
            ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            location,
            ("content-encoding", "gzip"),
            ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
        ],
    );
}

#[test]
fn appendix_c1_integers() {
    assert_eq!(Input(&hex("0a")).integer(5), Ok(10));
    assert_eq!(Input(&hex("1f9a0a")).integer(5), Ok(1337));
    assert_eq!(Input(&hex("2a")).integer(8), Ok(42));
    assert_eq!(Input(&hex("1f00")).integer(5), Ok(31));
    assert_eq!(Input(&hex("1f808000")).integer(5), Ok(31));
    assert_eq!(Input(&hex("1f80808080")).integer(5), Err(Error::Integer));
    assert_eq!(Input(&hex("1fffffff7f")).integer(5), Ok(31 + (1 << 28) - 1));
    assert_eq!(Input(&hex("1fffffff")).integer(5), Err(Error::Truncated));
}

#[test]
fn hostile_blocks() {
    assert_eq!(fails(&hex("80")), Error::Index(0));
    assert_eq!(fails(&hex("be")), Error::Index(62));
    assert_eq!(fails(&hex("7e 0161")), Error::Index(62), "a literal's name");
    assert_eq!(fails(&hex("ffffffffffff7f")), Error::Integer);
    assert_eq!(fails(&hex("40 05 61")), Error::Truncated, "a name");
    assert_eq!(fails(&hex("40 01 61")), Error::Truncated, "no value");
    assert_eq!(fails(&hex("40 7fffffff7f 61")), Error::Truncated, "a length of 256 MiB");
    assert_eq!(fails(&hex("82 20")), Error::LateSize);
    assert_eq!(fails(&hex("3fe2ff03")), Error::TableSize(MAX_TABLE_SIZE + 1));
    assert!(Decoder::new().decode(&hex("3fe1ff03"), LIMIT).unwrap().is_empty());
    // A byte of zeros is the end of no symbol: '0' and the beginning of another.
    assert_eq!(fails(&hex("41 81 00")), Error::Huffman);
    // A whole byte of padding, and the end of a string.
    assert_eq!(fails(&hex("41 82 0fff")), Error::Huffman);
    assert_eq!(fails(&hex("41 84 ffffffff")), Error::Huffman);
}

/// A block of a few bytes that names a large entry again and again.
#[test]
fn a_small_block_does_not_make_a_large_list() {
    let mut d = Decoder::new();
    let mut small = hex("40 01 61");
    length(4000, &mut small);
    small.extend(vec![b'x'; 4000]);
    small.extend(vec![0xbe; 1000]);
    assert_eq!(d.decode(&small, 64 * 1024), Err(Error::ListTooLarge));
    // The same with room enough, so that the limit was what stopped it.
    assert_eq!(Decoder::new().decode(&small, 8 << 20).unwrap().len(), 1001);
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut d = Decoder::new();
    d.decode(&hex("40 01 61 01 62"), LIMIT).unwrap();
    assert!(d.decode(&hex("be"), LIMIT).is_ok());
    let mut large = hex("40 01 61");
    length(5000, &mut large);
    large.extend(vec![b'x'; 5000]);
    assert_eq!(d.decode(&large, LIMIT).unwrap().len(), 1);
    assert_eq!(d.decode(&hex("be"), LIMIT), Err(Error::Index(62)));
}

#[test]
fn a_size_of_nothing_keeps_nothing() {
    let mut d = Decoder::new();
    d.decode(&hex("20 40 01 61 01 62"), LIMIT).unwrap();
    assert_eq!(d.decode(&hex("be"), LIMIT), Err(Error::Index(62)));
}

/// Every symbol, by the other implementation's table.
#[test]
fn every_byte_in_huffman_code() {
    for byte in 0..=255u8 {
        let value = [byte, b'0', byte];
        let mut block = Vec::new();
        let flags = Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE;
        Encoder::default().encode((b"x".to_vec(), value.to_vec(), flags), &mut block).unwrap();
        let fields = Decoder::new().decode(&block, LIMIT).unwrap();
        assert_eq!(fields[0].value, value[..], "{byte}");
    }
}

fn a_list() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>, u8)>> {
    let name = prop_oneof![
        proptest::sample::select(vec![&b":authority"[..], b":path", b"te", b"grpc-timeout", b"x"])
            .prop_map(<[u8]>::to_vec),
        proptest::collection::vec(b'a'..=b'z', 1..40),
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        proptest::sample::select(vec![&b"one"[..], b"two", b"", b"three"]).prop_map(<[u8]>::to_vec),
    ];
    proptest::collection::vec((name, value, 0..8u8), 0..20)
}

proptest! {
    /// What another implementation encodes, with its table, over several blocks.
    #[test]
    fn another_encoder_is_understood(lists in proptest::collection::vec(a_list(), 1..6)) {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new());
        for list in lists {
            let mut block = Vec::new();
            for (name, value, flags) in &list {
                let flags = flags | Encoder::BEST_FORMAT;
                encoder.encode((name.clone(), value.clone(), flags), &mut block).unwrap();
            }
            let fields = decoder.decode(&block, LIMIT).unwrap();
            prop_assert_eq!(fields.len(), list.len());
            for (field, (name, value, _)) in fields.iter().zip(&list) {
                prop_assert_eq!(&field.name[..], &name[..]);
                prop_assert_eq!(&field.value[..], &value[..]);
            }
        }
    }

    /// What is written as literals is read as what it was.
    #[test]
    fn literals_come_back(
        name in proptest::collection::vec(any::<u8>(), 0..300),
        value in proptest::collection::vec(any::<u8>(), 0..20000),
        sensitive: bool,
    ) {
        let field = Field { name: name.into(), value: value.into(), sensitive };
        let mut block = Vec::new();
        literal(&field, &mut block);
        prop_assert_eq!(Decoder::new().decode(&block, LIMIT).unwrap(), [field]);
    }

    /// Any bytes give fields within the limit, or an error.
    #[test]
    fn any_bytes_end(blocks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..200), 1..5))
    {
        let mut decoder = Decoder::new();
        for block in blocks {
            if let Ok(fields) = decoder.decode(&block, 1000) {
                let size: usize =
                    fields.iter().map(|f| f.name.len() + f.value.len() + OVERHEAD).sum();
                prop_assert!(size <= 1000);
            }
        }
    }
}
