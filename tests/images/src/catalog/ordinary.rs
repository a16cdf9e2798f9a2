//! Images that work.

use serde_json::{Value, json};

use super::{Builder, Form};
use crate::Result;
use crate::elf;
use crate::store::{Layer, Packing, media};
use crate::tarball::{Entry, TIME, archive};

/// What the `config` image runs: says how it was started, or waits for signals.
const ENTRY: &str = r#"#!/bin/sh
echo "args=$*"
echo "pwd=$(pwd)"
echo "GREETING=$GREETING"
if [ "$1" = wait ]; then
	trap 'echo got USR1; exit 7' USR1
	trap 'echo got TERM; exit 8' TERM
	echo waiting
	while :; do sleep 0.1; done
fi
"#;

fn shell() -> Value {
    json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})
}

pub(super) fn add(b: &mut Builder) -> Result<()> {
    let base = b.base.clone();
    let one = std::slice::from_ref(&base);
    b.image(
        &[
            "test/busybox:1",
            "test/busybox:alias",
            "test/busybox:latest",
            "library/busybox:latest",
            "library/busybox:1",
        ],
        "Debian's static busybox, applets as hard links",
        one,
        &shell(),
        Form::Oci,
    );
    b.image(
        &["test/busybox:2"],
        "the same layer with another config",
        one,
        &json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "EDITION=2"]}),
        Form::Oci,
    );
    b.image(&["test/docker:1"], "a Docker schema 2 manifest", one, &shell(), Form::Docker);

    let pause = b.gzip(&[Entry::file("pause", elf::pause()).mode(0o755)])?;
    b.image(
        &["test/pause:1", "pause:3.10"],
        "a program that sleeps, as a pod's first process",
        &[pause],
        &json!({"Entrypoint": ["/pause"]}),
        Form::Oci,
    );

    volumes(b)?;
    packings(b)?;
    layered(b)?;
    index(b)?;

    for (name, user) in [
        ("user-1002", "1002"),
        ("user-www-data", "www-data"),
        ("user-1003-users", "1003:users"),
        ("user-www-data-100", "www-data:100"),
        ("user-root", "root"),
        ("user-unknown", "nosuchuser"),
    ] {
        let mut config = shell();
        config["User"] = json!(user);
        let names = [format!("test/{name}:1"), format!("test/{name}:latest")];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        b.image(&names, "a config that names a user", one, &config, Form::Oci);
    }

    let entry = b.gzip(&[Entry::file("entry.sh", ENTRY).mode(0o755)])?;
    b.image(
        &["test/config:1"],
        "entry point, command, environment, folder, signal and volume in the config",
        &[base.clone(), entry],
        &json!({
            "Entrypoint": ["/bin/sh", "/entry.sh"], "Cmd": ["one", "two words"],
            "Env": ["PATH=/bin", "GREETING=hello from the image"],
            "WorkingDir": "/srv/sub", "StopSignal": "SIGUSR1", "Volumes": {"/vol": {}},
            "Labels": {"org.opencontainers.image.title": "config"},
        }),
        Form::Oci,
    );

    let mut many = vec![base];
    for n in 1..120 {
        many.push(b.gzip(&[
            Entry::dir("layers"),
            Entry::file(&format!("layers/{n:03}"), format!("{n}\n")),
            Entry::file("layers/last", format!("{n}\n")),
        ])?);
    }
    b.image(&["test/layers:120"], "120 layers", &many, &shell(), Form::Oci);

    for n in 1..=16 {
        let layer = b.gzip(&[
            Entry::file("pause", elf::pause()).mode(0o755),
            Entry::file("number", format!("{n}\n")),
        ])?;
        let names = [format!("test/single-{n}:1"), format!("test/single-{n}:also")];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let config = json!({"Entrypoint": ["/pause"], "Labels": {"number": n.to_string()}});
        b.image(&names, "an image that one test pulls and removes", &[layer], &config, Form::Oci);
    }
    Ok(())
}

/// For volumes: one that is mounted into others, one that declares its own.
fn volumes(b: &mut Builder) -> Result<()> {
    let files = b.gzip(&[
        Entry::dir("data"),
        Entry::file("data/file", "of the image\n"),
        Entry::dir("data/sub"),
        Entry::file("data/sub/deep", "deep\n").mode(0o644),
        Entry::file("data/program", "#!/bin/sh\necho it runs\n").mode(0o755),
        Entry::dir("etc"),
        Entry::file("etc/hostname", "of the image\n"),
        Entry::symlink("absolute", "/etc"),
        Entry::symlink("climbs", "../../../../../../etc"),
        Entry::symlink("node", "/proc/self/root/etc"),
        Entry::symlink("loop", "loop"),
        Entry::symlink("dangling", "nowhere"),
        Entry::symlink("inside", "data/sub"),
    ])?;
    b.image(
        &["test/files:1"],
        "one layer of files without a program, and links that lead outside",
        &[files],
        &json!({}),
        Form::Oci,
    );
    let own = b.gzip(&[
        Entry::dir("there").mode(0o1777).owner(1000, 1001),
        Entry::file("there/of-the-image", "x\n"),
        Entry::symlink("out", "../../../../../../tmp/criod-declared"),
    ])?;
    b.image(
        &["test/declares:1"],
        "volumes in the config: new ones, one that is there, and places that are not an image's",
        &[b.base.clone(), own],
        &json!({
            "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "User": "1000:1001",
            "Volumes": {"/new/data": {}, "/there": {}, "/out/x": {}, "/": {}, "/proc": {},
                "/dev/null": {}, "/sys/fs": {}, "../../up": {}},
        }),
        Form::Oci,
    );
    Ok(())
}

