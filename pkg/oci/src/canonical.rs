//! JSON in one form only: object keys sorted, the members of the capability sets sorted.
//!
//! Nothing else is sorted: elsewhere in a spec the order of a list is its meaning.

use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;

/// Writes a value as JSON whose bytes depend on the value alone.
///
/// `serde_json::Value` keeps objects in a `BTreeMap` (this crate must not be built with
/// `preserve_order`; a test would fail), and lists of strings under a `capabilities` object are
/// sorted, as they are sets.
///
/// # Errors
/// [`Error::Json`].
pub fn canonical<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value).map_err(|source| Error::Json { source })?;
    sort_sets(&mut value);
    serde_json::to_vec(&value).map_err(|source| Error::Json { source })
}

/// Sorts the five lists of `process.capabilities`, wherever the process object starts.
fn sort_sets(value: &mut Value) {
    for pointer in ["/process/capabilities", "/capabilities"] {
        if let Some(Value::Object(sets)) = value.pointer_mut(pointer) {
            for set in sets.values_mut() {
                if let Value::Array(names) = set {
                    names.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashMap;

    #[test]
    fn maps_and_sets_are_sorted_and_lists_are_not() {
        let map: HashMap<String, u32> = (0..50).map(|n| (format!("k{n:02}"), n)).collect();
        let bytes = canonical(&map).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let keys: Vec<_> = text.split('"').skip(1).step_by(2).collect();
        assert!(keys.is_sorted(), "{text}");

        let spec =
            json!({"process": {"capabilities": {"bounding": ["B", "A"]}, "args": ["b", "a"]}});
        assert_eq!(
            String::from_utf8(canonical(&spec).unwrap()).unwrap(),
            r#"{"process":{"args":["b","a"],"capabilities":{"bounding":["A","B"]}}}"#
        );
    }
}
