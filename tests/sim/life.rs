//! The lives of a simulated broker: it starts, serves, and ends in one of the
//! ways in which a broker ends.

use ringbolt::log::recovery::{LogIdentity, RecoveredLog, RecoveryError, recover};
use ringbolt::shard::event::Event;
use ringbolt::shard::{Shard, ShardConfig};
use ringbolt_wire::ShardId;

use super::audit::Auditor;
use super::checker::Asked;
use super::disk::DiskReader;
use super::harness::{MAX_ANSWER_US, Simulation};
use super::node::ShardOf;

impl Simulation {
    /// Starts the broker: recovery, then the shards.
    pub fn boot(&mut self) -> Result<(), RecoveryError> {
        self.term += 1;
        let recovered = self.recover()?;
        self.forget_what_was_cut();
        let catalog = recovered[0].state.catalog.clone();
        let now = self.clock.now();
        for (i, log) in recovered.into_iter().enumerate() {
            let p = &self.profile;
            let config = ShardConfig {
                shard: ShardId(i as u16),
                shards: p.shards,
                commits_in_flight: p.commits_in_flight,
                commit_delay_us: p.commit_delay_us,
                retention_bytes: p.retention_bytes,
                retention_us: p.retention_us,
                tail_cache_bytes: p.tail_cache_bytes,
                page_cache_bytes: p.page_cache_bytes,
                max_delayed: p.max_delayed,
                max_open: 10_000,
                seed: self.rng.next(),
            };
            let node = &mut self.nodes[i];
            let shard = Shard::new(config, log, &catalog, node.pool.clone(), now);
            node.shard = Some(Box::new(ShardOf(shard)));
        }
        for seat in 0..self.seats.len() {
            self.with_client(seat, |client, cx| client.lose(cx));
        }
        self.act();
        Ok(())
    }

    fn recover(&mut self) -> Result<Vec<RecoveredLog>, RecoveryError> {
        let mut logs = Vec::new();
        self.recovered_next.clear();
        for (i, node) in self.nodes.iter_mut().enumerate() {
            let model = &self.checker.logs[i];
            let (log_id, shard) = (model.log, ShardId(i as u16));
            let identity = LogIdentity { log_id, shard, segment_len: model.segment_len, term: self.term };
            let (extent, segments) = (node.disk.start(), node.disk.segments());
            self.trace.line(self.clock.now().mono_us, format_args!("s{i} has {segments:?}"));
            let reader = DiskReader::new(&node.disk);
            let log = recover(identity, extent, &segments, &reader, &mut node.pool)?;
            assert_eq!(node.pool.taken(), 0, "recovery gives its memory back");
            let (now, cut, next) = (self.clock.now().mono_us, log.cut, log.tail.next_index);
            let (read, segments) = (reader.bytes_read(), segments.iter().map(|s| s.0).collect::<Vec<_>>());
            self.trace.line(
                now,
                format_args!("s{i} recovered {segments:?} up to {next}, {read} bytes read, cut {cut:?}"),
            );
            self.recovered_next.push(next);
            let expected = self.checker.logs[i].durable_index() + 1;
            assert!(
                next == expected || (self.checker.damaged && next < expected),
                "recovery keeps what is whole, and nothing beyond a hole: {next}, not {expected}",
            );
            logs.push(log);
        }
        for (shard, log) in logs.iter_mut().enumerate() {
            self.lose_second_commit(shard, log);
        }
        Ok(logs)
    }

    /// Lets the broker serve its clients until it has given so many answers.
    pub fn serve(&mut self, answers: u64) {
        self.active = true;
        for seat in 0..self.seats.len() {
            self.wake_in(seat, 1);
        }
        let until = self.answers + answers;
        while self.answers < until && !self.nodes.iter().any(|node| node.stopped) {
            assert!(self.round(), "nothing is left to happen, and the clients want more: {}", self.waiting());
        }
    }

    /// No new work; everything that was begun ends.
    pub fn quiesce(&mut self) {
        self.active = false;
        self.nodes.iter_mut().for_each(|node| node.disk.set_full(false));
        for seat in 0..self.seats.len() {
            self.wake_in(seat, 1);
        }
        let deadline = self.clock.now().mono_us + 4 * MAX_ANSWER_US;
        while !(self.checker.is_idle() && self.seats.iter().all(|seat| seat.client.is_done())) {
            assert!(self.clock.now().mono_us < deadline, "unanswered: {:?}", self.checker.open);
            assert!(self.round(), "nothing is left to happen, and these wait: {}", self.waiting());
        }
    }

