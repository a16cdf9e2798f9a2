//! Sizes of the terminal: JSON objects one after the other, `{"Width":80,"Height":24}`.

use serde::Deserialize;

/// Most bytes of an object.
const LIMIT: usize = 1024;

#[derive(Deserialize)]
struct Size {
    #[serde(default, rename = "Width", alias = "width")]
    width: u16,
    #[serde(default, rename = "Height", alias = "height")]
    height: u16,
}

/// Reads them from a stream that may cut them anywhere.
#[derive(Debug, Default)]
pub(super) struct Reader {
    text: Vec<u8>,
    /// Something else came: no further one is read, as the Go server does.
    broken: bool,
}

impl Reader {
    /// The last whole size (width, height) that `bytes` ends, if any.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Option<(u16, u16)> {
        let mut last = None;
        while !self.broken && !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(LIMIT));
            bytes = rest;
            self.text.extend_from_slice(piece);
            let mut sizes = serde_json::Deserializer::from_slice(&self.text).into_iter::<Size>();
            let mut read = 0;
            loop {
                match sizes.next() {
                    Some(Ok(size)) => {
                        last = Some((size.width, size.height));
                        read = sizes.byte_offset();
                    }
                    Some(Err(error)) if !error.is_eof() => {
                        self.broken = true;
                        break;
                    }
                    Some(Err(_)) => break,
                    None => {
                        read = self.text.len();
                        break;
                    }
                }
            }
            self.text.drain(..read);
            if self.text.len() > LIMIT {
                self.broken = true;
            }
        }
        if self.broken {
            self.text = Vec::new();
        }
        last
    }
}

/// The text of one size, as the Go client writes it.
pub(super) fn write(width: u16, height: u16) -> Vec<u8> {
    format!("{{\"Width\":{width},\"Height\":{height}}}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_of_several_counts() {
        let mut reader = Reader::default();
        let text = [write(80, 24), write(100, 30)].concat();
        assert_eq!(reader.read(&text), Some((100, 30)));
        assert_eq!(reader.read(br#"{"Height":5} {"Wid"#), Some((0, 5)));
        assert_eq!(reader.read(br#"th":7}"#), Some((7, 0)));
        assert_eq!(reader.read(b"\n"), None);
    }

    #[test]
    fn what_is_no_size_ends_the_reading() {
        for wrong in ["x", "null", r#"{"Width":70000}"#, r#"{"Width":-1}"#] {
            let mut reader = Reader::default();
            assert_eq!(reader.read(wrong.as_bytes()), None);
            assert_eq!(reader.read(&write(1, 1)), None, "{wrong}");
        }
        let mut reader = Reader::default();
        for _ in 0..100 {
            assert_eq!(reader.read(br#"{"Width":1,"x":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"#), None);
            assert!(reader.text.len() <= 2 * LIMIT);
        }
        assert!(reader.broken);
    }

    proptest! {
        #[test]
        fn sizes_survive_being_cut(sizes in prop::collection::vec(any::<(u16, u16)>(), 1..20), cut in 1usize..60) {
            let text: Vec<u8> = sizes.iter().flat_map(|(w, h)| write(*w, *h)).collect();
            let mut reader = Reader::default();
            let last = text.chunks(cut).filter_map(|piece| reader.read(piece)).last();
            prop_assert_eq!(last, sizes.last().copied());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut reader = Reader::default();
            let _ = reader.read(&bytes);
        }
    }
}
