//! How long a node with many containers is without criod when that is killed.
//!
//! ```text
//! kill -9, criod started ─▶ first ListContainers answered, with all ─▶ every container watched again
//! ```

use std::fs;
use std::time::{Duration, Instant};

use e2e::daemon::{Criod, Options, RUNNING, container};

/// The longest that it may take, with a hundred containers.
const LIMIT: Duration = Duration::from_secs(1);
/// Containers of one pod.
const EACH: usize = 5;
/// What criod says when all are watched.
const WATCHED: &str = "all are watched again";

/// Measures; false where criod is not ready within the limit.
pub(crate) fn run(count: usize, rounds: usize) -> bool {
    let mut criod = Criod::start(Options::default());
    let mut made = 0;
    for pod in 0..count.div_ceil(EACH) {
        let config = criod.pod(&format!("pod{pod}"));
        let id = criod.run_pod(&config).unwrap();
        for number in 0..EACH.min(count - made) {
            let asked = container(&format!("c{number}"), &["sleep", "100000"]);
            criod.run(&id, &asked, &config);
            made += 1;
        }
    }
    let said = |criod: &Criod| {
        let log = fs::read_to_string(criod.dir.join("criod.log")).unwrap();
        log.lines().filter(|l| l.contains(WATCHED)).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut answers = Vec::new();
    let mut watched = Vec::new();
    for _ in 0..rounds {
        let before = said(&criod).len();
        criod.kill9();
        let began = Instant::now();
        criod.launch();
        // Calls wait in the socket's queue until they are served.
        let list = criod.containers();
        answers.push(began.elapsed());
        assert_eq!(list.iter().filter(|c| c.state == RUNNING).count(), count);
        while said(&criod).len() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        watched.push(began.elapsed());
    }
    answers.sort();
    watched.sort();
    let show = |name: &str, all: &[Duration]| {
        println!(
            "{name:>22}  median {:>6.1?}  longest {:>6.1?}",
            all[all.len() / 2],
            all[all.len() - 1]
        );
    };
    println!(
        "{count} containers in {} pods, {rounds} times kill -9 and start",
        count.div_ceil(EACH)
    );
    show("first list answered", &answers);
    show("all watched", &watched);
    criod.finish();
    watched[watched.len() - 1] < LIMIT
}
