//! How far the pulls under way are.
//!
//! ```text
//! waiting ──> downloading ──> unpacking ──> done        exists: was here, or another pull brought it
//! ```

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// Where a layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its turn has not come.
    Waiting,
    /// Its bytes arrive; they are unpacked as they do.
    Downloading,
    /// All its bytes are here.
    Unpacking,
    /// On the disk.
    Done,
    /// Was on the disk already.
    Exists,
}

const STATES: [State; 5] =
    [State::Waiting, State::Downloading, State::Unpacking, State::Done, State::Exists];

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerProgress {
    /// Its digest in the manifest.
    pub digest: String,
    /// Bytes to be received.
    pub total: u64,
    /// Bytes received.
    pub done: u64,
    /// Where it stands.
    pub state: State,
}

/// A pull under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PullProgress {
    /// The name as asked for.
    pub image: String,
    /// Its layers, lowest first; none while the manifest is not known.
    pub layers: Vec<LayerProgress>,
}

/// A layer's numbers while they change.
#[derive(Debug)]
pub(crate) struct Layer {
    digest: String,
    pub(crate) total: u64,
    pub(crate) done: Arc<AtomicU64>,
    state: AtomicU8,
    /// The same layer in another pull, which is waited for.
    theirs: Mutex<Option<Arc<Layer>>>,
}

impl Layer {
    pub(crate) fn new(digest: String, total: u64) -> Arc<Layer> {
        let (done, state, theirs) = (Arc::default(), AtomicU8::new(0), Mutex::default());
        Arc::new(Layer { digest, total, done, state, theirs })
    }

    /// From now on shows how far another pull is with the same layer.
    pub(crate) fn follow(&self, theirs: Option<Arc<Layer>>) {
        *self.theirs.lock().unwrap_or_else(PoisonError::into_inner) = theirs;
    }

    pub(crate) fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
        if matches!(state, State::Done | State::Exists) {
            self.done.store(self.total, Ordering::Relaxed);
        }
    }

    fn look(&self) -> LayerProgress {
        let theirs = self.theirs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Theirs follows nobody: it has the layer in hand.
        let shown = theirs.as_deref().unwrap_or(self);
        let state = usize::from(shown.state.load(Ordering::Relaxed));
        LayerProgress {
            digest: self.digest.clone(),
            total: self.total,
            done: shown.done.load(Ordering::Relaxed).min(self.total),
            state: STATES.get(state).copied().unwrap_or(State::Waiting),
        }
    }
}

/// A pull while it runs.
#[derive(Debug)]
pub(crate) struct Pull {
    image: String,
    layers: Mutex<Vec<Arc<Layer>>>,
}

impl Pull {
    pub(crate) fn new(image: &str) -> Arc<Pull> {
        Arc::new(Pull { image: image.to_owned(), layers: Mutex::default() })
    }

    pub(crate) fn set_layers(&self, layers: Vec<Arc<Layer>>) {
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    pub(crate) fn look(&self) -> PullProgress {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = layers.iter().map(|layer| layer.look()).collect();
        PullProgress { image: self.image.clone(), layers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_in_json() {
        let pull = Pull::new("q.io/a:1");
        let layer = Layer::new("sha256:ab".into(), 123);
        pull.set_layers(vec![layer.clone(), Layer::new("sha256:cd".into(), 7)]);
        layer.set(State::Downloading);
        layer.done.store(45, Ordering::Relaxed);
        let form = |state: &str, done: u64| {
            format!(
                r#"[{{"image":"q.io/a:1","layers":[{{"digest":"sha256:ab","total":123,"done":{done},"state":"{state}"}},{{"digest":"sha256:cd","total":7,"done":0,"state":"waiting"}}]}}]"#
            )
        };
        let json = || serde_json::to_string(&[pull.look()]).unwrap();
        assert_eq!(json(), form("downloading", 45));
        layer.set(State::Unpacking);
        assert_eq!(json(), form("unpacking", 45));
        layer.set(State::Done);
        assert_eq!(json(), form("done", 123));
        layer.set(State::Exists);
        assert_eq!(json(), form("exists", 123));
    }
}
