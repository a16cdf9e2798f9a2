//! HPACK: the decoder of header blocks, and the one encoding that needs no table.
//!
//! Written here because it is small, and because what eats foreign bytes must be bounded: every
//! length is checked against what has come, and a header list against a limit while it grows.
//!
//! ```text
//! 1iiiiiii                    field of the table
//! 01iiiiii [name] value       literal, enters the table
//! 001sssss                    the table's new size, only at the beginning of a block
//! 0001iiii [name] value       literal, never to enter any table
//! 0000iiii [name] value       literal, does not enter the table
//! ```
//!
//! A name stands there only where its index i is 0. A string is `Hlllllll` and l bytes, which are
//! in the Huffman code if H is set.

mod huffman;
mod table;

use bytes::Bytes;
use table::{OVERHEAD, Table};

/// The largest dynamic table that a client's encoder may take, in bytes as RFC 7541 §4.1 counts.
pub const MAX_TABLE_SIZE: usize = 64 * 1024;

/// Why a header block cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("it ends within a field")]
    Truncated,
    #[error("a number in it is too large")]
    Integer,
    #[error("it names entry {0} of the table, which there is not")]
    Index(usize),
    #[error("a string in it is no Huffman code")]
    Huffman,
    #[error("it sets the table's size to {0}, more than {MAX_TABLE_SIZE}")]
    TableSize(usize),
    #[error("it sets the table's size behind a field")]
    LateSize,
    #[error("its fields are too large together")]
    ListTooLarge,
}

/// One header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Bytes,
    pub(crate) value: Bytes,
    /// It must not enter a table on any hop.
    pub(crate) sensitive: bool,
}

/// Decodes the header blocks of one direction of a connection, all of them and in their order.
/// After an error its table is no longer the encoder's.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { table: Table::new() }
    }

    /// Decodes a whole block. `limit` bounds the sum of names, values and 32 for each field.
    pub(crate) fn decode(&mut self, block: &[u8], limit: usize) -> Result<Vec<Field>, Error> {
        let mut input = Input(block);
        let mut fields = Vec::new();
        let mut size = 0;
        while let Some(&first) = input.0.first() {
            let field = if first & 0x80 != 0 {
                let index = input.integer(7)?;
                let (name, value) = self.table.get(index).ok_or(Error::Index(index))?;
                Field { name, value, sensitive: false }
            } else if first & 0x40 != 0 {
                let field = self.literal(&mut input, 6)?;
                self.table.insert(field.name.clone(), field.value.clone());
                field
            } else if first & 0x20 != 0 {
                if !fields.is_empty() {
                    return Err(Error::LateSize);
                }
                let capacity = input.integer(5)?;
                if capacity > MAX_TABLE_SIZE {
                    return Err(Error::TableSize(capacity));
                }
                self.table.resize(capacity);
                continue;
            } else {
                let sensitive = first & 0x10 != 0;
                Field { sensitive, ..self.literal(&mut input, 4)? }
            };
            size += field.name.len() + field.value.len() + OVERHEAD;
            if size > limit {
                return Err(Error::ListTooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Result<Field, Error> {
        let name = match input.integer(prefix)? {
            0 => input.string()?,
            index => self.table.get(index).ok_or(Error::Index(index))?.0,
        };
        Ok(Field { name, value: input.string()?, sensitive: false })
    }
}

/// What is left of a block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Error> {
        let (&byte, rest) = self.0.split_first().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// An integer whose first bits are the last `prefix` ones of a byte (RFC 7541 §5.1). At most
    /// 2^28 and a byte: four bytes may follow the first.
    fn integer(&mut self, prefix: u32) -> Result<usize, Error> {
        let all = (1 << prefix) - 1;
        let mut value = usize::from(self.byte()?) & all;
        if value < all {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Integer)
    }

    fn string(&mut self) -> Result<Bytes, Error> {
        let huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let bytes = self.bytes(length)?;
        if huffman {
            huffman::decode(bytes).map(Bytes::from).ok_or(Error::Huffman)
        } else {
            Ok(Bytes::copy_from_slice(bytes))
        }
    }
}

/// Appends a field as a literal that enters no table.
pub(crate) fn literal(field: &Field, out: &mut Vec<u8>) {
    out.push(if field.sensitive { 0x10 } else { 0 });
    for part in [&field.name, &field.value] {
        length(part.len(), out);
        out.extend_from_slice(part);
    }
}

/// Appends a string's length, without the Huffman bit.
#[allow(clippy::cast_possible_truncation)] // What is cast has been made to fit.
fn length(length: usize, out: &mut Vec<u8>) {
    let Some(mut rest) = length.checked_sub(0x7f) else {
        out.push(length as u8);
        return;
    };
    out.push(0x7f);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests;
