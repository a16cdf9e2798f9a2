//! What the tests stand on. Everything ends with its value, after a failure too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use criod_images::{Images, Options};
use registry::{ClientOptions, Credentials, Platform};
use test_images::push::{Target, push};
use test_images::store::Catalog;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The images of these names. All are built once for all tests: it takes seconds.
pub(crate) fn catalog(names: &[&str]) -> Catalog {
    static ALL: OnceLock<Catalog> = OnceLock::new();
    let all = ALL.get_or_init(|| test_images::catalog::build(&[]).unwrap());
    let mut some = Catalog::default();
    for name in names {
        let image = all.find(name).unwrap();
        for part in image.manifests.iter().chain(&image.blobs) {
            some.blobs.insert(part.digest.clone(), all.blobs[&part.digest].clone());
        }
        some.add(image.clone());
    }
    some
}

/// A registry with images.
pub(crate) struct Registry {
    dir: tempfile::TempDir,
    pub(crate) running: test_images::registry::Running,
    pub(crate) catalog: Catalog,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Registry {
    pub(crate) fn with(names: &[&str]) -> Registry {
        Registry::start(catalog(names), false)
    }

    pub(crate) fn start(catalog: Catalog, private: bool) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let running = test_images::registry::serve(dir.path(), 0, private).unwrap();
        let registry = Registry { dir, running, catalog };
        let user = private.then(|| "testuser:testpass".to_owned());
        let storage = Some(registry.running.storage.clone());
        let target = Target { address: registry.address(), storage, user };
        push(&registry.catalog, &target).unwrap();
        registry
    }

    pub(crate) fn address(&self) -> String {
        self.running.address.clone()
    }

    pub(crate) fn stop(&self) {
        let _ = test_images::registry::stop(self.dir.path());
    }

    /// The same again at the same address.
    pub(crate) fn restart(&self) {
        let port = self.running.address.rsplit(':').next().unwrap().parse().unwrap();
        test_images::registry::serve(self.dir.path(), port, false).unwrap();
    }

    /// `test/x:1` at the registry's address.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.running.address)
    }

    /// The digest that an image's name stands for.
    pub(crate) fn root(&self, image: &str) -> String {
        self.catalog.find(image).unwrap().root.digest.clone()
    }

    /// The file of a blob in the registry's storage.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let folder = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        self.running.storage.join(folder)
    }

    /// The layers of an image of one manifest, and its config.
    pub(crate) fn parts(&self, image: &str) -> (Vec<String>, String) {
        let image = self.catalog.find(image).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_slice(&self.catalog.blobs[&image.root.digest]).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        let digest = |value: &serde_json::Value| value["digest"].as_str().unwrap().to_owned();
        (layers.iter().map(digest).collect(), digest(&manifest["config"]))
    }
}

/// A store with images.
pub(crate) struct Bench {
    pub(crate) root: PathBuf,
    pub(crate) images: Images,
    _dir: Option<tempfile::TempDir>,
}

pub(crate) fn options() -> Options {
    Options {
        registries_conf: "/nonexistent/registries.conf".into(),
        registries_conf_dir: None,
        global_auth_file: Some("/nonexistent/auth.json".into()),
        // Any port of the loopback speaks plain HTTP.
        insecure_registries: vec!["127.0.0.1".into()],
        platform: Platform::new("linux", "amd64", None),
        client: ClientOptions {
            certs_dirs: Vec::new(),
            backoff: Duration::from_millis(100),
            ..ClientOptions::default()
        },
        ..Options::default()
    }
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(options())
    }

    pub(crate) fn with(options: Options) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::at(&dir.path().join("store"), options);
        bench._dir = Some(dir);
        bench
    }

    pub(crate) fn at(root: &Path, options: Options) -> Bench {
        // A child that another test forks holds copies of all descriptors until it executes, the
        // lock of a store that was just dropped among them.
        let mut tries = 0;
        let store = loop {
            match storage::Store::open(root, storage::Options::default()) {
                Err(storage::Error::Locked { .. }) if tries < 500 => tries += 1,
                opened => break opened.unwrap(),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let images = Images::new(Arc::new(store), options).unwrap();
        Bench { root: root.to_owned(), images, _dir: None }
    }

    pub(crate) async fn pull(&self, name: &str) -> String {
        let pulled = self.images.pull(name, Credentials::Anonymous).await;
        pulled.unwrap_or_else(|error| panic!("{name}: {}", error.full()))
    }

    pub(crate) async fn refused(&self, name: &str) -> Arc<criod_images::Error> {
        match self.images.pull(name, Credentials::Anonymous).await {
            Ok(_) => panic!("{name} was pulled"),
            Err(error) => error,
        }
    }

    /// Everything in the store that a pull can leave: layers and what is under way, content, records.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for folder in ["layers/overlay", "content/sha256", "images"] {
            let entries = std::fs::read_dir(self.root.join(folder)).unwrap();
            let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
            left.extend(entries.map(|e| format!("{folder}/{}", name(e.unwrap()))));
        }
        left.sort();
        left
    }

    pub(crate) fn nothing_under_way(&self) {
        let tmp: Vec<_> = self.left().into_iter().filter(|name| name.contains("tmp")).collect();
        assert!(tmp.is_empty(), "{tmp:?}");
        assert!(self.images.progress().is_empty());
    }
}

