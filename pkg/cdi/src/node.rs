//! A document as a tree, and its way into a type.
//!
//! ```text
//!  JSON ──serde_json──┐
//!  YAML ──yaml::read──┴──► Node ──Deserialize──► a struct of crate::spec
//! ```
//! The rules are those of the interface's own library, which reads both with one parser and knows
//! what type a field has: a number where text is wanted is text (`name: 0`), `null` is the type's
//! default, and the case of a field's name does not count. A field given twice, and one that is not
//! known, are errors.

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

/// How deep a document may be.
pub(crate) const DEEPEST: usize = 32;

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// Text; `plain` if it may be a number, a truth value or nothing.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// Fields in order, which may come twice.
    Map(Vec<(String, Node)>),
}

impl Node {
    fn plain(text: impl Into<String>) -> Node {
        Node::Scalar { text: text.into(), plain: true }
    }

    /// The value that the tree describes.
    pub(crate) fn value_as<T: DeserializeOwned>(&self) -> Result<T, Wrong> {
        T::deserialize(self)
    }

    fn is_null(&self) -> bool {
        let nothing = ["", "~", "null", "Null", "NULL"];
        matches!(self, Node::Scalar { text, plain: true } if nothing.contains(&text.as_str()))
    }

    fn wrong(&self, wanted: &'static str) -> Wrong {
        Wrong(match self {
            Node::Scalar { text, .. } => {
                let text: String = text.chars().take(64).collect();
                format!("{text:?} is no {wanted}")
            }
            Node::List(_) => format!("a list is no {wanted}"),
            Node::Map(_) => format!("a map is no {wanted}"),
        })
    }

    /// Decimal, or with the prefixes of both versions of YAML.
    fn integer(&self) -> Result<i64, Wrong> {
        let wrong = || self.wrong("whole number");
        let Node::Scalar { text, plain: true } = self else { return Err(wrong()) };
        let (negative, digits) = match text.strip_prefix(['-', '+']) {
            Some(rest) => (text.starts_with('-'), rest),
            None => (false, text.as_str()),
        };
        let (radix, digits) = match digits.as_bytes() {
            [b'0', b'x', ..] => (16, &digits[2..]),
            [b'0', b'o', ..] => (8, &digits[2..]),
            [b'0', b'b', ..] => (2, &digits[2..]),
            [b'0', _, ..] => (8, &digits[1..]),
            _ => (10, digits),
        };
        if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let value = i64::from_str_radix(digits, radix).map_err(|_| wrong())?;
        Ok(if negative { -value } else { value })
    }
}

/// Why a tree is not what is wanted. The path to the field is put before it on the way out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong(pub(crate) String);

impl Wrong {
    fn within(self, place: &str) -> Wrong {
        let joint = if self.0.starts_with(['.', '[']) { "" } else { ": " };
        Wrong(format!("{place}{joint}{}", self.0))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.strip_prefix('.').unwrap_or(&self.0))
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(text: T) -> Wrong {
        Wrong(text.to_string())
    }
}

/// A JSON document, with fields that come twice.
impl<'de> serde::Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Node, D::Error> {
        struct Json;
        impl<'de> Visitor<'de> for Json {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::plain("null"))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
                Ok(Node::plain(v.to_string()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
                Ok(Node::plain(v.to_string()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
                Ok(Node::plain(v.to_string()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
                Ok(Node::plain(v.to_string()))
            }
            fn visit_str<E>(self, v: &str) -> Result<Node, E> {
                Ok(Node::Scalar { text: v.to_owned(), plain: false })
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(node) = from.next_element()? {
                    list.push(node);
                }
                Ok(Node::List(list))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut from: A) -> Result<Node, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = from.next_entry()? {
                    map.push(entry);
                }
                Ok(Node::Map(map))
            }
        }
        from.deserialize_any(Json)
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self {
            Node::Scalar { .. } => self.deserialize_str(visitor),
            Node::List(_) => self.deserialize_seq(visitor),
            Node::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self {
            _ if self.is_null() => visitor.visit_borrowed_str(""),
            Node::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            _ => Err(self.wrong("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_str(visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_i64(if self.is_null() { 0 } else { self.integer()? })
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let Node::Scalar { text, plain: true } = self else {
            return Err(self.wrong("truth value"));
        };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => visitor.visit_bool(true),
            "false" | "no" | "off" | "n" => visitor.visit_bool(false),
            _ if self.is_null() => visitor.visit_bool(false),
            _ => Err(self.wrong("truth value")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self {
            Node::List(list) => visitor.visit_seq(Elements(list.iter(), 0)),
            _ if self.is_null() => visitor.visit_seq(Elements([].iter(), 0)),
            _ => Err(self.wrong("list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self {
            Node::Map(map) => visitor.visit_map(Fields::new(map, known)?),
            _ if self.is_null() => visitor.visit_map(Fields::new(&[], known)?),
            _ => Err(self.wrong("map")),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u64 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct
        tuple tuple_struct enum identifier ignored_any
    }
}

struct Elements<'de>(std::slice::Iter<'de, Node>, usize);

impl<'de> de::SeqAccess<'de> for Elements<'de> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Wrong> {
        let Some(node) = self.0.next() else { return Ok(None) };
        self.1 += 1;
        seed.deserialize(node).map(Some).map_err(|e| e.within(&format!("[{}]", self.1 - 1)))
    }
}

struct Fields<'de> {
    rest: std::vec::IntoIter<(&'de str, &'de Node)>,
    value: Option<(&'de str, &'de Node)>,
}

impl<'de> Fields<'de> {
    fn new(map: &'de [(String, Node)], known: &'static [&'static str]) -> Result<Self, Wrong> {
        let named = |key: &'de str| -> &'de str {
            known.iter().find(|k| k.eq_ignore_ascii_case(key)).copied().unwrap_or(key)
        };
        let fields: Vec<_> = map.iter().map(|(key, node)| (named(key), node)).collect();
        let mut names: Vec<&str> = fields.iter().map(|(key, _)| *key).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Wrong(format!("{:?} is given twice", twice[0])));
        }
        Ok(Fields { rest: fields.into_iter(), value: None })
    }
}

impl<'de> de::MapAccess<'de> for Fields<'de> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Wrong> {
        self.value = self.rest.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        seed.deserialize(de::value::BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Wrong> {
        let (key, node) = self.value.take().ok_or_else(|| Wrong("a value without a key".into()))?;
        seed.deserialize(node).map_err(|e| e.within(&format!(".{key}")))
    }
}
