//! Builds the project's test images and serves them from a registry on loopback.
//!
//! ```text
//! test-images list                       the images, their digests, what each is for
//! test-images build --out DIR            as an OCI layout
//! test-images push --registry HOST:PORT [--storage DIR]
//! test-images serve --dir DIR [--port N] [--push] [--private]     test-images stop --dir DIR
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use test_images::push::{Target, push};
use test_images::{catalog, layout, registry};

/// Builds the project's test images and serves them from a registry on loopback.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the images.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the images as an OCI layout.
    Build {
        /// The folder to write.
        #[arg(long)]
        out: PathBuf,
        /// Only these images; all when none is named.
        images: Vec<String>,
    },
    /// Push the images to a registry over plain HTTP.
    Push {
        /// Host and port.
        #[arg(long)]
        registry: String,
        /// The registry's storage folder, for images that are spoiled there.
        #[arg(long)]
        storage: Option<PathBuf>,
        /// Name and password for the registry, as NAME:PASSWORD.
        #[arg(long)]
        user: Option<String>,
        /// Only these images; all when none is named.
        images: Vec<String>,
    },
    /// Start docker-registry on 127.0.0.1 and say where it listens.
    Serve {
        /// The folder for its data, its address, its process id and its registries.conf.
        #[arg(long)]
        dir: PathBuf,
        /// The port; 0 lets the kernel choose.
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Ask for a user (testuser, testpass).
        #[arg(long)]
        private: bool,
        /// Push the images as well.
        #[arg(long)]
        push: bool,
        /// Only these images; all when none is named.
        images: Vec<String>,
    },
    /// End the registry that was started with this folder.
    Stop {
        /// The folder.
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("test-images: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> test_images::Result<()> {
    let names = |images: &[String]| -> test_images::Result<_> {
        catalog::build(&images.iter().map(String::as_str).collect::<Vec<_>>())
    };
    match verb {
        Verb::List { json } => {
            let catalog = names(&[])?;
            let rows = catalog.images.iter().map(|i| {
                serde_json::json!({"names": i.names, "digest": i.root.digest, "about": i.about,
                    "spoiled": !i.spoil.is_empty()})
            });
            if json {
                println!("{}", serde_json::Value::from_iter(rows));
            } else {
                for image in &catalog.images {
                    println!("{:<32} {}  {}", image.names[0], image.root.digest, image.about);
                }
            }
            Ok(())
        }
        Verb::Build { out, images } => layout::write_layout(&names(&images)?, &out),
        Verb::Push { registry, storage, user, images } => {
            push(&names(&images)?, &Target { address: registry, storage, user })
        }
        Verb::Serve { dir, port, private, push: with_images, images } => {
            let running = registry::serve(&dir, port, private)?;
            if with_images {
                let user = private.then(|| format!("{}:{}", registry::USER, registry::PASSWORD));
                let target = Target {
                    address: running.address.clone(),
                    storage: Some(running.storage.clone()),
                    user,
                };
                if let Err(error) = names(&images).and_then(|all| push(&all, &target)) {
                    registry::stop(&dir)?;
                    return Err(error);
                }
            }
            println!("{}", running.address);
            Ok(())
        }
        Verb::Stop { dir } => registry::stop(&dir),
    }
}
