//! Reading the logs of containers.

use std::fs;
use std::path::Path;

/// The lines of a log in the CRI's format, partial ones joined; each as stream and text.
pub fn lines(path: &Path) -> Vec<(String, String)> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => panic!("{}: {e}", path.display()),
    };
    // What is being written at this moment is no line yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in whole.lines() {
        let mut fields = line.splitn(4, ' ');
        let (time, stream) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (tag, text) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        assert!(time.starts_with("20") && ["P", "F"].contains(&tag), "not a log line: {line:?}");
        match lines.last_mut() {
            Some(last) if open => last.1.push_str(text),
            _ => lines.push((stream.to_owned(), text.to_owned())),
        }
        open = tag == "P";
    }
    lines
}

/// The numbers of the lines that read `line N`.
pub fn numbers(path: &Path) -> Vec<u64> {
    let lines = lines(path);
    lines.iter().filter_map(|(_, text)| text.strip_prefix("line ")?.parse().ok()).collect()
}
