//! The node's OCI hooks (`hooks_dir`), where their conditions hold for a container.

use oci::SpecInput;
use serde_json::Value;

use super::Request;
use crate::error::{Error, Kind, Result};

impl Request<'_> {
    /// Adds the node's hooks behind those that are there already.
    pub(super) fn add_hooks(&self, input: &mut SpecInput) -> Result<()> {
        if self.infra {
            return Ok(());
        }
        let mut annotations = self.config.annotations.clone();
        annotations.extend(self.pod.config.0.annotations.clone());
        let container = ::hooks::Container {
            annotations: &annotations,
            command: input.process.args.first().map_or("", String::as_str),
            bind_mounts: !self.config.mounts.is_empty(),
        };
        let failed = |source| Error::from(Kind::Hooks { id: self.id.to_owned(), source });
        let found = ::hooks::matching(&self.node.hooks_dir, &container).map_err(failed)?;
        if !found.is_empty() {
            // Names and texts alone: nothing in it cannot be written.
            let found = serde_json::to_value(&found).unwrap_or_default();
            input.hooks = Some(joined(input.hooks.take().unwrap_or_default(), found));
        }
        Ok(())
    }
}

/// The lists of two `hooks` objects, joined by their names.
fn joined(first: Value, then: Value) -> Value {
    match (first, then) {
        (Value::Object(mut all), Value::Object(more)) => {
            for (stage, hooks) in more {
                let there = all.remove(&stage).unwrap_or_default();
                all.insert(stage, joined(there, hooks));
            }
            Value::Object(all)
        }
        (Value::Array(mut all), Value::Array(more)) => {
            all.extend(more);
            Value::Array(all)
        }
        (first, Value::Null) => first,
        (_, then) => then,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_joined() {
        let both = joined(json!({"a": [1], "b": [2]}), json!({"b": [3], "c": [4]}));
        assert_eq!(both, json!({"a": [1], "b": [2, 3], "c": [4]}));
        assert_eq!(joined(Value::Null, json!({"a": [1]})), json!({"a": [1]}));
        assert_eq!(joined(json!({"a": [1]}), json!({})), json!({"a": [1]}));
    }
}
