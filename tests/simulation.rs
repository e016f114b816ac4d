//! The deterministic simulation: many short histories of a broker, each decided
//! by a seed, with crashes, torn writes, lost connections and full disks.
//!
//! `SIM_SEEDS=5000 cargo test --test simulation` runs more of them, `SIM_SEED=17`
//! runs one, and both together so many from there on. A failure names its seed and shows the last lines of its trace,
//! or the last `SIM_LINES`.

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use ringbolt::log::recovery::RecoveryError;
use sim::checker::Tally;
use sim::harness::Simulation;
use sim::planted::Planted;
use sim::profile::Profile;
use sim::rng::Rng;
use sim::rot::{Hit, Start};
use sim::trace::Trace;

/// Seeds that every run of the tests covers.
const SEEDS: u64 = 500;

/// Lines of a trace that a failure shows.
const SHOWN_LINES: u64 = 60;

/// Seeds that end with a flipped bit.
const DAMAGED_SEEDS: u64 = 200;

/// Seeds that end with lost segments.
const LOSS_SEEDS: u64 = 100;

/// Seeds with consumer groups.
const GROUP_SEEDS: u64 = 80;

/// Seeds with a planted bug, at most.
const PLANTED_SEEDS: u64 = 100;

/// Something that runs one seed.
type Run = fn(u64, &Trace) -> History;

/// What a history came to.
struct History {
    hash: u64,
    tally: Tally,
}

/// Runs the history of one seed to its end.
fn run(seed: u64, trace: &Trace) -> History {
    let mut rng = Rng::new(seed ^ 0x5EED_0F0F);
    let profile = Profile::draw(&mut rng);
    trace.line(0, format_args!("seed {seed}: {profile:?}"));
    let mut sim = Simulation::new(seed, profile, trace.clone());
    // Short lives leave their mark on the log's end, where the next one begins.
    live(&mut sim, &mut rng, (40, 6), |_| {});
    History { hash: trace.hash(), tally: sim.checker.tally }
}

/// All lives of a history: of a hundred `short.0` end after `short.1` answers at most. In
/// the last one `settle` comes when all is quiet.
fn live(sim: &mut Simulation, rng: &mut Rng, short: (u64, u64), settle: fn(&mut Simulation)) {
    let lives = sim.profile.lives;
    for life in 0..lives {
        sim.boot().unwrap_or_else(|error| panic!("no start after a crash: {error}"));
        sim.audit();
        let most = if rng.percent(short.0) { short.1 } else { sim.profile.answers };
        sim.serve(1 + rng.below(most));
        if life + 1 == lives {
            sim.quiesce();
            sim.audit();
            settle(sim);
            sim.stop();
        } else if rng.below(10) < sim.profile.fails_in_ten {
            sim.fail_a_write();
        } else if rng.below(10) < sim.profile.stops_in_ten {
            sim.stop();
        } else {
            sim.crash();
        }
    }
    sim.boot().unwrap_or_else(|error| panic!("no start after a stop: {error}"));
    sim.audit();
}

/// Runs the history of one seed with consumer groups to its end.
fn run_groups(seed: u64, trace: &Trace) -> History {
    run_groups_with(seed, trace, None)
}

/// The same, with a bug.
fn run_groups_with(seed: u64, trace: &Trace, planted: Option<Planted>) -> History {
    let mut rng = Rng::new(seed ^ 0x6_0095);
    let profile = Profile::draw_with_groups(&mut rng);
    trace.line(0, format_args!("seed {seed}: {profile:?}"));
    let mut sim = Simulation::new(seed, profile, trace.clone());
    sim.planted = planted;
    live(&mut sim, &mut rng, (20, 20), Simulation::drain_groups);
    sim.look_at_groups();
    let groups = sim.checker.groups.tally;
    History { hash: trace.hash(), tally: Tally { groups, ..sim.checker.tally } }
}

/// Lets brokers start, serve and crash, one to three times.
fn live_and_crash(sim: &mut Simulation, rng: &mut Rng) {
    for _ in 0..rng.between(1, 3) {
        sim.boot().unwrap_or_else(|error| panic!("no start after a crash: {error}"));
        sim.audit();
        sim.serve(1 + rng.below(sim.profile.answers));
        sim.crash();
    }
}

/// Runs the history of one seed that ends with a flipped bit.
fn run_damage(seed: u64, trace: &Trace) -> History {
    let mut rng = Rng::new(seed ^ 0xDA_3A6E);
    let mut profile = Profile::draw(&mut rng);
    profile.habits.churn = false;
    trace.line(0, format_args!("seed {seed}: {profile:?}"));
    let mut sim = Simulation::new(seed, profile, trace.clone());
    live_and_crash(&mut sim, &mut rng);
    // Some bits rot while the broker runs.
    let running = rng.percent(40);
    if running {
        sim.boot().unwrap_or_else(|error| panic!("no start after a crash: {error}"));
    }
    let Some(flip) = sim.flip(&mut rng) else {
        return History { hash: trace.hash(), tally: sim.checker.tally };
    };
    if running {
        sim.audit();
        sim.crash_damaged();
    }
    let before = sim.checker.tally.corrupt;
    match sim.boot_damaged(&flip) {
        Start::Refused(_) => {}
        Start::Cut => sim.audit(),
        Start::Goes => {
            sim.audit();
            let must_show = matches!(flip.hit, Hit::Batch(_) | Hit::Placement(_));
            let gone = sim.checker.logs[flip.shard].given_up >= Some(flip.segment);
            assert!(
                !must_show || gone || sim.checker.tally.corrupt > before,
                "damage was not seen: {flip:?}"
            );
            // So may a read that failed.
            let may_show = flip.hit != Hit::Beyond || sim.checker.damaged;
            assert!(
                may_show || sim.checker.tally.corrupt == before,
                "damage beyond the log was seen: {flip:?}"
            );
        }
    }
    History { hash: trace.hash(), tally: sim.checker.tally }
}

