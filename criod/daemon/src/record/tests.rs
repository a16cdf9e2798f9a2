//! Records that are whole, and those that are not.

use proptest::prelude::*;

use super::*;

fn id(digit: char) -> String {
    digit.to_string().repeat(DIGITS)
}

fn pod(digit: char) -> PodRecord {
    let config = PodSandboxConfig { hostname: "h".into(), ..Default::default() };
    let mut record = PodRecord::new(id(digit), config, 5, "b");
    record.ips = vec!["10.0.0.1".parse().unwrap()];
    record.attached = true;
    record
}

/// A folder with pods a and b, both saved twice.
fn two() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for digit in ['a', 'b'] {
        let mut record = pod(digit);
        save(&dir.path().join(&record.id), &record, true).unwrap();
        record.state = PodState::Ready;
        save(&dir.path().join(&record.id), &record, false).unwrap();
    }
    let b = dir.path().join(id('b'));
    (dir, b)
}

fn base(digit: char) -> PodRecord {
    PodRecord::new(id(digit), PodSandboxConfig::default(), 0, "b")
}

#[test]
fn round_trip_and_what_is_none() {
    let (dir, _) = two();
    // Nothing happened in the one, the other is another's.
    fs::create_dir(dir.path().join(id('e'))).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join(id('a')).join(NEW), "half").unwrap();
    let (good, bad) = load_all::<PodRecord>(dir.path(), "b").unwrap();
    assert_eq!(good.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), [id('a'), id('b')]);
    assert_eq!((&good[0].config, good[0].state), (&pod('a').config, PodState::Ready));
    assert!(bad.is_empty());
    assert!(!dir.path().join(id('e')).exists() && dir.path().join("lost+found").exists());
    assert!(!dir.path().join(id('a')).join(NEW).exists());
}

#[test]
fn a_bad_one_spoils_no_other_and_its_request_is_known() {
    type Harm = fn(&Path);
    let all: [(&str, Harm); 6] = [
        ("EOF", |p| fs::write(p, &fs::read(p).unwrap()[..40]).unwrap()),
        ("expected value", |p| fs::write(p, [0xff, 0, 1, 2]).unwrap()),
        ("EOF", |p| fs::write(p, "").unwrap()),
        ("not a file", |p| {
            fs::remove_file(p).unwrap();
            fs::create_dir(p).unwrap();
        }),
        ("No such file", |p| fs::remove_file(p).unwrap()),
        ("it is that of", |p| {
            fs::copy(p.parent().unwrap().parent().unwrap().join(id('a')).join(NAME), p).unwrap();
        }),
    ];
    for (said, harm) in all {
        let (dir, b) = two();
        harm(&b.join(NAME));
        let (good, bad) = load_all::<PodRecord>(dir.path(), "b").unwrap();
        assert_eq!((good.len(), bad.len()), (1, 1), "{said}");
        assert_eq!(bad[0].id, id('b'));
        let text = bad[0].problem.chain();
        assert!(text.contains(said) && text.contains(&*b.to_string_lossy()), "{text}");
        assert!(bad[0].created_at > 1_000_000_000_000_000_000);
        let mended = bad[0].mend(base('b'));
        assert_eq!((mended.config, mended.created_at), (pod('b').config, 5), "{said}");
        assert_eq!((mended.id, mended.state), (id('b'), PodState::Creating), "{said}");
        assert!(exists(&b), "nothing is deleted");
    }
}

#[test]
fn a_record_of_another_release() {
    let (dir, b) = two();
    fs::remove_file(b.join(FIRST)).unwrap();
    let mut value: Value = serde_json::from_slice(&fs::read(b.join(NAME)).unwrap()).unwrap();
    value["state"] = "Hibernating".into();
    value["ips"] = "everywhere".into();
    value["created_at"] = 7.into();
    fs::write(b.join(NAME), value.to_string()).unwrap();
    let (_, bad) = load_all::<PodRecord>(dir.path(), "b").unwrap();
    let mended = bad[0].mend(base('b'));
    assert!(bad[0].problem.chain().contains("everywhere"), "{}", bad[0].problem.chain());
    assert_eq!((mended.config, mended.created_at), (pod('b').config, 7));
    assert!(mended.ips.is_empty() && mended.attached);
}

#[test]
fn a_folder_that_is_none() {
    let (dir, b) = two();
    fs::remove_dir_all(&b).unwrap();
    fs::write(&b, "").unwrap();
    let (good, bad) = load_all::<PodRecord>(dir.path(), "b").unwrap();
    assert_eq!((good.len(), bad.len()), (1, 1));
    assert!(exists(&b));
    remove(&b).unwrap();
    assert!(!exists(&b));
}

#[test]
fn a_removal_that_is_cut_short() {
    let (_dir, b) = two();
    fs::create_dir_all(b.join("rootfs/diff")).unwrap();
    // As far as it may have come: what is left has a record, or neither.
    fs::remove_file(b.join(FIRST)).unwrap();
    assert!(exists(&b));
    remove(&b).unwrap();
    remove(&b).unwrap();
    assert!(!b.exists() && !exists(&b));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_it_fall(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
        let (dir, b) = two();
        let mut text = fs::read(b.join(NAME)).unwrap();
        text.truncate(cut);
        text.extend(&bytes);
        fs::write(b.join(NAME), text).unwrap();
        let (good, bad) = load_all::<PodRecord>(dir.path(), "b").unwrap();
        prop_assert_eq!(good.len() + bad.len(), 2);
        for damaged in bad {
            prop_assert_eq!(damaged.mend(base('b')).id, id('b'));
        }
    }
}

#[test]
fn after_a_boot_the_first_record_serves_for_one_that_was_spoilt() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(id('a'));
    let record = PodRecord::new(id('a'), PodSandboxConfig::default(), 7, "b");
    save(&folder, &record, true).unwrap();
    save(&folder, &record, false).unwrap();
    fs::write(folder.join("record.json"), "").unwrap();
    // In the same boot it says no more than what later steps began with.
    let (good, bad) = load_all::<PodRecord>(dir.path(), "b").unwrap();
    assert_eq!((good.len(), bad.len()), (0, 1));
    let (good, bad) = load_all::<PodRecord>(dir.path(), "c").unwrap();
    assert_eq!((good.len(), bad.len()), (1, 0));
    assert_eq!(good[0].created_at, 7);
}
