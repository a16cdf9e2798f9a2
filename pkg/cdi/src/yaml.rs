//! YAML into a tree: one document, no more of it than a budget allows.
//!
//! Anchors may be used; what an alias stands for counts each time, so that a small file cannot
//! become a large tree. Tags are refused, but for those of text and numbers (`!!str`), which mean
//! that what looks like a number is none, or is one.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

use crate::node::{DEEPEST, Node};

/// How many lists, maps and scalars a document may have.
const MOST: usize = 200_000;

/// The tree of a document.
pub(crate) fn read(text: &str) -> Result<Node, String> {
    let mut reader =
        Reader { parser: Parser::new_from_str(text), anchors: BTreeMap::new(), left: MOST };
    let mut document = None;
    loop {
        match reader.next()? {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if document.is_some() => return Err("there is more than one document".into()),
            event => document = Some(reader.node(event, 0)?),
        }
    }
    document.ok_or_else(|| "there is nothing in it".into())
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// What was named, with the number of nodes in it.
    anchors: BTreeMap<usize, (Node, usize)>,
    left: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.parser.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(e)) => Err(e.to_string()),
            None => Ok(Event::StreamEnd),
        }
    }

    fn spend(&mut self, count: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(count).ok_or("it has too many parts")?;
        Ok(())
    }

    /// The node that an event begins.
    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, String> {
        if depth > DEEPEST {
            return Err("it is too deep".into());
        }
        let before = self.left;
        self.spend(1)?;
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = match tag_of(tag.as_deref())? {
                    Some("str") => false,
                    Some(_) => true,
                    None => style == ScalarStyle::Plain,
                };
                (anchor, Node::Scalar { text: text.into_owned(), plain })
            }
            Event::SequenceStart(anchor, tag) => {
                tag_of(tag.as_deref())?;
                (anchor, Node::List(self.list(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                tag_of(tag.as_deref())?;
                (anchor, Node::Map(self.map(depth)?))
            }
            Event::Alias(of) => {
                let (node, size) = self.anchors.get(&of).ok_or("an alias of nothing")?;
                let (node, size) = (node.clone(), *size);
                self.spend(size)?;
                (0, node)
            }
            _ => return Err("it ends too early".into()),
        };
        if anchor != 0 {
            // Kept as a copy, which counts, too.
            let size = before - self.left;
            self.spend(size)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, String> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(list),
                event => list.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(String, Node)>, String> {
        let mut map = Vec::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(map),
                event => self.node(event, depth + 1)?,
            };
            let Node::Scalar { text: key, .. } = key else {
                return Err("a list or map is no name of a field".into());
            };
            if key == "<<" {
                return Err("merged maps (`<<`) are not taken".into());
            }
            let event = self.next()?;
            map.push((key, self.node(event, depth + 1)?));
        }
    }
}

fn tag_of(tag: Option<&Tag>) -> Result<Option<&str>, String> {
    match tag {
        None => Ok(None),
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(Some("str")),
        Some(tag)
            if tag.is_yaml_core_schema()
                && ["str", "int", "bool", "null", "seq", "map"].contains(&tag.suffix.as_str()) =>
        {
            Ok(Some(&tag.suffix))
        }
        Some(tag) => Err(format!("unknown tag {tag}")),
    }
}
