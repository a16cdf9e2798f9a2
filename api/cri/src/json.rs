//! How single values are written in JSON where serde's way is not the protobuf JSON mapping's.
//!
//! build.rs names these functions in the attributes of the generated fields:
//!
//! ```text
//! enum            "SANDBOX_READY"   a number where the value has no name
//! int64, uint64   "1700000000"      a double would lose digits
//! bytes           "aGVsbG8="
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};

/// An enum that knows its values' names in the definition.
pub(crate) trait Named: TryFrom<i32> {
    /// The value's name.
    fn name(self) -> &'static str;
}

/// Writes an enum field.
pub(crate) fn enumeration<E: Named, S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
    match E::try_from(*value) {
        Ok(known) => to.serialize_str(known.name()),
        Err(_) => to.serialize_i32(*value),
    }
}

/// Writes a 64-bit integer field.
pub(crate) fn integer<I: ToString, S: Serializer>(value: &I, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

/// Writes a repeated 64-bit integer field.
pub(crate) fn integers<I: ToString, S: Serializer>(values: &[I], to: S) -> Result<S::Ok, S::Error> {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().serialize(to)
}

/// Writes a field of bytes.
pub(crate) fn bytes<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&STANDARD.encode(value))
}
