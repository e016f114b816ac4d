//! Deliveries, settles, refusals and lost connections in any order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Deliver(u8),
    Ack(u8),
    Drop(u8),
    Answer,
    RefuseNext,
    Lose,
    Reconnect,
    Wait,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => any::<u8>().prop_map(Event::Deliver),
        4 => any::<u8>().prop_map(Event::Ack),
        2 => any::<u8>().prop_map(Event::Drop),
        3 => Just(Event::Answer),
        1 => Just(Event::RefuseNext),
        1 => Just(Event::Lose),
        2 => Just(Event::Reconnect),
        1 => Just(Event::Wait),
    ];
    proptest::collection::vec(event, 1..120)
}

const WINDOW: u64 = 20;

/// A consumer, its application, and a broker that knows nothing but credit and leases.
struct Play {
    state: State,
    now_us: u64,
    credit: u64,
    leased: BTreeSet<u64>,
    next: u64,
    /// Settles that are to be answered, and whether they were carried out.
    unanswered: Vec<(SettleId, bool)>,
    refuse_next: bool,
    in_hand: Vec<u64>,
    waiting: BTreeSet<u64>,
    next_tag: u64,
}

impl Play {
    fn new() -> Self {
        let config = ShardConfig { window: Credit { records: WINDOW, bytes: 1000 }, ..config() };
        Play {
            state: State::new(config, 1),
            now_us: 0,
            credit: 0,
            leased: BTreeSet::new(),
            next: 0,
            unanswered: Vec::new(),
            refuse_next: false,
            in_hand: Vec::new(),
            waiting: BTreeSet::new(),
            next_tag: 0,
        }
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Deliver(n) => {
                let count = u64::from(n % 7 + 1).min(self.credit);
                if count > 0 && self.state.link == Link::Attached {
                    deliver(&mut self.state, range(0, self.next, count as u32, 1), self.now_us);
                    self.leased.extend(self.next..self.next + count);
                    self.in_hand.extend(self.next..self.next + count);
                    self.next += count;
                    self.credit -= count;
                }
            }
            Event::Ack(n) => self.settles(n, Verb::Ack),
            Event::Drop(n) => self.settles(n, Verb::Release),
            Event::Answer => self.answer(),
            Event::RefuseNext => self.refuse_next = true,
            Event::Lose => {
                self.state.on_disconnected();
                self.unanswered.clear();
                self.credit = 0;
            }
            Event::Reconnect if self.state.link == Link::Down => self.state.on_connected(),
            Event::Reconnect => {}
            Event::Wait => self.now_us += 60_000,
        }
    }

    fn settles(&mut self, n: u8, verb: Verb) {
        if self.in_hand.is_empty() {
            return;
        }
        let offset = self.in_hand.swap_remove(usize::from(n) % self.in_hand.len());
        let tag = (verb == Verb::Ack).then_some(self.next_tag);
        self.next_tag += 1;
        self.waiting.extend(tag);
        self.state.settle(0, Offset(offset), 1, verb, tag, self.now_us);
    }

    fn answer(&mut self) {
        if self.unanswered.is_empty() {
            return;
        }
        match self.unanswered.remove(0) {
            (id, true) => self.state.on_settled(id, Settled::default(), self.now_us),
            (id, false) => {
                let refusal = ErrorResponse::new(ErrorCode::Overloaded, "");
                self.state.on_settle_refused(id, refusal, self.now_us);
            }
        }
    }

    fn carry_out(&mut self) -> Result<(), TestCaseError> {
        for step in steps(&mut self.state, self.now_us) {
            match step {
                Step::Attach(attach) => self.credit = attach.credit.records,
                Step::Settle { id, settle } => {
                    let refused = std::mem::take(&mut self.refuse_next);
                    if !refused {
                        self.take(&settle);
                    }
                    self.unanswered.push((id, !refused));
                }
                Step::Tell(settle) => self.take(&settle),
                Step::Resolved { tag, .. } => prop_assert!(self.waiting.remove(&tag), "{} ended twice", tag),
                Step::Lost(lost) => {
                    let gone = lost.base_offset.0..lost.end().0;
                    self.in_hand.retain(|offset| !gone.contains(offset));
                    self.leased.retain(|offset| !gone.contains(offset));
                }
                other => prop_assert!(false, "{other:?}"),
            }
            prop_assert!(self.leased.len() as u64 + self.credit <= WINDOW);
        }
        Ok(())
    }

    fn take(&mut self, settle: &Settle) {
        self.credit += settle.credit.records;
        for item in settle.items.iter().filter(|item| !matches!(item.verb, Verb::Extend { .. })) {
            let gone = item.range.base_offset.0..item.range.end().0;
            self.leased.retain(|offset| !gone.contains(offset));
        }
    }
}

proptest! {
    /// Whatever happens, the broker may never send more than the window has room for;
    /// everybody who waits is answered once; and in the end no credit is missing.
    #[test]
    fn the_window_is_kept_and_everybody_is_answered_once(events in events()) {
        let mut play = Play::new();
        for event in events.iter().chain([&Event::Lose, &Event::Reconnect]) {
            play.happens(event);
            play.carry_out()?;
        }
        play.refuse_next = false;
        for _ in 0..50 {
            play.now_us += 20_000;
            play.carry_out()?;
            play.answer();
        }
        prop_assert!(play.waiting.is_empty(), "nobody answered {:?}", play.waiting);
        let sum = play.leased.len() as u64 + play.credit;
        prop_assert_eq!(sum, WINDOW, "{} leased, {} may come", play.leased.len(), play.credit);
    }
}