    /// Who waits for what, for a report.
    fn waiting(&self) -> String {
        let held = self.seats.iter().filter_map(|seat| seat.held.front());
        let held: Vec<_> = held.map(|out| (out.shard, out.session, out.correlation)).collect();
        let pools: Vec<_> =
            self.nodes.iter().map(|node| (node.pool.taken(), node.pool.most_taken())).collect();
        let open: Vec<_> = self.checker.open.iter().filter(|(_, open)| !open.may_be_dropped()).collect();
        format!("held back {held:?}; chunks taken now and at most {pools:?}; unanswered {open:?}")
    }

    /// Reads every record back, with nothing else going on.
    pub fn audit(&mut self) {
        let mut cx = Self::cx(&mut self.rng, &mut self.numbers, (&[], &[]), &self.profile, &self.clock, true);
        let auditor = Auditor::new(&mut cx);
        let seat = self.add_client(Box::new(auditor));
        let active = std::mem::replace(&mut self.active, false);
        self.agenda_without_clients();
        self.wake_in(seat, 1);
        while !self.seats[seat].client.is_done() {
            assert!(self.round(), "nothing is left to happen, and the audit is not done");
        }
        self.active = active;
        self.seats.pop();
    }

    /// The clients pause: their wake-ups are forgotten until they are set anew.
    fn agenda_without_clients(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.wakes_at_us = None);
    }

    /// The machine goes down, and some of its bits have rotted.
    pub fn crash_damaged(&mut self) {
        self.end_life();
        for i in 0..self.nodes.len() {
            let durable = self.checker.logs[i].durable_commits().len();
            self.checker.logs[i].truncate(durable);
        }
    }

    /// The machine goes down, now.
    pub fn crash(&mut self) {
        self.end_life();
        for (i, node) in self.nodes.iter().enumerate() {
            let beyond = self.checker.logs[i].crashed(&node.disk);
            let left = self.checker.logs[i].durable_index();
            let now = self.clock.now().mono_us;
            self.trace.line(now, format_args!("s{i} left up to {left}, and {beyond} whole ones beyond"));
        }
        self.checker.groups.crashed(&self.checker.logs);
    }

    fn end_life(&mut self) {
        self.trace.line(self.clock.now().mono_us, format_args!("CRASH"));
        self.agenda.clear();
        for seat in &mut self.seats {
            (seat.wakes_at_us, seat.last_arrival_us, seat.last_answer_us) = (None, 0, 0);
            seat.held.clear();
        }
        self.checker.crashed();
        for node in &mut self.nodes {
            node.lose_memory();
            node.disk.crash();
            assert_eq!(node.pool.taken(), 0, "memory is lost: {} chunks are still held", node.pool.taken());
        }
    }

    /// The broker is told to stop, and does; what it has not answered by then
    /// it never will.
    pub fn stop(&mut self) {
        let now = self.clock.now();
        self.trace.line(now.mono_us, format_args!("STOP"));
        self.active = false;
        self.checker.stopping = true;
        self.checker.groups.stopped();
        for open in self.checker.open.values_mut() {
            if let Asked::Fetch(asked) = &mut open.asked {
                asked.hurried = true;
            }
        }
        self.nodes.iter_mut().for_each(|node| node.handle(Event::Stop, now));
        self.act();
        let deadline = now.mono_us + 2 * MAX_ANSWER_US;
        while !self.nodes.iter_mut().all(|node| node.shard().is_drained()) {
            assert!(self.clock.now().mono_us < deadline, "not drained: {:?}", self.checker.open);
            assert!(self.round(), "nothing is left to happen, and the shards are not drained");
        }
        assert!(self.nodes.iter().all(|node| !node.disk.has_pending_writes()));
        self.crash();
    }

    /// The next write of a shard fails; returns when the broker has stopped.
    pub fn fail_a_write(&mut self) {
        let shard = self.rng.below(self.nodes.len() as u64) as usize;
        self.nodes[shard].disk.fail_next_write();
        let mut rounds = 0;
        while !self.nodes.iter().any(|node| node.stopped) {
            rounds += 1;
            if rounds > 3000 || !self.round() {
                break;
            }
        }
        self.crash();
    }
}
