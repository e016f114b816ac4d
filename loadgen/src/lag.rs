//! Waits until a group has completed everything.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::admin::Admin;
use crate::group::Course;
use crate::signals::Signals;

/// Between two looks at whether the consumers get on.
const LOOK: Duration = Duration::from_millis(20);
/// Without progress for this long, the broker is asked: it has better things to do
/// while there is some.
const QUIET: Duration = Duration::from_millis(60);

/// What is waited for.
pub struct Waiting<'a> {
    /// The broker.
    pub addr: SocketAddr,
    /// The group.
    pub group: &'a str,
    /// Give up after this long without progress.
    pub patience: Duration,
    /// Of the consumers.
    pub course: &'a Course,
    /// Whether the user may end it.
    pub signals: Option<&'a Signals>,
}

/// How a wait has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Nothing is left.
    Drained,
    /// The consumers have ended by themselves.
    Stopped,
    /// It was given up, for this reason.
    GivenUp(String),
}

/// Returns when nothing is left, when the consumers have ended, or when there is no hope.
pub fn wait_for_the_end(waiting: &Waiting<'_>) -> Ended {
    let Waiting { addr, group, patience, course, signals } = waiting;
    let (mut seen, mut since) = (course.progress(), Instant::now());
    while !course.is_stopped() {
        if signals.is_some_and(Signals::is_interrupted) {
            return Ended::GivenUp("interrupted: the figures are of what was run until then".to_owned());
        }
        std::thread::sleep(LOOK);
        let progress = course.progress();
        if progress != seen {
            (seen, since) = (progress, Instant::now());
        }
        if since.elapsed() < QUIET {
            continue;
        }
        // A broker that is away is asked again later.
        let lag = lag(*addr, group);
        if lag == Some(0) {
            return Ended::Drained;
        }
        if since.elapsed() > *patience {
            let left = lag.map_or("an unknown number of".to_owned(), |lag| lag.to_string());
            return Ended::GivenUp(format!(
                "{left} records are not completed, and nothing happened for {} s",
                patience.as_secs()
            ));
        }
    }
    Ended::Stopped
}

/// Records of a group that are not completed; `None` if the broker does not say.
pub fn lag(addr: SocketAddr, group: &str) -> Option<u64> {
    let described = Admin::connect(addr).and_then(|mut admin| admin.describe_group(group)).ok()?;
    Some(described.partitions.iter().map(|partition| partition.progress.lag).sum())
}
