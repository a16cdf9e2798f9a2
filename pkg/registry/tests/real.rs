//! Against the registry everybody runs: Debian's `docker-registry`, filled by `skopeo`.

// Helpers outside of test functions count as tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use registry::image::media;
use registry::{
    Descriptor, Digest, ErrorKind, Keyring, Platform, Reference, Registries, fetch_image,
};
use serde_json::json;

/// A running registry. It ends, and its directory goes, with the value.
struct Real {
    child: Child,
    host: String,
    dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    fn start() -> Real {
        let dir = tempfile::tempdir().unwrap();
        // Another process may take the port before the registry does; then it ends at once.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let host = free.local_addr().unwrap().to_string();
            drop(free);
            let config = dir.path().join("config.yml");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: {host}\n",
                dir.path().join("data").display()
            );
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while child.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(&host).is_ok() {
                    return Real { child, host, dir };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("docker-registry does not start");
    }

    fn push(&self, layout: &Path, tag: &str, format: &str) {
        let output = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--format",
                format,
            ])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/team/app:{tag}-{format}", self.host))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// An image as an OCI layout directory (OCI image specification, image-layout.md).
fn layout(dir: &Path, tag: &str, layers: &[&[u8]]) -> Vec<Descriptor> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |media_type: &str, bytes: &[u8]| {
        std::fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        fake::descriptor(media_type, bytes)
    };
    let diff_ids: Vec<Digest> = layers.iter().map(Digest::of).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(media::OCI_CONFIG, &serde_json::to_vec(&config).unwrap());
    let layers: Vec<Descriptor> =
        layers.iter().map(|l| blob("application/vnd.oci.image.layer.v1.tar", l)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config,
        "layers": layers});
    let mut manifest = blob(media::OCI_MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    manifest.annotations.insert("org.opencontainers.image.ref.name".into(), tag.into());
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layers
}

#[tokio::test]
async fn pulls_what_was_pushed() {
    let real = Real::start();
    let layout_dir = real.dir.path().join("layout");
    let big = fake::content(3 << 20);
    layout(&layout_dir, "v1", &[&big, b"small"]);
    for format in ["oci", "v2s2"] {
        real.push(&layout_dir, "v1", format);
        let registries = Registries::default().with_insecure(&real.host);
        let name = Reference::parse(&format!("{}/team/app:v1-{format}", real.host)).unwrap();
        let (client, keyring) = (fake::client(), Keyring::anonymous());
        let platform = Platform::new("linux", "amd64", None);
        let found = fetch_image(&client, &registries, &name, &keyring, &platform).await.unwrap();
        let docker = found.manifest.media_type == media::DOCKER_MANIFEST;
        assert_eq!(docker, format == "v2s2");
        assert_eq!(found.config.config.cmd, ["/bin/true"]);
        assert_eq!(found.layers.len(), 2);
        for layer in &found.layers {
            let credentials = keyring.for_endpoint(&found.endpoint);
            let stream = client.blob(&found.endpoint, layer, &credentials).await.unwrap();
            let mut len = 0;
            let mut verified = stream.verified();
            while let Some(bytes) = verified.next().await {
                len += bytes.unwrap().len() as u64;
            }
            assert_eq!(len, layer.size);
        }
        let pinned = name.with_digest(found.top_digest.clone());
        let again = fetch_image(&client, &registries, &pinned, &keyring, &platform).await.unwrap();
        assert_eq!(again.config_digest, found.config_digest);
        let gone = Reference::parse(&format!("{}/team/app:gone", real.host)).unwrap();
        let error =
            fetch_image(&client, &registries, &gone, &keyring, &platform).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}
