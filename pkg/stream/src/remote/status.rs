//! What is told on the error channel when a command has ended.
//!
//! With v4 and later a `metav1.Status` in JSON, before that plain text, and nothing where the command
//! succeeded:
//!
//! ```text
//! {"metadata":{},"status":"Success"}
//! {"metadata":{},"status":"Failure","message":"…","reason":"NonZeroExitCode",
//!  "details":{"causes":[{"reason":"ExitCode","message":"3"}]}}
//! {"metadata":{},"status":"Failure","message":"Internal error occurred: …",
//!  "reason":"InternalError","code":500}
//! ```

use super::Outcome;
use serde::{Deserialize, Serialize};

/// Most bytes of a failure's text that are sent.
const TEXT_LIMIT: usize = 4 * 1024;

const SUCCESS: &str = "Success";
const FAILURE: &str = "Failure";
const NON_ZERO: &str = "NonZeroExitCode";
const EXIT_CODE: &str = "ExitCode";

#[derive(Serialize, Deserialize, Default)]
struct Status {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
}

#[derive(Serialize, Deserialize, Default)]
struct Metadata {}

#[derive(Serialize, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Serialize, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// The text for the error channel: `json` with v4 and later.
pub(super) fn write(outcome: &Outcome, json: bool) -> Vec<u8> {
    let mut status = Status { status: FAILURE.to_owned(), ..Status::default() };
    match outcome {
        Outcome::Success | Outcome::Exit(0) => status.status = SUCCESS.to_owned(),
        Outcome::Exit(code) => {
            status.message = format!("command terminated with non-zero exit code: {code}");
            status.reason = NON_ZERO.to_owned();
            let cause = Cause { reason: EXIT_CODE.to_owned(), message: code.to_string() };
            status.details = Some(Details { causes: vec![cause] });
        }
        Outcome::Failure(text) => {
            let end = (0..=text.len().min(TEXT_LIMIT)).rfind(|at| text.is_char_boundary(*at));
            let text = &text[..end.unwrap_or_default()];
            status.message = format!("Internal error occurred: {text}");
            status.reason = "InternalError".to_owned();
            status.code = Some(500);
        }
    }
    if json {
        // Strings and numbers can always be written.
        serde_json::to_vec(&status).unwrap_or_default()
    } else {
        status.message.into_bytes()
    }
}

/// What the error channel told a client: all of its bytes, none where the server said nothing.
pub(super) fn read(text: &[u8], json: bool) -> Outcome {
    if text.is_empty() {
        return Outcome::Success;
    }
    let plain = || Outcome::Failure(String::from_utf8_lossy(text).into_owned());
    if !json {
        return plain();
    }
    let Ok(status) = serde_json::from_slice::<Status>(text) else { return plain() };
    match status.status.as_str() {
        SUCCESS => Outcome::Success,
        FAILURE if status.reason == NON_ZERO => status
            .details
            .iter()
            .flat_map(|d| &d.causes)
            .find(|c| c.reason == EXIT_CODE)
            .and_then(|c| c.message.parse().ok())
            .map_or_else(|| Outcome::Failure(status.message.clone()), Outcome::Exit),
        FAILURE => Outcome::Failure(status.message),
        _ => plain(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_told_as_client_go_reads_it() {
        let text = write(&Outcome::Exit(3), true);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["status"], "Failure");
        assert_eq!(value["reason"], "NonZeroExitCode");
        assert_eq!(value["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(value["details"]["causes"][0]["message"], "3");
        assert_eq!(write(&Outcome::Success, true), br#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(write(&Outcome::Exit(0), true), write(&Outcome::Success, true));
        let value: serde_json::Value =
            serde_json::from_slice(&write(&Outcome::Failure("no".to_owned()), true)).unwrap();
        assert_eq!(value["code"], 500);
        assert_eq!(value["message"], "Internal error occurred: no");
    }

    #[test]
    fn before_v4_only_failures_are_told() {
        assert_eq!(write(&Outcome::Success, false), b"");
        let text = write(&Outcome::Exit(7), false);
        assert_eq!(text, b"command terminated with non-zero exit code: 7");
        assert!(matches!(read(&text, false), Outcome::Failure(t) if t.ends_with("7")));
    }

    #[test]
    fn every_outcome_comes_back() {
        for outcome in [Outcome::Success, Outcome::Exit(1), Outcome::Exit(255)] {
            assert_eq!(read(&write(&outcome, true), true), outcome);
        }
        assert_eq!(read(b"", true), Outcome::Success);
        let failed = Outcome::Failure("Internal error occurred: x".to_owned());
        assert_eq!(read(&write(&Outcome::Failure("x".to_owned()), true), true), failed);
        for odd in ["{", "[]", "{}", r#"{"status":"Failure","reason":"NonZeroExitCode"}"#] {
            assert!(matches!(read(odd.as_bytes(), true), Outcome::Failure(_)), "{odd}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = write(&Outcome::Failure("ä".repeat(10_000)), false);
        assert!(text.len() <= TEXT_LIMIT + 32);
        assert!(String::from_utf8(text).unwrap().ends_with("ää"));
    }
}
