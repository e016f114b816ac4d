//! What goes wrong between answers: connections, disks, clocks, and clients that are slow.

use ringbolt::shard::event::{Event, ReplyTo};

use super::checker::Asked;
use super::group_check::GroupAsked;
use super::harness::{Due, Simulation};

impl Simulation {
    /// The world is not kind: after an answer, something may go wrong.
    pub(super) fn disturb(&mut self, seat: usize) {
        let p = &self.profile;
        let (loses, fills, jumps) = (p.loses_one_in, p.fills_one_in, p.jumps_one_in);
        let mut one_in = |n: u64| self.active && n > 0 && self.rng.one_in(n);
        let (loses, fills, jumps, hurries) = (one_in(loses), one_in(fills), one_in(jumps), one_in(20));
        let pauses = one_in(20);
        if loses {
            let session = self.seats[seat].client.session();
            self.close(seat, session);
            self.with_client(seat, |client, cx| client.lose(cx));
        }
        if fills {
            self.nodes.iter_mut().for_each(|node| node.disk.set_full(true));
            let lasts = self.rng.between(1_000, 3_000_000);
            self.agenda.add(self.clock.now().mono_us + lasts, Due::DiskHasRoom);
        }
        if jumps {
            let by = self.rng.below(4_000_000) as i64 - 2_000_000;
            self.clock.jump_wall(by);
        }
        if hurries {
            self.hurry_a_fetch();
        }
        if pauses {
            self.pause_a_consumer();
        }
    }

    fn hurry_a_fetch(&mut self) {
        let now = self.clock.now();
        let waiting = self.checker.open.iter_mut().find_map(|(key, open)| match &mut open.asked {
            Asked::Fetch(asked) => {
                asked.hurried = true;
                Some((*key, open.shard))
            }
            Asked::Group(GroupAsked::Attach { .. } | GroupAsked::Receive { .. }) if !open.unheard => {
                self.checker.groups.hurried(*key);
                Some((*key, open.shard))
            }
            _ => None,
        });
        let Some(((session, correlation), shard)) = waiting else { return };
        let from = ReplyTo { core: 0, session, correlation };
        self.nodes[shard].handle(Event::FetchNow { from }, now);
    }

    /// One that is attached has not read what it was sent, for a while.
    fn pause_a_consumer(&mut self) {
        let mut attached = self.checker.open.iter().filter(|(_, open)| {
            matches!(open.asked, Asked::Group(GroupAsked::Attach { .. })) && !open.unheard
        });
        let Some((&(session, correlation), shard)) = attached.next().map(|(key, open)| (key, open.shard))
        else {
            return;
        };
        let from = ReplyTo { core: 0, session, correlation };
        self.paused.insert((session, correlation));
        let now = self.clock.now();
        self.trace.line(now.mono_us, format_args!("s{shard} pauses {session}/{correlation}"));
        self.nodes[shard].handle(Event::Pause { from, pauses: true }, now);
        let lasts = self.rng.between(1, 2_000_000);
        self.agenda.add(now.mono_us + lasts, Due::PauseEnds(shard, from));
    }

    pub(super) fn end_pause(&mut self, shard: usize, from: ReplyTo) {
        self.paused.remove(&(from.session, from.correlation));
        self.nodes[shard].handle(Event::Pause { from, pauses: false }, self.clock.now());
    }
}
