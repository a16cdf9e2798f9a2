//! Paths of containers, and what the mounts below them pass on.

use std::fs;
use std::path::Path;

use oci::Propagation;

/// A path of the container without `.`, `..` and doubled slashes, as text: nothing is resolved.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Whether the mount that `source` lies on passes on what the propagation promises.
pub(super) fn check_propagation(source: &Path, wanted: Propagation) -> Result<(), String> {
    if wanted == Propagation::Private {
        return Ok(());
    }
    let info = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let (shared, slave) = propagation_of(&info, source);
    match wanted {
        Propagation::Bidirectional if !shared => Err("is not on a shared mount".into()),
        Propagation::HostToContainer if !shared && !slave => {
            Err("is not on a shared or slave mount".into())
        }
        _ => Ok(()),
    }
}

/// Whether the mount that holds a path is shared, and whether it is a slave of another.
fn propagation_of(mountinfo: &str, path: &Path) -> (bool, bool) {
    let mut best = (0, (false, false));
    for line in mountinfo.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(point), Some(end)) = (fields.get(4), fields.iter().position(|f| *f == "-"))
        else {
            continue;
        };
        let point = unescape(point);
        // Of mounts on top of each other the later one holds.
        if path.starts_with(&point) && point.len() >= best.0 {
            let has = |word: &str| fields[6..end].iter().any(|f| f.starts_with(word));
            best = (point.len(), (has("shared:"), has("master:")));
        }
    }
    best.1
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |t, (code, c)| t.replace(code, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_text() {
        for (path, cleaned) in [("/a//b/../c/", "/a/c"), ("a/./b", "/a/b"), ("/../..", "/")] {
            assert_eq!(clean(path), cleaned);
        }
    }

    #[test]
    fn propagation_is_that_of_the_innermost_mount() {
        let info = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                    2 1 0:5 / /my\\040data rw - tmpfs t rw\n\
                    3 2 0:6 / /my\\040data/s rw master:7 - tmpfs t rw\n";
        let of = |path: &str| propagation_of(info, Path::new(path));
        assert_eq!(of("/etc"), (true, false));
        assert_eq!(of("/my data/x"), (false, false));
        assert_eq!(of("/my data/s/x"), (false, true));
    }
}
