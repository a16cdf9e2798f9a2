//! Updates of what the container may use, by `runtime update`: one at a time, in the order they came.
//!
//! ```text
//! Update ─▶ update.json ─▶ `runtime update --resources` ──ok──▶ answer ─▶ the next one
//!                                │ fails, or takes too long
//!                                └─▶ refusal in the runtime's words
//! ```
//! criod asks for it only where the runtime alone can do it; else it writes the cgroup's files. What
//! a predecessor had begun goes on without us, and the same is asked for again.

use std::collections::VecDeque;
use std::fs;

use api_monitor::monitor::{Phase, UpdateRequest, UpdateResponse};

use crate::life::Job;
use crate::monitor::Monitor;
use crate::rpc::{Code, Refusal, Waiter};
use crate::runtime::{self, Stdio3};

/// Those that wait, the one under way first.
pub(crate) type Updates = VecDeque<(Waiter, Vec<u8>)>;

/// How many may wait.
const MAX_WAITING: usize = 16;

impl Monitor {
    pub(crate) fn update(&mut self, waiter: Waiter, asked: UpdateRequest) -> Result<(), Refusal> {
        let up = [Phase::PHASE_CREATED, Phase::PHASE_STARTING, Phase::PHASE_RUNNING];
        if !up.contains(&self.phase()) || self.state.now.exit.is_some() {
            let text = format!("container {} is neither created nor running", self.config.id);
            return Err(Refusal::new(Code::FailedPrecondition, text));
        }
        if self.updates.len() >= MAX_WAITING {
            let text = format!("{MAX_WAITING} updates of container {} wait", self.config.id);
            return Err(Refusal::new(Code::ResourceExhausted, text));
        }
        self.updates.push_back((waiter, asked.resources));
        if self.updates.len() == 1 {
            self.next_update();
        }
        Ok(())
    }

    fn next_update(&mut self) {
        while let Some((_, resources)) = self.updates.front() {
            let file = self.dir.join("update.json");
            let begun = fs::write(&file, resources).and_then(|()| {
                let file = file.to_string_lossy();
                self.run_job(Job::Update, &["update", "--resources", &file], Stdio3::default())
            });
            match begun {
                Ok(()) => return,
                Err(e) => self.answer_update(Err(e.to_string())),
            }
        }
    }

    pub(crate) fn update_done(&mut self, status: i32) {
        let log = self.dir.join("update.log");
        self.answer_update(match status {
            0 => Ok(()),
            status => Err(runtime::failure(&self.config, "update", status, &log)),
        });
        self.next_update();
    }

    fn answer_update(&mut self, done: Result<(), String>) {
        let Some((waiter, _)) = self.updates.pop_front() else { return };
        match done {
            Ok(()) => self.answer(waiter, Ok(&UpdateResponse::new())),
            Err(text) => self.answer(waiter, Err(Refusal::new(Code::Unknown, text))),
        }
    }
}
