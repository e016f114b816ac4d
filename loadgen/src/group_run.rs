//! The consumers of `loadgen run --group`: beside the producers, and until everything is
//! completed.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringbolt_wire::TopicId;
use ringbolt_wire::message::GroupStart;

use crate::admin::Admin;
use crate::args::RunArgs;
use crate::consumer::Consumer;
use crate::engine::{EngineConfig, EngineError, consume, raw};
use crate::error::Error;
use crate::group::{AckMode, Consumed, Context, Course, Crew, Finished, GroupPlan, Member, Membership};
use crate::judge::group::{GroupJudge, Promises};
use crate::lag::{Ended, Waiting, wait_for_the_end};
use crate::report::Fetched;
use crate::signals::Signals;
use crate::sinks::{DeadLetterSink, GroupSink};
use crate::stats::{Clock, recorder};

/// Least time without progress after which a group is given up: leases have to run out,
/// and waits to pass.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long dead letters are waited for of which the broker says that they are there.
const DEAD_LETTER_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes per fetch of dead letters.
const FETCH_BYTES: u32 = 1 << 20;

/// The consumers of a run, under way.
pub struct GroupRun {
    plan: GroupPlan,
    membership: Membership,
    config: EngineConfig,
    clock: Clock,
    consumers: u32,
    patience: Duration,
    course: Arc<Course>,
    driving: JoinHandle<Result<Finished<GroupSink>, EngineError>>,
}

/// What they leave behind.
pub struct GroupEnd {
    /// Knows what was delivered and settled, and what is dead; not yet what was sent.
    pub judge: GroupJudge,
    /// Whether the broker says that everything is completed.
    pub is_drained: bool,
    /// The figures of what they did.
    pub consumed: Consumed,
    /// The figures of what came.
    pub fetched: Fetched,
    /// What kept them from going on.
    pub failure: Option<String>,
}

impl GroupRun {
    /// Finds or creates the group, and lets its consumers begin.
    ///
    /// # Errors
    /// If the broker refuses, the arguments do not fit, or there is no ring.
    pub fn start(
        args: &RunArgs,
        name: &str,
        config: EngineConfig,
        clock: Clock,
        signals: Arc<Signals>,
        run: u64,
    ) -> Result<GroupRun, Error> {
        let plan = GroupPlan {
            name: name.to_owned(),
            topic: args.topic.clone(),
            start: GroupStart::End,
            config: args.grouped.config(),
        };
        let membership = Admin::persist(config.addr, |admin| Membership::of(admin, &plan))?;
        if membership.has_gaps {
            return Err(Error::Usage(format!(
                "group {name} has completed records behind others that it has not, and nobody could tell them \
                 from lost ones: loadgen drain completes the rest, or choose another --group"
            )));
        }
        let group = &membership.group;
        let has_dead_letters = group.dead_letter != TopicId(0);
        let promises = Promises {
            topic: group.topic,
            group: group.id,
            mode: group.config.mode,
            max_failures: if has_dead_letters { group.config.max_failures } else { 0 },
            up_to: args.grouped.ack_mode == AckMode::UpTo,
        };
        let judge = GroupJudge::new(promises, &membership.floors);
        let sink = GroupSink::new(judge, run, clock, signals);
        // Second by second the producers are of more interest.
        let (recorder, _) = recorder();
        let mut ctx = Context::new(group.id, args.grouped.conduct(), clock, recorder, sink);
        let members: Vec<Member> = (0..args.consumers)
            .flat_map(|_| &membership.seats)
            .map(|seat| Member::new(*seat, &mut ctx))
            .collect();
        let course = Arc::new(Course::default());
        let crew = Crew::new(members, ctx, course.clone(), None);
        let driving = std::thread::Builder::new()
            .name("consumers".into())
            .spawn(move || raw::run(crew, config).map(Crew::finish))
            .map_err(|error| EngineError::Ring(error.to_string()))?;
        let lease = Duration::from_millis(group.config.lease_ms.into());
        let patience = PATIENCE.max(2 * args.grouped.lease().unwrap_or(lease));
        let consumers = args.consumers;
        Ok(GroupRun { plan, membership, config, clock, consumers, patience, course, driving })
    }

    /// Waits until everything that was produced is completed, ends the consumers, and
    /// reads the dead letters.
    ///
    /// # Errors
    /// If there is no ring any more, or a thread has panicked.
    pub fn catch_up(self) -> Result<GroupEnd, Error> {
        let ended = wait_for_the_end(&Waiting {
            addr: self.config.addr,
            group: &self.plan.name,
            patience: self.patience,
            course: &self.course,
            signals: None,
        });
        self.course.stop();
        let Finished { watcher, counts, mut failure } = self.driving.join().map_err(|_| Error::Panic)??;
        let (judge, fetched) = watcher.finish();
        let is_drained = ended == Ended::Drained && failure.is_none();
        if let Ended::GivenUp(why) = ended {
            failure.get_or_insert(why);
        }
        let reading = DeadLetters {
            name: &self.plan.name,
            membership: &self.membership,
            config: self.config,
            clock: self.clock,
        };
        let sink = reading.read(judge, is_drained)?;
        let consumed = Consumed::of(&counts, self.consumers);
        let failure = failure.or(sink.failure);
        Ok(GroupEnd { judge: sink.judge, is_drained, consumed, fetched, failure })
    }
}

/// The dead letters of a run.
struct DeadLetters<'a> {
    name: &'a str,
    membership: &'a Membership,
    config: EngineConfig,
    clock: Clock,
}

impl DeadLetters<'_> {
    /// Shows them to the judge: as many as the broker says that there are, if it comes to
    /// that.
    fn read(&self, judge: GroupJudge, is_drained: bool) -> Result<DeadLetterSink, Error> {
        let next = self.membership.dead_ends.clone();
        let mut sink = DeadLetterSink { judge, next, failure: None };
        if sink.next.is_empty() {
            return Ok(sink);
        }
        let start = Instant::now();
        loop {
            let wanted = match is_drained {
                true => Admin::persist(self.config.addr, |admin| admin.describe_group(self.name))?
                    .partitions
                    .iter()
                    .map(|partition| partition.progress.dead_lettered_total)
                    .sum::<u64>()
                    .saturating_sub(self.membership.dead_lettered),
                false => 0,
            };
            sink = self.read_on(sink)?;
            let is_enough = sink.judge.dead_letters() >= wanted || sink.failure.is_some();
            if is_enough || start.elapsed() > DEAD_LETTER_PATIENCE {
                return Ok(sink);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads what follows what was read.
    fn read_on(&self, sink: DeadLetterSink) -> Result<DeadLetterSink, Error> {
        let mut consumer = Consumer::new(sink.next.iter().copied(), FETCH_BYTES);
        consumer.freeze();
        let signals = Arc::new(Signals::default());
        signals.freeze(self.clock.now());
        let (mut sink, failure) = consume::run(vec![consumer], sink, self.config, self.clock, signals)?;
        sink.failure = sink.failure.or(failure);
        Ok(sink)
    }
}
