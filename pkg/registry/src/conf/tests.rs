//! Reading, merging, matching.

use proptest::prelude::*;

use super::*;

const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn conf(text: &str) -> Registries {
    Registries::parse(Path::new("r.conf"), text).unwrap()
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// The sources as text, an insecure one with a `!`.
fn sources(conf: &Registries, text: &str) -> Vec<String> {
    let all = conf.sources(&reference(text)).unwrap();
    all.iter().map(|e| format!("{e}{}", if e.insecure { "!" } else { "" })).collect()
}

fn candidates(conf: &Registries, name: &str) -> Vec<String> {
    conf.candidates(name).unwrap().iter().map(Reference::to_string).collect()
}

#[test]
fn without_configuration() {
    let none = Registries::default();
    assert_eq!(sources(&none, "nginx"), ["docker.io/library/nginx"]);
    assert_eq!(candidates(&none, "q.io/a"), ["q.io/a:latest"]);
    assert!(matches!(none.candidates("a"), Err(LookupError::NoSearchRegistries { .. })));
}

#[test]
fn short_names() {
    let two = conf(
        "unqualified-search-registries = ['q.io', 'docker.io', 'q.io/']\n\
        [aliases]\n'app' = 'reg.io/team/app'\n'x/y' = 'docker.io/z'",
    );
    assert_eq!(candidates(&two, "nginx:1"), ["q.io/nginx:1", "docker.io/library/nginx:1"]);
    assert_eq!(
        candidates(&two, &format!("a/b@{HEX}")),
        [format!("q.io/a/b@{HEX}"), format!("docker.io/a/b@{HEX}")]
    );
    assert_eq!(candidates(&two, "app"), ["reg.io/team/app:latest"]);
    assert_eq!(candidates(&two, "app:v1"), ["reg.io/team/app:v1"]);
    assert_eq!(candidates(&two, "x/y"), ["docker.io/library/z:latest"]);
    assert_eq!(candidates(&two, "r.io/app"), ["r.io/app:latest"]);

    let enforcing = two.clone().with_short_name_mode(ShortNameMode::Enforcing);
    let error = enforcing.candidates("nginx").unwrap_err().to_string();
    assert_eq!(
        error,
        "short name mode is enforcing, but image name nginx returns ambiguous list: \
         q.io/nginx:latest, docker.io/library/nginx:latest"
    );
    assert_eq!(candidates(&enforcing, "app"), ["reg.io/team/app:latest"]);
    let one = enforcing.with_search_registries(vec!["q.io".into()]);
    assert_eq!(candidates(&one, "nginx"), ["q.io/nginx:latest"]);
    let disabled = two.with_short_name_mode(ShortNameMode::Disabled);
    assert_eq!(candidates(&disabled, "app"), ["reg.io/team/app:latest"]);
    assert_eq!(candidates(&disabled, "nginx").len(), 2);
    for name in [format!("r.io/a:1@{HEX}"), format!("app:1@{HEX}")] {
        assert_eq!(disabled.candidates(&name).unwrap()[0].tag(), None);
    }
    assert!(matches!(disabled.candidates("A b"), Err(LookupError::Reference(_))));
}

#[test]
fn longest_prefix_rewrites() {
    let conf = conf(
        "[[registry]]\nprefix = 'ex.com/foo'\nlocation = 'int.example.com/bar'\n\
         [[registry]]\nprefix = 'ex.com/foo/deep'\nlocation = 'deep.io'\ninsecure = true\n\
         [[registry]]\nlocation = 'ex.com'\ninsecure = true\n\
         [[registry]]\nprefix = 'ex.com/pinned:v1'\nlocation = 'q.io/other:v2'\n\
         [[registry]]\nprefix = '*.wild.io'\n[[registry.mirror]]\nlocation = 'm.io:5000/w'\n\
         [[registry]]\nprefix = '*.a.wild.io'\nlocation = 'a.io'",
    );
    assert_eq!(sources(&conf, "ex.com/foo/img:1"), ["int.example.com/bar/img"]);
    assert_eq!(sources(&conf, "ex.com/foo:1"), ["int.example.com/bar"]);
    assert_eq!(sources(&conf, "ex.com/foobar"), ["ex.com/foobar!"]);
    assert_eq!(sources(&conf, "ex.com/foo/deep/x"), ["deep.io/x!"]);
    assert_eq!(sources(&conf, "ex.com/pinned:v1"), ["q.io/other"]);
    assert_eq!(sources(&conf, "ex.com/pinned:v11"), ["ex.com/pinned!"]);
    assert_eq!(sources(&conf, "ex.com.evil.io/x"), ["ex.com.evil.io/x"]);
    assert_eq!(sources(&conf, "b.wild.io/x"), ["m.io:5000/w/x", "b.wild.io/x"]);
    assert_eq!(sources(&conf, "c.b.wild.io/x"), ["m.io:5000/w/x", "c.b.wild.io/x"]);
    assert_eq!(sources(&conf, "b.a.wild.io/x"), ["a.io/x"]);
    assert_eq!(sources(&conf, "wild.io/x"), ["wild.io/x"]);
    assert_eq!(sources(&conf, "evilwild.io/x"), ["evilwild.io/x"]);
    assert_eq!(sources(&conf, "q.io/b.wild.io/x"), ["q.io/b.wild.io/x"]);
}

#[test]
fn mirrors() {
    let some = conf(
        "[[registry]]\nlocation = 'docker.io'\n\
         [[registry.mirror]]\nlocation = 'all.io/hub'\n\
         [[registry.mirror]]\nlocation = 'dig.io'\npull-from-mirror = 'digest-only'\n\
         [[registry.mirror]]\nlocation = 'tag.io'\npull-from-mirror = 'tag-only'\ninsecure = true\n\
         [[registry.mirror]]\nlocation = 'bad.io'\n\
         [[registry.mirror]]\nlocation = 'own.io'\n\
         [[registry]]\nlocation = 'bad.io'\nblocked = true\n\
         [[registry]]\nlocation = 'own.io'\ninsecure = true",
    );
    let (hub, own) = ("docker.io/library/nginx", "own.io/library/nginx!");
    let all = "all.io/hub/library/nginx";
    assert_eq!(sources(&some, "nginx:1"), [all, "tag.io/library/nginx!", own, hub]);
    for digested in [format!("nginx@{HEX}"), format!("nginx:1@{HEX}")] {
        assert_eq!(sources(&some, &digested), [all, "dig.io/library/nginx", own, hub]);
    }
    let by_digest = conf(
        "[[registry]]\nlocation = 'q.io'\nmirror-by-digest-only = true\n\
         [[registry.mirror]]\nlocation = 'm.io'",
    );
    assert_eq!(sources(&by_digest, "q.io/a:1"), ["q.io/a"]);
    assert_eq!(sources(&by_digest, &format!("q.io/a@{HEX}")), ["m.io/a", "q.io/a"]);
}

#[test]
fn blocked() {
    let conf = conf(
        "[[registry]]\nlocation = 'no.io'\nblocked = true\n\
         [[registry]]\nlocation = 'src.io'\nblocked = true\n[[registry.mirror]]\nlocation = 'm.io'\n\
         [[registry]]\nprefix = '*.ban.io'\nblocked = true",
    );
    for name in ["no.io/a", "x.ban.io/a"] {
        let error = conf.sources(&reference(name)).unwrap_err();
        assert!(matches!(&error, LookupError::Blocked { .. }) && error.to_string().contains(name));
    }
    assert_eq!(sources(&conf, "src.io/a"), ["m.io/a"]);
}

#[test]
fn drop_ins_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (main, drop) = (dir.path().join("r.conf"), dir.path().join("r.conf.d"));
    std::fs::create_dir(&drop).unwrap();
    let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    write(
        &main,
        "unqualified-search-registries = ['main.io']\nshort-name-mode = 'enforcing'\n\
         [[registry]]\nlocation = 'q.io'\ninsecure = true\n[[registry]]\nlocation = 'r.io'\ninsecure = true\n\
         [aliases]\na = 'q.io/a'\nb = 'q.io/b'",
    );
    write(&drop.join("2.conf"), "unqualified-search-registries = ['two.io']\n[aliases]\na = ''");
    write(
        &drop.join("1.conf"),
        "unqualified-search-registries = ['one.io']\n[[registry]]\nlocation = 'q.io'\n\
         [aliases]\na = 'one.io/a'\nc = 'one.io/c'",
    );
    write(&drop.join("3.txt"), "not read");
    let all = Registries::load(&main, Some(&drop)).unwrap();
    assert_eq!(all.search_registries(), ["two.io"]);
    assert_eq!(all.short_name_mode(), ShortNameMode::Enforcing);
    assert_eq!(sources(&all, "q.io/x"), ["q.io/x"]);
    assert_eq!(sources(&all, "r.io/x"), ["r.io/x!"]);
    assert_eq!(candidates(&all, "a"), ["two.io/a:latest"]);
    assert_eq!(candidates(&all, "b"), ["q.io/b:latest"]);
    assert_eq!(candidates(&all, "c"), ["one.io/c:latest"]);

    let absent = Registries::load(&dir.path().join("x"), Some(&dir.path().join("y"))).unwrap();
    assert!(absent.search_registries().is_empty());
    write(&drop.join("9.conf"), "\nbroken");
    let error = Registries::load(&main, Some(&drop)).unwrap_err().to_string();
    assert!(error.contains("9.conf:2: "), "{error}");
}