/// Runs the history of one seed that ends with the loss of segments.
fn run_loss(seed: u64, trace: &Trace) -> History {
    let mut rng = Rng::new(seed ^ 0x1055);
    let profile = Profile::draw(&mut rng);
    trace.line(0, format_args!("seed {seed}: {profile:?}"));
    let mut sim = Simulation::new(seed, profile, trace.clone());
    live_and_crash(&mut sim, &mut rng);
    if let Some((_, lost)) = sim.lose_segments(&mut rng) {
        match sim.boot() {
            Err(RecoveryError::MissingSegments { missing, .. }) => {
                assert!(missing.end() <= lost.end(), "{lost:?} are lost, and {missing:?} are called missing");
            }
            other => panic!("{lost:?} are lost: {other:?}"),
        }
    }
    History { hash: trace.hash(), tally: sim.checker.tally }
}

/// Runs one seed; a failure comes back as text.
fn try_run(seed: u64, run: Run) -> Result<History, String> {
    let trace = Trace::default();
    catch_unwind(AssertUnwindSafe(|| run(seed, &trace))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let shown = number_from_env("SIM_LINES").unwrap_or(SHOWN_LINES);
        let text = text.unwrap_or_else(|| "a panic without text".into());
        format!("seed {seed}: {text}\n{}seed {seed}: {text}", trace.tail(shown as usize))
    })
}

fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs many seeds, as many at a time as there are cores.
fn run_many(seeds: u64, run: Run) -> Tally {
    let (first, seeds) = match (number_from_env("SIM_SEED"), number_from_env("SIM_SEEDS")) {
        (Some(seed), seeds) => (seed, seeds.unwrap_or(1)),
        (None, wanted) => (0, wanted.unwrap_or(seeds)),
    };
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = || {
        let (mut sum, mut failures) = (Tally::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds || failures.len() >= 3 {
                return (sum, failures);
            }
            match try_run(seed, run) {
                Ok(history) => sum = sum.plus(&history.tally),
                Err(failure) => failures.push(failure),
            }
        }
    };
    let (mut sum, mut failures) = (Tally::default(), Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let (tally, failed) = worker.join().expect("failures are caught");
            sum = sum.plus(&tally);
            failures.extend(failed);
        }
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("{seeds} seeds from {first}: {sum:?}");
    sum
}

#[test]
fn no_history_breaks_a_promise() {
    let sum = run_many(SEEDS, run);
    // A simulation in which nothing happens would find nothing.
    if number_from_env("SIM_SEED").is_none() {
        assert!(sum.acked > 0 && sum.duplicates > 0 && sum.fetched > 0 && sum.commits > 0, "{sum:?}");
    }
}

#[test]
fn no_history_of_groups_breaks_a_promise() {
    let sum = run_many(GROUP_SEEDS, run_groups).groups;
    if number_from_env("SIM_SEED").is_none() {
        let moves = sum.letters > 0 && sum.redriven > 0 && sum.timed_out > 0;
        assert!(sum.redelivered > 0 && sum.acked > 0 && sum.unsettled > 0 && moves, "{sum:?}");
    }
}

#[test]
fn damage_is_seen_and_never_served() {
    let sum = run_many(DAMAGED_SEEDS, run_damage);
    if number_from_env("SIM_SEED").is_none() {
        assert!(sum.corrupt > 0, "{sum:?}");
    }
}

#[test]
fn a_lost_segment_is_noticed_at_the_start() {
    run_many(LOSS_SEEDS, run_loss);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let seed = number_from_env("SIM_SEED").unwrap_or(11);
    for run in [run as Run, run_groups] {
        let hashes = [seed, seed, seed + 1].map(|seed| try_run(seed, run).map(|history| history.hash));
        let [first, again, other] = hashes.map(|hash| hash.unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(first, again);
        assert_ne!(first, other);
    }
}

/// Runs seeds with a bug until the checker sees it, which without the bug it does not.
fn is_caught(buggy: Run) {
    let caught = (0..PLANTED_SEEDS).find(|seed| try_run(*seed, buggy).is_err());
    let seed = caught.expect("the bug is seen");
    try_run(seed, run_groups).unwrap_or_else(|failure| panic!("it was not the bug: {failure}"));
}

#[test]
fn an_ack_that_is_confirmed_before_its_commit_is_caught() {
    is_caught(|seed, trace| run_groups_with(seed, trace, Some(Planted::AckBeforeCommit)));
}

#[test]
fn a_lease_that_does_not_run_out_is_caught() {
    is_caught(|seed, trace| run_groups_with(seed, trace, Some(Planted::EndlessLease)));
}

#[test]
fn a_dead_letter_that_moves_in_two_commits_is_caught() {
    is_caught(|seed, trace| run_groups_with(seed, trace, Some(Planted::MoveInTwoCommits)));
}
