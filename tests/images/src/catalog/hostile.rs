//! Images that lie, climb out of their root, explode, or are not whole.

use serde_json::{Value, json};

use super::{Builder, Form};
use crate::store::{Descriptor, Layer, Packing, Spoil, digest, gzip, media};
use crate::tarball::{Entry, Kind, append, archive};
use crate::{Error, Result};

/// Bytes of zeros that the bomb unpacks to: 10 GiB.
pub const BOMB_SIZE: u64 = 10 << 30;
/// The digest of the bomb's archive: its first 512 bytes (the header), 10 GiB and 1 KiB of zeros.
pub const BOMB_DIFF_ID: &str =
    "sha256:59773bd317b353ac3c75e95d0d6db162134fae777e4678f412fd34adfb357716";
/// Folder of the host into which the climbing entries try to write or link; it never exists.
pub const ESCAPES: &str = "/tmp/criod-escape";

/// A path that climbs far beyond any root and down again.
fn climb(to: &str) -> String {
    format!("{}{}", "../".repeat(20), to.trim_start_matches('/'))
}

fn config() -> Value {
    json!({"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]})
}

pub(super) fn add(b: &mut Builder, with_bomb: bool) -> Result<()> {
    spoiled(b)?;
    climbing(b)?;
    lying(b)?;
    if with_bomb {
        let blob = b.catalog.blob(media::TAR_GZIP, bomb(BOMB_SIZE)?);
        let layer = Layer { blob, diff_id: BOMB_DIFF_ID.into() };
        let about = "a layer of some MB that unpacks to 10 GiB";
        b.image(&["test/hostile-bomb:1"], about, &[layer], &config(), Form::Oci);
    }
    Ok(())
}

/// Good images whose copy in the registry is damaged after the push.
fn spoiled(b: &mut Builder) -> Result<()> {
    let base = b.base.clone();
    for (name, about) in [
        ("digest", "a layer whose bytes do not match its digest"),
        ("config-digest", "a config whose bytes do not match its digest"),
        ("missing", "a layer that the registry does not have"),
    ] {
        let layer = b.gzip(&[Entry::file("mark", format!("hostile-{name}\n").repeat(200))])?;
        let config = json!({"Cmd": ["/bin/true"], "Labels": {"mark": name}});
        let names = [format!("test/hostile-{name}:1")];
        let victim = layer.blob.digest.clone();
        let image = b.image(&[&names[0]], about, &[base.clone(), layer], &config, Form::Oci);
        let last = image.blobs[image.blobs.len() - 1].digest.clone();
        image.spoil.push(match name {
            "digest" => Spoil::Change(victim),
            "config-digest" => Spoil::Change(last),
            _ => Spoil::Remove(victim),
        });
    }
    Ok(())
}

/// Archives that try to reach outside.
fn climbing(b: &mut Builder) -> Result<()> {
    let base = b.base.clone();
    let to = |name: &str| format!("{ESCAPES}-{name}");
    let tmp = "/tmp";
    let cases: Vec<(&str, &'static str, Vec<Vec<Entry>>)> = vec![
        (
            "dotdot",
            "an entry named ../…",
            vec![vec![Entry::file(&climb(&to("dotdot")), "escaped\n")]],
        ),
        (
            "absolute",
            "an entry with an absolute name: belongs inside the root",
            vec![vec![Entry::file(&to("absolute"), "escaped\n")]],
        ),
        (
            "symlink",
            "entries written through links that lead outside",
            vec![vec![
                Entry::symlink("direct", tmp),
                Entry::file("direct/criod-escape-direct", "escaped\n"),
                Entry::symlink("up", &climb(tmp)),
                Entry::file("up/criod-escape-up", "escaped\n"),
                Entry::symlink("chain-a", "chain-b"),
                Entry::symlink("chain-b", "chain-c/.."),
                Entry::symlink("chain-c", &climb("tmp/x")),
                Entry::file("chain-a/criod-escape-chain", "escaped\n"),
            ]],
        ),
        (
            "symlink-layers",
            "a link in one layer, a file through it in the next",
            vec![
                vec![Entry::symlink("across", &climb(tmp))],
                vec![Entry::file("across/criod-escape-across", "escaped\n")],
            ],
        ),
        (
            "symlink-file",
            "a file in the place of a link that leads to a file outside",
            vec![
                vec![Entry::symlink("file-link", &climb(&to("file-link")))],
                vec![Entry::file("file-link", "escaped\n")],
            ],
        ),
        (
            "hardlink",
            "a hard link to a file outside",
            vec![vec![Entry::hardlink("stolen", &climb("etc/hostname"))]],
        ),
        (
            "hardlink-symlink",
            "a hard link through a link that leads outside",
            vec![vec![
                Entry::symlink("way-out", &climb("var/lib/dpkg")),
                Entry::hardlink("stolen", "way-out/status"),
            ]],
        ),
        (
            "whiteout",
            "whiteouts of .. and of the folder itself",
            vec![vec![Entry::dir("d"), Entry::file("d/.wh...", ""), Entry::file(".wh..", "")]],
        ),
        (
            "whiteout-climb",
            "a whiteout and an opaque mark behind a link that leads outside",
            vec![
                vec![Entry::symlink("w", &climb(tmp))],
                vec![Entry::file("w/.wh.criod-escape-victim", "")],
            ],
        ),
    ];
    for (name, about, archives) in cases {
        let mut layers = vec![base.clone()];
        for entries in archives {
            layers.push(b.gzip(&entries)?);
        }
        let name = format!("test/hostile-{name}:1");
        b.image(&[&name], about, &layers, &config(), Form::Oci);
    }
    Ok(())
}

/// Documents that say what is not so.
fn lying(b: &mut Builder) -> Result<()> {
    let base = b.base.clone();
    let mark = |name: &str| archive(&[Entry::file("mark", format!("hostile-{name}\n"))]);

    let mut layer = b.catalog.layer(&mark("diff-id"), Packing::Gzip)?;
    layer.diff_id = digest(b"something else");
    let about = "a config whose diff ids are not those of the layers";
    b.image(&["test/hostile-diff-id:1"], about, &[base.clone(), layer], &config(), Form::Oci);

    let layer = b.catalog.layer(&mark("count"), Packing::Gzip)?;
    let two = b.config("amd64", &[&base.diff_id], &config(), Form::Oci);
    let about = "two layers, but one diff id";
    let blobs = vec![base.blob.clone(), layer.blob];
    b.assemble(&["test/hostile-count:1"], about, two, blobs, Form::Oci);

    let mut layer = b.catalog.layer(&mark("size"), Packing::Gzip)?;
    layer.blob.size += 7;
    let about = "a layer that is shorter than its manifest says";
    b.image(&["test/hostile-size:1"], about, &[base.clone(), layer], &config(), Form::Oci);

    let whole = archive(&[Entry::file("mark", "hostile-truncated\n".repeat(5000))]);
    let cut = gzip(&whole)?;
    let blob = b.catalog.blob(media::TAR_GZIP, cut[..cut.len() / 2].to_vec());
    let layer = Layer { blob, diff_id: digest(&whole) };
    let about = "a gzip stream that ends too early, under its right digest";
    b.image(&["test/hostile-truncated:1"], about, &[base.clone(), layer], &config(), Form::Oci);

    let junk = b"this is not a gzip stream ".repeat(40);
    let layer = Layer { diff_id: digest(&junk), blob: b.catalog.blob(media::TAR_GZIP, junk) };
    let about = "a layer that is no archive at all";
    b.image(&["test/hostile-garbage:1"], about, &[base.clone(), layer], &config(), Form::Oci);

    let junk = b.catalog.blob(media::CONFIG, b"{\"rootfs\": [1, 2".to_vec());
    let about = "a config that is no JSON";
    b.assemble(&["test/hostile-config:1"], about, junk, vec![base.blob.clone()], Form::Oci);

    let mut entries = Vec::new();
    let mut manifests: Vec<Descriptor> = Vec::new();
    let mut blobs = vec![base.blob.clone()];
    for arch in ["arm64", "s390x"] {
        let config = b.config(arch, &[&base.diff_id], &config(), Form::Oci);
        let manifest = b.manifest(&config, std::slice::from_ref(&base.blob), Form::Oci);
        let mut entry = manifest.json();
        entry["platform"] = json!({"architecture": arch, "os": "linux"});
        entries.push(entry);
        manifests.push(manifest);
        blobs.push(config);
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": entries});
    manifests.push(b.catalog.document(media::INDEX, &index));
    let about = "an index that has no image for amd64";
    b.push(&["test/hostile-platform:1"], about, manifests, blobs);
    Ok(())
}

/// A gzip stream of an archive with one file of this many zeros (a multiple of 16 MiB).
///
/// A deflate stream that was fully flushed can be followed by any other one, so 16 MiB of zeros are
/// compressed once and repeated.
pub fn bomb(size: u64) -> Result<Vec<u8>> {
    const STEP: usize = 16 << 20;
    let mut head = Vec::new();
    let mut entry = Entry::file("zeros", "");
    entry.kind = Kind::Header(size);
    append(&mut head, &entry);
    let zeros = vec![0u8; STEP];

    let mut deflate = flate2::Compress::new(flate2::Compression::new(9), false);
    let mut part = |data: &[u8], flush| -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(data.len() / 500 + 4096);
        deflate
            .compress_vec(data, &mut out, flush)
            .map_err(|e| Error::Compress { method: "gzip", source: std::io::Error::other(e) })?;
        Ok(out)
    };
    let head_part = part(&head, flate2::FlushCompress::Full)?;
    let step_part = part(&zeros, flate2::FlushCompress::Full)?;
    let tail_part = part(&zeros[..1024], flate2::FlushCompress::Finish)?;

    let (mut sum, mut step_sum, mut tail_sum) =
        (flate2::Crc::new(), flate2::Crc::new(), flate2::Crc::new());
    sum.update(&head);
    step_sum.update(&zeros);
    tail_sum.update(&zeros[..1024]);
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    out.extend_from_slice(&head_part);
    for _ in 0..size / STEP as u64 {
        out.extend_from_slice(&step_part);
        sum.combine(&step_sum);
    }
    out.extend_from_slice(&tail_part);
    sum.combine(&tail_sum);
    out.extend_from_slice(&sum.sum().to_le_bytes());
    out.extend_from_slice(&((head.len() as u64 + size + 1024) as u32).to_le_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_small_bomb_is_one_sound_gzip_stream() {
        let size = 48u64 << 20;
        let data = bomb(size).unwrap();
        assert!((data.len() as u64) < size / 900);
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(&data[..]).read_to_end(&mut out).unwrap();
        assert_eq!(out.len() as u64, 512 + size + 1024);
        assert!(out[512..].iter().all(|b| *b == 0));
    }
}