/// Waits until something holds; fails after a long time.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// A TCP proxy in front of a registry. It ends with the runtime of its test.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<String>>>,
    hold: watch::Sender<Option<Hold>>,
}

/// Answers to requests with this text in them stop after so many bytes.
#[derive(Clone)]
struct Hold {
    what: String,
    after: usize,
}

impl Proxy {
    pub(crate) async fn to(upstream: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (hold, _) = watch::channel(None);
        let proxy = Proxy { address, seen: Arc::default(), hold };
        let (accepting, upstream) = (proxy.clone(), upstream.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().serve(client, upstream.clone()));
            }
        });
        proxy
    }

    async fn serve(self, mut client: TcpStream, upstream: String) {
        let Ok(mut server) = TcpStream::connect(upstream).await else { return };
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let current = Mutex::new(String::new());
        let answered = std::sync::atomic::AtomicUsize::new(0);
        let up = async {
            let (mut buffer, mut head) = (vec![0; 4096], Vec::new());
            loop {
                let read = from_client.read(&mut buffer).await.unwrap_or(0);
                if read == 0 {
                    return;
                }
                // Requests for images have no body: what ends in an empty line is one.
                head.extend_from_slice(&buffer[..read]);
                while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                    let text = String::from_utf8_lossy(&head[..end]).into_owned();
                    head.drain(..end + 4);
                    *current.lock().unwrap() = text.clone();
                    answered.store(0, std::sync::atomic::Ordering::SeqCst);
                    self.seen.lock().unwrap().push(text);
                }
                if to_server.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        };
        let down = async {
            let mut buffer = vec![0; 16 << 10];
            loop {
                let read = from_server.read(&mut buffer).await.unwrap_or(0);
                if read == 0 {
                    return;
                }
                let sent = answered.fetch_add(read, std::sync::atomic::Ordering::SeqCst) + read;
                let request = current.lock().unwrap().clone();
                let mut hold = self.hold.subscribe();
                let free = |hold: &Option<Hold>| {
                    hold.as_ref().is_none_or(|h| !request.contains(&h.what) || sent <= h.after)
                };
                let _ = hold.wait_for(free).await;
                if to_client.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    }

    /// From now on answers to requests with `what` in them stop after `bytes`.
    pub(crate) fn hold(&self, what: &str, bytes: usize) {
        self.hold.send_replace(Some(Hold { what: what.to_owned(), after: bytes }));
    }

    pub(crate) fn release(&self) {
        self.hold.send_replace(None);
    }

    /// The request heads with `what` in them, in order.
    pub(crate) fn requests(&self, what: &str) -> Vec<String> {
        self.seen.lock().unwrap().iter().filter(|head| head.contains(what)).cloned().collect()
    }

    /// How often each blob was asked for.
    pub(crate) fn blobs(&self) -> BTreeMap<String, usize> {
        let mut blobs = BTreeMap::new();
        for head in self.requests("/blobs/") {
            let path = head.split(' ').nth(1).unwrap();
            *blobs.entry(path.rsplit('/').next().unwrap().to_owned()).or_default() += 1;
        }
        blobs
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

/// A catalogue of one image `test/big:1` with one layer of about so many bytes that do not compress.
pub(crate) fn big(bytes: usize) -> Catalog {
    use test_images::store::{Packing, media};
    use test_images::tarball::{Entry, archive};
    let mut catalog = Catalog::default();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = Vec::with_capacity(bytes);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let small = catalog.layer(&archive(&[Entry::file("small", "small\n")]), Packing::Gzip).unwrap();
    let large = catalog.layer(&archive(&[Entry::file("noise", noise)]), Packing::Plain).unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [small.diff_id, large.diff_id]},
    });
    let config = catalog.document(media::CONFIG, &config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.json(),
        "layers": [small.blob.json(), large.blob.json()],
    });
    let root = catalog.document(media::MANIFEST, &manifest);
    catalog.add(test_images::store::Image {
        names: vec!["test/big:1".into()],
        root: root.clone(),
        manifests: vec![root],
        blobs: vec![small.blob, large.blob, config],
        spoil: Vec::new(),
        about: "a large layer",
    });
    catalog
}
