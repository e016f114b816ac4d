//! `loadgen drain`: what is there is consumed through a group until nothing is left.

use std::sync::Arc;

use ringbolt_wire::BatchView;
use ringbolt_wire::message::{DeliveredRange, GroupConfig, GroupStart};

use crate::admin::{Admin, resolve};
use crate::args::DrainArgs;
use crate::engine::{EngineConfig, EngineError, raw};
use crate::error::Error;
use crate::group::{
    AckMode, Chance, Conduct, Consumed, Context, Course, Crew, Entry, Finished, GroupPlan, Holder, Member,
    Membership, Watcher,
};
use crate::lag::{Ended, Waiting, wait_for_the_end};
use crate::report::{Progress, Report};
use crate::run::{Outcome, nanos, watch};
use crate::signals::Signals;
use crate::stats::{Clock, recorder};

/// Consumes everything that the group has not completed.
///
/// # Errors
/// If it cannot begin, or not be carried through; what goes wrong on the way is in the
/// outcome.
pub fn drain(args: &DrainArgs, signals: Arc<Signals>, command: &str) -> Result<Outcome, Error> {
    let addr = resolve(&args.addr)?;
    let mut admin = Admin::connect(addr)?;
    let plan = plan(args);
    let membership = Membership::of(&mut admin, &plan)?;
    if membership.lag == 0 {
        return Err(Error::Usage(format!(
            "group {} has nothing to consume of topic {}; produce something, or reset the group",
            plan.name, plan.topic
        )));
    }
    let (clock, course) = (Clock::start(), Arc::new(Course::default()));
    let (recorder, intervals) = recorder();
    let mut ctx = Context::new(membership.group.id, conduct(args), clock, recorder, Unjudged);
    let members: Vec<Member> = (0..args.consumers)
        .flat_map(|_| &membership.seats)
        .map(|seat| Member::new(*seat, &mut ctx))
        .collect();
    let goal = (args.ack_mode != AckMode::Nowait).then_some(membership.lag);
    let crew = Crew::new(members, ctx, course.clone(), goal);
    let config = EngineConfig { addr, core: args.core, busy_poll: args.busy_poll };
    let driving = std::thread::Builder::new()
        .name("consumers".into())
        .spawn(move || raw::run(crew, config).map(Crew::finish))
        .map_err(|error| EngineError::Ring(error.to_string()))?;
    let waiting = {
        let (course, group, patience) = (course.clone(), plan.name.clone(), args.timeout);
        std::thread::Builder::new()
            .name("lag".into())
            .spawn(move || {
                let waiting =
                    Waiting { addr, group: &group, patience, course: &course, signals: Some(&signals) };
                let ended = wait_for_the_end(&waiting);
                course.stop();
                ended
            })
            .map_err(|error| EngineError::Ring(error.to_string()))?
    };
    let totals = watch(&intervals, &Progress::new(args.quiet, None), "connecting");
    // Whatever has ended the consumers.
    course.stop();
    let Finished { counts, failure, .. } = driving.join().map_err(|_| Error::Panic)??;
    let given_up = match waiting.join().map_err(|_| Error::Panic)? {
        Ended::GivenUp(why) => Some(why),
        Ended::Drained | Ended::Stopped => None,
    };
    let failure = failure.or(given_up);
    if args.group.is_none() {
        admin.delete_group(&plan.name)?;
    }
    let consumed = Consumed::of(&counts, args.consumers);
    let report = Report {
        latency_us: consumed.confirmation_us,
        measured_s: consumed.seconds,
        engine: "raw",
        command: command.to_owned(),
        consumed: Some(consumed),
        totals,
        ..Report::default()
    };
    Ok(Outcome { report, failure })
}

fn plan(args: &DrainArgs) -> GroupPlan {
    let fresh = || format!("loadgen-drain-{:016x}", uuid::Uuid::new_v4().as_u64_pair().0);
    let defaults = GroupConfig::default();
    GroupPlan {
        name: args.group.clone().unwrap_or_else(fresh),
        topic: args.topic.clone(),
        start: GroupStart::Earliest,
        // No dead letters: whatever is drained is acknowledged.
        config: GroupConfig { mode: args.mode.into(), max_failures: 0, ..defaults },
    }
}

fn conduct(args: &DrainArgs) -> Conduct {
    Conduct {
        credit: args.credit,
        // The command line has seen to it that it fits.
        lease_ms: args.lease.map_or(0, |lease| lease.as_millis() as u32),
        ack: args.ack_mode,
        work: nanos(args.work_time),
        fail: Chance::default(),
        crash: Chance::default(),
    }
}

/// Sees to it that what comes is record batches, and is not interested otherwise.
struct Unjudged;

impl Watcher for Unjudged {
    fn delivered(
        &mut self,
        _: &Holder,
        range: &DeliveredRange,
        mut payload: &[u8],
        _: u64,
    ) -> Result<(), String> {
        let mut next = range.lease.base_offset;
        while !payload.is_empty() {
            let batch =
                BatchView::parse_unchecked_records(payload, u32::MAX).map_err(|error| error.to_string())?;
            if batch.header().base_offset() != next {
                return Err(format!("offset {} came where {next} was to be", batch.header().base_offset()));
            }
            next = batch.header().next_offset();
            payload = &payload[batch.as_bytes().len()..];
        }
        match next == range.lease.end() {
            true => Ok(()),
            false => Err(format!("offsets up to {} were to come, and came up to {next}", range.lease.end())),
        }
    }

    fn settling(&mut self, _: &Holder, _: &[Entry]) {}

    fn settled(&mut self, _: &Holder, _: &Entry, _: u16) {}

    fn unanswered(&mut self, _: &Holder, _: &[Entry]) {}
}

#[cfg(test)]
mod tests {
    use ringbolt_wire::message::LeaseRange;
    use ringbolt_wire::{BatchBuilder, Epoch, Offset, PartitionId, ProducerId, Sequence};

    use super::*;

    #[test]
    fn what_is_not_what_was_announced_ends_the_run() {
        let mut batch = BatchBuilder::new();
        (0..3u8).for_each(|i| batch.push(1, None, &[i], &[]));
        let bytes = batch.finish(PartitionId::default(), ProducerId(1), Epoch(0), Sequence(0));
        let watch = |base_offset: u64, count: u32, bytes: &[u8]| {
            let base_offset = Offset(base_offset);
            let lease = LeaseRange { partition: 0, base_offset, count, acquired: 1 };
            let payload_len = bytes.len() as u32;
            let range = DeliveredRange { lease, failed: 0, first_delivery_us: 0, payload_len };
            Unjudged.delivered(&Holder::default(), &range, bytes, 0)
        };
        assert_eq!(watch(0, 3, &bytes), Ok(()));
        assert!(watch(1, 3, &bytes).is_err() && watch(0, 4, &bytes).is_err());
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(watch(0, 3, &damaged).is_err());
    }
}
