//! Durable steps are points of failure that tests know: whatever writes, mounts, kills or starts
//! something stands in a `step!("name", …)` of `pkg/failpoint`, or says why not.
//!
//! ```text
//! fs::rename(a, b)                          a finding
//! step!("record: rename", fs::rename(a, b)) a step
//! // no step: a start removes it, too.      on the line above, or the same one: none is needed
//! ```
//! Held to it are the crates that do the operations of the CRI. Names are one step's each, since a
//! test kills criod at every name, and reads from here which there are.

use crate::Finding;

/// The folders that are held to the rule.
pub const FOLDERS: [&str; 7] = [
    "criod/daemon/src/",
    "criod/images/src/",
    "pkg/cgroup/src/",
    "pkg/cni/src/",
    "pkg/hostport/src/",
    "pkg/namespace/src/",
    "pkg/storage/src/",
];

/// What below them is not, and why.
pub const ELSEWHERE: [(&str, &str); 11] = [
    ("criod/daemon/src/confine.rs", "profiles of the kernel's, loaded again by each start"),
    ("criod/daemon/src/exec.rs", "nobody repeats a command"),
    ("criod/daemon/src/features.rs", "asks a runtime"),
    ("criod/daemon/src/server.rs", "the socket, before anything is served"),
    ("criod/daemon/src/stats/", "reads"),
    ("criod/daemon/src/streaming", "connections are nobody's to repeat, and outlive criod"),
    ("pkg/cni/src/exec.rs", "the plugin's run is the step"),
    ("pkg/namespace/src/netlink.rs", "in a namespace that is not pinned yet"),
    ("pkg/namespace/src/sysctl.rs", "in a namespace that is not pinned yet"),
    ("pkg/storage/src/dirs.rs", "the entry of the layer is the step"),
    ("pkg/storage/src/unpack.rs", "the entry of the layer is the step"),
];

/// Calls that change what outlives the process. Those that begin with a dot are methods.
const WRITES: [&str; 45] = [
    "fs::write(",
    "fs::copy(",
    "fs::rename(",
    "fs::hard_link(",
    "fs::remove_file(",
    "fs::remove_dir(",
    "fs::remove_dir_all(",
    "fs::create_dir(",
    "fs::create_dir_all(",
    "fs::set_permissions(",
    "builder.create(",
    "File::create(",
    "File::create_new(",
    ".create(true)",
    ".create_new(true)",
    ".truncate(true)",
    ".write_all(",
    ".set_len(",
    ".sync_all(",
    ".sync_data(",
    "syncfs(",
    "chown(",
    "fchmod(",
    "mkdirat(",
    "mknodat(",
    "unlinkat(",
    "renameat(",
    "renameat_with(",
    "linkat(",
    "symlinkat(",
    "setxattr(",
    "umount2(",
    "mount(Some(",
    "mount::mount(",
    "mount::unmount(",
    "move_mount(",
    "unshare(",
    ".spawn()",
    ".output()",
    "kill(",
    "killpg(",
    "UnixListener::bind(",
    ".call(",
    "keeper.fork(",
    "keeper.forget(",
];

/// A durable step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Where it stands: file and line.
    pub place: String,
}

/// Whether a file is held to the rule; `path` is below the project's root.
pub fn concerns(path: &str) -> bool {
    let ours = FOLDERS.iter().any(|folder| path.starts_with(folder));
    let tests = path.contains("/tests") || path.contains("/golden");
    path.ends_with(".rs") && ours && !tests
}

/// The steps in a file.
pub fn steps(path: &str, text: &str) -> Vec<Step> {
    let code = code(text);
    let inside = extents(&code).into_iter().filter_map(|(begin, end)| {
        let name = text.get(begin..end)?.split('"').nth(1)?.to_owned();
        Some(Step { name, place: place(path, text, begin) })
    });
    inside.collect()
}

/// Writes outside of steps.
pub fn check(path: &str, text: &str) -> Vec<Finding> {
    if ELSEWHERE.iter().any(|(elsewhere, _)| path.starts_with(elsewhere)) {
        return Vec::new();
    }
    let code = code(text);
    let extents = extents(&code);
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for call in WRITES {
        for (at, _) in code.match_indices(call) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            // The end of another name, a method of the same name, the definition of a function.
            let other = before.is_alphanumeric()
                || before == '_'
                || (before == '.' && !call.starts_with('.'))
                || code[..at].ends_with("fn ");
            let stepped = extents.iter().any(|(begin, end)| (*begin..*end).contains(&at));
            let line = text[..at].matches('\n').count();
            if !(other || stepped || excused(&lines, line)) {
                let what = format!("{call}…) is no step!(…), and does not say why (`no step:`)");
                findings.push(Finding::new(place(path, text, at), what));
            }
        }
    }
    findings
}

