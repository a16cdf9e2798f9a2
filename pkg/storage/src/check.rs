//! Layers that a disk may have damaged since they were written.
//!
//! ```text
//! written in this boot ──────────────────────────────────────────▶ used
//! of an earlier boot: unchecked ─first use─▶ names and sizes same ─▶ used, until the next boot
//!                                          └ others, or unreadable ─▶ *.damaged; its images incomplete
//! ```
//! A use is a container's root, an image's volume, or a pull. A look costs a walk over the tree, not
//! the reading of its files: it finds what is missing or cut short, not bytes that are others.
//! `<root>/checked` says which layers need no look: the boot id, then a chain id on each line. It is
//! not synced; what is lost of it costs another look.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Error, Result};
use crate::{Digest, Store, tree};

/// What is compared of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Names in all its folders.
    pub names: u64,
    /// Bytes of the regular files behind them.
    pub bytes: u64,
}

/// What is known of this boot's checks.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    path: PathBuf,
    /// What the file said when the store was opened.
    checked: HashSet<String>,
    unchecked: HashSet<Digest>,
    /// It is another boot than the one before: nobody uses what was put aside.
    pub(crate) booted: bool,
}

impl Checks {
    /// Reads `<root>/checked`, and begins another one if it is not of this boot. Without a boot id
    /// nothing is checked.
    pub(crate) fn begin(root: &Path, boot_id: Option<&str>) -> Result<Checks> {
        let Some(boot_id) = boot_id.map(str::trim) else { return Ok(Checks::default()) };
        let path = root.join("checked");
        // What is no text is of no use, as what is not there.
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let booted = lines.next() != Some(boot_id);
        let mut checked = HashSet::new();
        if !booted {
            checked.extend(lines.map(str::to_owned));
        } else {
            let text = format!("{boot_id}\n");
            // no step: a layer that is not in it is looked at once more.
            fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(Checks { path, checked, unchecked: HashSet::new(), booted })
    }

    /// A layer is there that was not written since the store was opened.
    pub(crate) fn found(&mut self, chain_id: &Digest) {
        if !self.path.as_os_str().is_empty() && !self.checked.contains(chain_id.as_str()) {
            self.unchecked.insert(chain_id.clone());
        }
    }

    /// A layer needs no look from here on.
    pub(crate) fn passed(&mut self, chain_id: &Digest) {
        self.unchecked.remove(chain_id);
        if self.path.as_os_str().is_empty() {
            return;
        }
        let line = format!("{chain_id}\n");
        let open = OpenOptions::new().append(true).open(&self.path);
        if let Err(e) = open.and_then(|mut file| file.write_all(line.as_bytes())) {
            tracing::debug!(path = %self.path.display(), "{e}");
        }
    }

    pub(crate) fn forget(&mut self, chain_id: &Digest) {
        self.unchecked.remove(chain_id);
    }

    fn needs(&self, chain_id: &Digest) -> bool {
        self.unchecked.contains(chain_id)
    }
}

impl Store {
    /// Looks at those of the layers that nobody has used since the machine was booted. Layers that
    /// are not there are passed over.
    ///
    /// # Errors
    /// [`Error::DamagedLayer`] for the first that is not what it was: it is put aside, and the images
    /// that need it are not listed until they are pulled again.
    pub fn check_layers(&self, chain_ids: &[Digest]) -> Result<()> {
        for chain_id in chain_ids {
            let meta = {
                let state = self.state();
                if !state.checks.needs(chain_id) {
                    continue;
                }
                state.layers.get(chain_id).cloned()
            };
            let Some(meta) = meta else { continue };
            let problem = match (meta.extent, tree::extent(&self.diff(chain_id))) {
                (Some(then), Ok(now)) if then != now => format!(
                    "{} names and {} bytes instead of {} and {}",
                    now.names, now.bytes, then.names, then.bytes
                ),
                (Some(_), Err(e)) => e.to_string(),
                // Layers of older releases do not say what they were.
                (None, _) | (Some(_), Ok(_)) => {
                    self.state().checks.passed(chain_id);
                    continue;
                }
            };
            return Err(self.damaged(chain_id, problem));
        }
        Ok(())
    }

    fn damaged(&self, chain_id: &Digest, problem: String) -> Error {
        let images = &self.inner.images;
        let mut changes = images.changes();
        {
            let mut state = self.state();
            // Somebody else may have come to the same end before.
            if state.checks.needs(chain_id) {
                state.forget(chain_id);
                durable::put_aside(&self.inner.overlay.join(chain_id.hex()), &problem);
            }
        }
        images.set_incomplete(&mut changes, chain_id);
        Error::DamagedLayer { chain_id: chain_id.clone(), problem }
    }
}
