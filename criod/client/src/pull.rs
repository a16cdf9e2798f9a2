//! The verb `pull`, and pulling for `run`.

use api_cri::v1::{AuthConfig, ImageSpec, PodSandboxConfig, PullImageRequest};
use serde_json::json;

use crate::args::{Format, PullArgs};
use crate::connect::Client;
use crate::console::Console;
use crate::error::Result;
use crate::progress::{self, Display};

pub(crate) async fn pull(client: &Client, console: &mut Console, args: PullArgs) -> Result<u8> {
    let auth = args.creds.map(|c| AuthConfig {
        username: c.user,
        password: c.password,
        ..AuthConfig::default()
    });
    let spec = ImageSpec { image: args.image, ..ImageSpec::default() };
    let image = fetch(client, console, spec, auth, None).await?;
    match args.output {
        Format::Table => console.print(&format!("{image}\n"))?,
        Format::Json => console.json(&json!({ "imageRef": image }))?,
    }
    Ok(0)
}

/// Pulls an image, shows how far that is, and gives what the runtime calls it.
pub(crate) async fn fetch(
    client: &Client,
    console: &Console,
    spec: ImageSpec,
    auth: Option<AuthConfig>,
    sandbox_config: Option<PodSandboxConfig>,
) -> Result<String> {
    let name = spec.image.clone();
    let request = PullImageRequest { image: Some(spec), auth, sandbox_config };
    let mut images = client.images();
    let call = client.long(format!("pull {name}"), images.pull_image(request));
    let mut display = Display::start(console, &name);
    let answer = tokio::select! {
        answer = call => Some(answer),
        () = progress::watch(client.socket(), &name, &mut display) => None,
    };
    display.finish();
    // Watching does not end by itself.
    let answer = match answer {
        Some(answer) => answer?,
        None => return std::future::pending().await,
    };
    Ok(answer.image_ref)
}
