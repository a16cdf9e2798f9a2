//! `WWW-Authenticate`: what a registry wants to be shown (RFC 9110, section 11.6.1; the Docker
//! registry's token authentication for the parameters of `Bearer`).
//!
//! ```text
//!   header    = challenge *( "," challenge )
//!   challenge = scheme [ 1*SP ( token68 / param *( "," param ) ) ]
//!   param     = token "=" ( token / quoted-string )
//! ```
//!
//! The comma separates both challenges and parameters: after one, a token followed by `=` is a
//! parameter, any other begins a challenge.

/// One challenge. Schemes and parameter names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `bearer`, `basic`, …
    pub scheme: String,
    /// The parameters, in order.
    pub params: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter called `name` (lower case).
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Reads one header's value. What cannot be understood ends the list: the challenges before it are
/// returned.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut scanner = Scanner { rest: header };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        scanner.skip(|c| c == ',' || is_space(c));
        let Some(name) = scanner.token() else { return challenges };
        let at = scanner.rest;
        scanner.skip(is_space);
        if !challenges.is_empty() && scanner.rest.starts_with('=') {
            scanner.rest = &scanner.rest[1..];
            let Some(value) = scanner.value() else { return challenges };
            if let Some(last) = challenges.last_mut() {
                last.params.push((name.to_ascii_lowercase(), value));
            }
            continue;
        }
        if scanner.rest.starts_with('=') {
            return challenges;
        }
        challenges.push(Challenge { scheme: name.to_ascii_lowercase(), params: Vec::new() });
        // After the scheme and a space there may be a token68, which nothing here uses.
        if at.starts_with(is_space) {
            scanner.skip_token68();
        }
    }
}

fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(what);
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.rest.find(|c| !is_token(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    fn value(&mut self) -> Option<String> {
        self.skip(is_space);
        let Some(quoted) = self.rest.strip_prefix('"') else {
            return self.token().map(str::to_owned);
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                other => value.push(other),
            }
        }
        None
    }

    /// Passes over `token68 *"="` when it is followed by a comma or the end.
    fn skip_token68(&mut self) {
        let is68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let after = self.rest.trim_start_matches(is68);
        let ended = after.trim_start_matches('=').trim_start_matches(is_space);
        let some = after.len() < self.rest.len();
        // `name=` with nothing after it reads as both; as a parameter without value it is useless.
        if some && (ended.is_empty() || ended.starts_with(',')) {
            self.rest = ended;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn docker_hub() {
        let all = parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#,
        );
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].scheme, "bearer");
        assert_eq!(all[0].param("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(all[0].param("scope"), Some("repository:library/nginx:pull"));
        assert_eq!(all[0].param("error"), None);
    }

    #[test]
    fn several_and_odd() {
        let all = parse(
            r#"Negotiate, NTLM abc==, BASIC Realm = "a \"b\", c" , , Bearer realm=x,Error=insufficient_scope"#,
        );
        let schemes: Vec<&str> = all.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "ntlm", "basic", "bearer"]);
        assert_eq!(all[2].param("realm"), Some(r#"a "b", c"#));
        assert_eq!(all[3].param("error"), Some("insufficient_scope"));
        assert_eq!(parse("Basic").len(), 1);
        assert_eq!(
            parse("Basic realm=\"open"),
            [Challenge { scheme: "basic".into(), params: vec![] }]
        );
        for nothing in ["", ",", "=", "realm=x", "\"x\"", "é"] {
            assert_eq!(parse(nothing), [], "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(header in "\\PC{0,100}") {
            parse(&header);
        }

        #[test]
        fn quoted_round_trips(value in "[ -~]{0,40}", other in "[a-z]{1,8}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let all = parse(&format!("Bearer realm=\"{quoted}\", service={other}, Basic realm=z"));
            prop_assert_eq!(all.len(), 2);
            prop_assert_eq!(all[0].param("realm"), Some(value.as_str()));
            prop_assert_eq!(all[0].param("service"), Some(other.as_str()));
        }
    }
}
