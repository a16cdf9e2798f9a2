//! A step that failed, and why: for a log line, as nobody has a choice what to do about it.

/// What was being done, and what went wrong.
#[derive(Debug)]
pub(crate) struct Failed(&'static str, String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0, self.1)
    }
}

/// Names what is being done, should it fail.
pub(crate) fn step<T, E: std::fmt::Display>(
    what: &'static str,
    done: Result<T, E>,
) -> Result<T, Failed> {
    done.map_err(|e| Failed(what, e.to_string()))
}
