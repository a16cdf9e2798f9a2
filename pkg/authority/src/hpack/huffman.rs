//! HPACK's Huffman code (RFC 7541 §5.2).
//!
//! The code is canonical: codes of one length are consecutive numbers in the order of their
//! symbols, and each length goes on where the one before it ended. So the lengths are the whole
//! code, and a code is known by its number's distance from the first of its length:
//!
//! ```text
//! length 5   00000 '0'  00001 '1' … 01001 't'
//! length 6   010100 ' ' …           (01001 + 1) with a 0 behind
//! ```

const SYMBOLS: usize = 257;
const EOS: u16 = 256;
const LONGEST: usize = 30;

/// The length of each symbol's code in bits; the last is the end of a string (RFC 7541,
/// appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Length {
    /// The first code.
    first: u32,
    /// How many there are.
    count: u32,
    /// Where their symbols begin in `Code::symbols`.
    at: u32,
}

struct Code {
    lengths: [Length; LONGEST + 1],
    symbols: [u16; SYMBOLS],
}

static CODE: Code = code();

#[allow(clippy::cast_possible_truncation)] // Nothing here is larger than 257.
const fn code() -> Code {
    let mut lengths = [Length { first: 0, count: 0, at: 0 }; LONGEST + 1];
    let mut symbols = [0; SYMBOLS];
    let (mut length, mut next, mut at) = (1, 0, 0);
    while length <= LONGEST {
        lengths[length] = Length { first: next, count: 0, at: at as u32 };
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u16;
                at += 1;
                next += 1;
                lengths[length].count += 1;
            }
            symbol += 1;
        }
        next <<= 1;
        length += 1;
    }
    Code { lengths, symbols }
}

/// Decodes a string; `None` if it has a code that there is not, or wrong padding.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    // The shortest code has five bits.
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut number, mut length) = (0u32, 0usize);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1)) {
        number = number << 1 | u32::from(bit);
        length += 1;
        let codes = CODE.lengths.get(length)?;
        let distance = number.wrapping_sub(codes.first);
        if distance < codes.count {
            let symbol = *CODE.symbols.get((codes.at + distance) as usize)?;
            // The end of a string is never written out: EOS is no byte.
            debug_assert!(symbol <= EOS);
            out.push(u8::try_from(symbol).ok()?);
            (number, length) = (0, 0);
        }
    }
    // What is left is the beginning of EOS, which is ones, and less than a byte.
    (length < 8 && number == (1 << length) - 1).then_some(out)
}