fn packings(b: &mut Builder) -> Result<()> {
    let base = b.base.clone();
    let marker = |what: &str| archive(&[Entry::file("packing", format!("{what}\n"))]);
    let zstd = b.catalog.layer(&marker("zstd"), Packing::Zstd)?;
    b.image(&["test/zstd:1"], "a zstd layer", &[base.clone(), zstd], &shell(), Form::Oci);
    let plain = b.catalog.layer(&marker("plain"), Packing::Plain)?;
    b.image(
        &["test/plain:1"],
        "a layer that is not compressed",
        &[base, plain],
        &shell(),
        Form::Oci,
    );
    Ok(())
}

/// What the upper layers of `test/layered:1` change, add and hide.
fn layered(b: &mut Builder) -> Result<()> {
    let lower = b.gzip(&[
        Entry::dir("data"),
        Entry::file("data/keep", "kept\n").owner(1000, 1001).mode(0o640).mtime(TIME - 86_400),
        Entry::hardlink("data/linked", "data/keep")
            .owner(1000, 1001)
            .mode(0o640)
            .mtime(TIME - 86_400),
        Entry::file("data/gone", "gone\n"),
        Entry::file("data/change", "before\n"),
        Entry::dir("data/gone-dir"),
        Entry::file("data/gone-dir/file", "gone\n"),
        Entry::dir("opaque"),
        Entry::file("opaque/old", "old\n"),
        Entry::dir("opaque/old-dir"),
        Entry::dir("becomes-file"),
        Entry::file("becomes-file/inside", "inside\n"),
        Entry::file("becomes-dir", "a file\n"),
        Entry::dir("real"),
        Entry::symlink("to-real", "real"),
        Entry::file("to-real/through", "through a link\n"),
        Entry::dir("again"),
        Entry::file("again/first", "first\n"),
    ])?;
    let upper = b.gzip(&[
        Entry::dir("data"),
        Entry::file("data/.wh.gone", ""),
        Entry::file("data/.wh.gone-dir", ""),
        Entry::file("data/change", "after\n"),
        Entry::dir("opaque"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "new\n"),
        Entry::file("becomes-file", "now a file\n"),
        Entry::dir("becomes-dir"),
        Entry::file("becomes-dir/inside", "inside\n"),
        Entry::file(".wh.again", ""),
    ])?;
    let long = format!("long/{}/{}", "n".repeat(120), "m".repeat(120));
    let top = b.gzip(&[
        Entry::dir("again"),
        Entry::file("again/second", "second\n"),
        Entry::dir("special"),
        Entry::file("special/setuid", "#!/bin/sh\n").mode(0o4755),
        Entry::file("special/setgid", "#!/bin/sh\n").mode(0o2755).owner(0, 100),
        Entry::dir("special/sticky").mode(0o1777),
        Entry::file("special/xattr", "x\n").xattr("user.criod", b"value\0with\nodd bytes"),
        Entry::fifo("special/fifo"),
        Entry::char("special/null", 1, 3),
        Entry::symlink("special/dangling", "/nowhere/at/all"),
        Entry::dir("long"),
        Entry::file(&long, "a long name\n"),
        Entry::file("special/\u{e4}\u{4e16} name", "not ascii\n"),
    ])?;
    let layers: Vec<Layer> = vec![b.base.clone(), lower, upper, top];
    b.image(
        &["test/layered:1"],
        "whiteouts, opaque folders, links, setuid, attributes, a pipe, a device",
        &layers,
        &shell(),
        Form::Oci,
    );
    Ok(())
}

/// An index of two platforms with an entry that is no image, as build tools attach it.
fn index(b: &mut Builder) -> Result<()> {
    let mut manifests = Vec::new();
    let mut blobs = Vec::new();
    let mut entries = Vec::new();
    for arch in ["arm64", "amd64"] {
        let mark = b.gzip(&[Entry::file("arch", format!("{arch}\n"))])?;
        let layers = [b.base.clone(), mark];
        let ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = b.config(arch, &ids, &shell(), Form::Oci);
        let descriptors: Vec<_> = layers.iter().map(|l| l.blob.clone()).collect();
        let manifest = b.manifest(&config, &descriptors, Form::Oci);
        let mut entry = manifest.json();
        entry["platform"] = json!({"architecture": arch, "os": "linux"});
        entries.push(entry);
        manifests.push(manifest);
        blobs.extend(descriptors);
        blobs.push(config);
    }
    let statement = b.catalog.document("application/vnd.in-toto+json", &json!({"subject": []}));
    let config = b.catalog.document(
        media::CONFIG,
        &json!({"architecture": "unknown", "os": "unknown", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [statement.digest]}}),
    );
    let attestation = b.manifest(&config, std::slice::from_ref(&statement), Form::Oci);
    let mut entry = attestation.json();
    entry["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    entry["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": manifests[1].digest,
    });
    entries.insert(0, entry);
    manifests.push(attestation);
    blobs.extend([statement, config]);
    let root = b.catalog.document(
        media::INDEX,
        &json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": entries}),
    );
    manifests.push(root);
    b.push(&["test/index:1"], "an index of amd64, arm64 and an attestation", manifests, blobs);
    Ok(())
}
