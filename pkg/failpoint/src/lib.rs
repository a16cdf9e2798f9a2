//! Points before and after durable steps, at which a test kills the program.
//!
//! ```text
//! step!("record: rename", fs::rename(a, b))
//!        │
//!        ├─ without the feature `enabled`: fs::rename(a, b)
//!        └─ with it: point "before record: rename" ─ fs::rename(a, b) ─ point "after record: rename"
//! ```
//! A step is whatever is still there when the process is not: a file, a mount, a control group, a
//! process, what another program was told. Its name is a literal and no other step's, so that the
//! list of all steps can be read from the sources.
//!
//! With the feature, the environment variable `FAILPOINTS` names a folder, in which
//!
//! | file   | what                                                                           |
//! |--------|--------------------------------------------------------------------------------|
//! | `hits` | gets a line `<pid> <when> <name>` for each point that is reached               |
//! | `kill` | lines `<n> <when> <name>`: at the n-th time that the first line's point is     |
//! |        | reached the line is taken off the file, and the process killed with SIGKILL    |
//!
//! `<when>` is `before` or `after`. Without the variable nothing is recorded and nobody killed.

#[cfg(feature = "enabled")]
mod enabled;

#[cfg(feature = "enabled")]
pub use enabled::hit;

/// A durable step: a name, and the expression that does it, whose value it has.
///
/// The expression should not leave the function (`?`, `return`): it would pass by the point after it.
#[cfg(not(feature = "enabled"))]
#[macro_export]
macro_rules! step {
    ($name:literal, $step:expr $(,)?) => {
        $step
    };
}

/// A durable step: a name, and the expression that does it, whose value it has.
///
/// The expression should not leave the function (`?`, `return`): it would pass by the point after it.
#[cfg(feature = "enabled")]
#[macro_export]
macro_rules! step {
    ($name:literal, $step:expr $(,)?) => {{
        $crate::hit("before", $name);
        let done = $step;
        $crate::hit("after", $name);
        done
    }};
}

#[cfg(all(test, not(feature = "enabled")))]
mod tests {
    #[test]
    fn without_the_feature_a_step_is_its_expression() {
        // A constant can call nothing that is not one.
        const NUMBER: u8 = step!("a step", 3 + 4);
        assert_eq!(NUMBER, 7);
    }
}
