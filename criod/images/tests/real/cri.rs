//! The calls of CRI.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api_cri::v1::image_service_server::ImageService as _;
use api_cri::v1::*;
use criod_images::{ImageService, Options};
use futures_util::StreamExt as _;
use tonic::{Code, Request};

use crate::bench::{Bench, Registry, options};

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.into(),
        runtime_handler: "other".into(),
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        ..Default::default()
    })
}

fn pull(image: &str) -> Request<PullImageRequest> {
    Request::new(PullImageRequest { image: spec(image), ..Default::default() })
}

fn status(image: &str, verbose: bool) -> Request<ImageStatusRequest> {
    Request::new(ImageStatusRequest { image: spec(image), verbose })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_pull_to_removal() {
    let registry = Registry::with(&["test/config:1", "test/user-www-data:1", "test/pause:1"]);
    let name = registry.name("test/config:1");
    let pause = registry.name("test/pause:1");
    let bench = Bench::with(Options { pinned: vec![pause.clone()], ..options() });
    let in_use = |id: &String| (id.len() == 71).then(|| "web-0".to_owned());
    let busy = ImageService::new(bench.images.clone(), Arc::new(in_use));
    let service = ImageService::new(bench.images.clone(), Arc::new(|_| None));

    let answer = service.image_status(status(&name, true)).await.unwrap().into_inner();
    assert_eq!(answer, ImageStatusResponse::default());
    let id = service.pull_image(pull(&name)).await.unwrap().into_inner().image_ref;
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");

    let answer = service.image_status(status(&name, false)).await.unwrap().into_inner();
    assert!(answer.info.is_empty());
    let image = answer.image.unwrap();
    assert_eq!((&image.id, &image.repo_tags), (&id, &vec![name.clone()]));
    assert_eq!((image.uid.unwrap().value, image.username.as_str()), (0, ""));
    assert!(image.size > 0 && !image.pinned);
    let answer = service.image_status(status(&id, true)).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert_eq!(info["labels"]["org.opencontainers.image.title"], "config");
    assert_eq!(info["imageSpec"]["config"]["WorkingDir"], "/srv/sub");
    assert_eq!(info["imageSpec"]["history"].as_array().unwrap().len(), 2);

    service.pull_image(pull(&registry.name("test/user-www-data:1"))).await.unwrap();
    service.pull_image(pull(&pause)).await.unwrap();
    let list = |filter: Option<&str>| {
        let filter = filter.map(|name| ImageFilter { image: spec(name) });
        Request::new(ListImagesRequest { filter })
    };
    let all = service.list_images(list(None)).await.unwrap().into_inner().images;
    assert_eq!(all.len(), 3);
    let user = all.iter().find(|image| !image.username.is_empty()).unwrap();
    assert_eq!((user.uid, user.username.as_str()), (None, "www-data"));
    let pinned: Vec<_> = all.iter().filter(|i| i.pinned).flat_map(|i| &i.repo_tags).collect();
    assert_eq!(pinned, [&pause]);
    for (filter, count) in [(Some(name.as_str()), 1), (Some("nothing:1"), 0), (Some(""), 3)] {
        let images = service.list_images(list(filter)).await.unwrap().into_inner().images;
        assert_eq!(images.len(), count, "{filter:?}");
    }
    let stream = service.stream_images(Request::new(StreamImagesRequest { filter: None }));
    let batches: Vec<_> = stream.await.unwrap().into_inner().collect().await;
    let streamed: Vec<Image> =
        batches.into_iter().flat_map(|batch| batch.unwrap().images).collect();
    assert_eq!(streamed, all);

    let remove = |image: &str| Request::new(RemoveImageRequest { image: spec(image) });
    let error = busy.remove_image(remove(&id)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("web-0"), "{}", error.message());
    for _ in 0..2 {
        service.remove_image(remove(&id)).await.unwrap();
    }
    assert_eq!(service.list_images(list(None)).await.unwrap().into_inner().images.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_systems_are_told_from_the_beginning() {
    let bench = Bench::new();
    let service = ImageService::new(bench.images.clone(), Arc::new(|_| None));
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
    let answer = service.image_fs_info(Request::new(ImageFsInfoRequest {})).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!((answer.image_filesystems.len(), answer.container_filesystems.len()), (1, 1));
    for fs in answer.image_filesystems.iter().chain(&answer.container_filesystems) {
        assert!(fs.timestamp >= before);
        assert_eq!(fs.used_bytes.unwrap().value, 0);
        assert_eq!(fs.inodes_used.unwrap().value, 0);
        assert_eq!(fs.fs_id.as_ref().unwrap().mountpoint, bench.root.to_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense() {
    let bench = Bench::new();
    let service = ImageService::new(bench.images.clone(), Arc::new(|_| None));
    for image in [None, spec("")] {
        let request = PullImageRequest { image: image.clone(), ..Default::default() };
        let error = service.pull_image(Request::new(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let request = ImageStatusRequest { image: image.clone(), verbose: false };
        let error = service.image_status(Request::new(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let request = RemoveImageRequest { image };
        let error = service.remove_image(Request::new(request)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    let auth = Some(AuthConfig { auth: "!".into(), ..Default::default() });
    let request = PullImageRequest { image: spec("q.io/a:1"), auth, ..Default::default() };
    let error = service.pull_image(Request::new(request)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let remove = RemoveImageRequest { image: spec("q.io/never:1") };
    service.remove_image(Request::new(remove)).await.unwrap();
}