/// Names that several steps have.
pub fn check_names(mut steps: Vec<Step>) -> Vec<Finding> {
    steps.sort();
    let twice = steps.windows(2).filter(|pair| pair[0].name == pair[1].name);
    twice
        .map(|pair| {
            let what = format!("the step {:?} is that of {}, too", pair[1].name, pair[0].place);
            Finding::new(&pair[1].place, what)
        })
        .collect()
}

fn place(path: &str, text: &str, at: usize) -> String {
    format!("{path}:{}", text[..at].matches('\n').count() + 1)
}

/// Whether the line, or the comment right above it, says why there is no step.
fn excused(lines: &[&str], number: usize) -> bool {
    let says = |line: &str| line.split_once("//").is_some_and(|(_, c)| c.contains("no step: "));
    let above = lines[..number].iter().rev().take_while(|l| l.trim_start().starts_with("//"));
    says(lines[number]) || above.into_iter().any(|l| says(l))
}

/// Where the arguments of each `step!` are.
fn extents(code: &str) -> Vec<(usize, usize)> {
    const STEP: &str = "step!(";
    let mut extents = Vec::new();
    for (at, _) in code.match_indices(STEP) {
        let begin = at + STEP.len();
        let mut depth = 1;
        let end = code[begin..].find(|c| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        extents.extend(end.map(|end| (begin, begin + end)));
    }
    extents
}

/// The text without its tests, with blanks for comments and for what strings hold: the same offsets.
fn code(text: &str) -> String {
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let mut code = text.as_bytes()[..tests].to_vec();
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"'\"'") || rest.starts_with(b"'\\\"'") {
            rest.iter().skip(1).position(|b| *b == b'\'').map_or(1, |end| end + 2)
        } else if rest.starts_with(b"r#\"") {
            rest.windows(2).position(|w| w == b"\"#").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with(b"\"") {
            string(rest)
        } else {
            at += 1;
            continue;
        };
        code[at..at + length].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        at += length;
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// The length of the string that begins here, with its quotes.
fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check("pkg/storage/src/a.rs", text).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn every_write_is_a_step() {
        for call in WRITES {
            let end = &")".repeat(call.matches('(').count() - call.matches(')').count());
            let text = format!("fn a() {{\n    {call}b{end};\n}}\n");
            let own = found(&text);
            assert!(own.iter().all(|f| f.contains("is no step!(…)")), "{own:?}");
            assert!(own.iter().any(|f| f.starts_with("pkg/storage/src/a.rs:2: ")), "{call}");
            let text = format!("fn a() {{\n    step!(\"a: b (c\", f({call}b{end})).g();\n}}\n");
            assert_eq!(found(&text), Vec::<String>::new());
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "// fs::write(a)\n",
            "let a = \"fs::write(a) \\\" fs::write(b)\";\n",
            "let a = r#\"fs::write(\"a\")\"#;\n",
            "let a = '\"'; // fs::write(\n",
            "fn kill(a: u8) {}\nlet b = overkill(a);\nc.kill(a);\n",
            "// no step: nobody needs it.\nfs::write(a);\n",
            "// no step: nobody needs it,\n// nor later.\nfs::write(a);\n",
            "fs::write(a); // no step: nobody needs it.\n",
            "#[cfg(test)]\nmod tests {\n    fs::write(a);\n}\n",
        ] {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
        // A reason for one is none for the next.
        assert_eq!(found("// no step: one.\nfs::write(a);\nfs::write(a);\n").len(), 1);
        assert_eq!(found("step!(\"a\", b);\nfs::write(a);\n").len(), 1);
        assert_eq!(check("pkg/storage/src/unpack.rs", "fs::write(a);\n"), []);
    }

    #[test]
    fn steps_have_names_of_their_own() {
        let text = "a(step!(\"one: two\", b(c)));\nstep!(\n    \"three\",\n    d,\n);\n";
        let steps = steps("a.rs", text);
        let names: Vec<&str> = steps.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["one: two", "three"]);
        assert_eq!(check_names(steps.clone()), []);
        let twice = [steps, vec![Step { name: "three".into(), place: "b.rs:7".into() }]].concat();
        let found: Vec<String> = check_names(twice).iter().map(Finding::to_string).collect();
        assert_eq!(found, ["b.rs:7: the step \"three\" is that of a.rs:2, too"]);
    }

    #[test]
    fn whom_it_concerns() {
        assert!(concerns("pkg/storage/src/layers.rs"));
        for path in ["pkg/oci/src/a.rs", "pkg/storage/tests/a.rs", "criod/daemon/src/a.txt"] {
            assert!(!concerns(path));
        }
        for (path, _) in ELSEWHERE {
            assert!(FOLDERS.iter().any(|folder| path.starts_with(folder)), "{path}");
        }
    }
}