#[test]
fn errors_name_the_line() {
    for (text, line, part) in [
        ("a = 1\nb = ", 2, ""),
        ("\nshort-name-mode = 'maybe'", 2, "maybe"),
        ("unqualified-search-registries = 'q.io'", 1, ""),
        ("unqualified-search-registries = ['https://q.io']", 1, "scheme"),
        ("unqualified-search-registries = ['quay']", 1, "dot"),
        ("[[registry]]\nlocation='q.io'\n[[registry]]\ninsecure = true", 3, "neither"),
        ("[[registry]]\nprefix='q.io'", 1, "no location"),
        ("[[registry]]\nprefix='*.q.io/x'", 1, "wildcard"),
        ("[[registry]]\nlocation='q.io'\n\n[[registry.mirror]]\ninsecure=true", 4, "no location"),
        (
            "[[registry]]\nlocation='q.io'\n[[registry.mirror]]\nlocation='m.io'\npull-from-mirror='x'",
            3,
            "\"x\"",
        ),
        (
            "[[registry]]\nlocation='q.io'\nmirror-by-digest-only=true\n[[registry.mirror]]\n\
             location='m.io'\npull-from-mirror='all'",
            4,
            "exclude",
        ),
        ("[[registry]]\nlocation='q.io'\npull-from-mirror='all'", 1, "registry.mirror"),
        ("[[registry]]\nlocation='q.io'\ninsecure='yes'", 3, ""),
        ("[aliases]\na='q.io/a'\nb='q.io/b:tag'", 3, "tag"),
        ("[aliases]\na='b'", 2, "missing"),
        ("[aliases]\n'q.io/a'='q.io/b'", 2, "already"),
        ("[registries.search]\nregistries=['q.io']", 1, "version 1"),
    ] {
        let error = Registries::parse(Path::new("/x/r.conf"), text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("/x/r.conf:{line}: ")), "{text:?}: {error}");
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn bad_rewrite() {
    let conf = conf("[[registry]]\nprefix = 'q.io/a'\nlocation = 'm.io'");
    // Nothing is left of the path.
    assert!(matches!(conf.sources(&reference("q.io/a:1")), Err(LookupError::Rewrite { .. })));
    assert_eq!(sources(&conf, "q.io/a/b:1"), ["m.io/b"]);
}

proptest! {
    #[test]
    fn a_prefix_never_cuts_a_name(
        prefix in "[ab]{1,2}\\.io(/[ab]{1,2}){0,2}", name in "[ab]{1,2}\\.io(/[ab]{1,3}){1,3}(:[ab]{1,2})?",
    ) {
        let expected = name.strip_prefix(&prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':']));
        prop_assert_eq!(matches(&name, &prefix).is_some(), expected);
    }

    #[test]
    fn a_wildcard_matches_labels_only(host in "[ab]{0,2}(\\.[ab]{1,2}){1,3}", path in "(/[ab.]{1,4}){1,2}") {
        let expected = host.ends_with(".a.b") && host.len() > ".a.b".len();
        prop_assert_eq!(matches(&format!("{host}{path}"), "*.a.b").is_some(), expected);
    }

    #[test]
    fn never_panics(text in "\\PC{0,120}", name in "\\PC{0,40}") {
        if let Ok(conf) = Registries::parse(Path::new("r.conf"), &text) {
            let _ = conf.candidates(&name);
        }
    }
}
