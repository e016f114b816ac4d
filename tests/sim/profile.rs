//! What a seed decides about a simulation before it begins. Every knob is drawn
//! anew for each seed, so that their combinations come up (swarm testing, Groce
//! et al. 2012).

use super::disk::DiskHabits;
use super::rng::Rng;
use super::workload::{Form, Habits, Size};
use ringbolt::limits::MIN_SEGMENT_LEN;

#[derive(Clone, Debug)]
pub struct Profile {
    pub shards: u16,
    pub segment_len: u64,
    /// Chunks of memory of each shard.
    pub chunks: usize,
    pub commits_in_flight: usize,
    pub commit_delay_us: u64,
    pub retention_bytes: Option<u64>,
    pub retention_us: Option<u64>,
    pub tail_cache_bytes: usize,
    pub page_cache_bytes: usize,
    /// Records that may wait for their time at a shard.
    pub max_delayed: usize,
    pub disk: DiskHabits,
    pub habits: Habits,
    pub nameless: usize,
    pub named: usize,
    pub rivals: usize,
    pub consumers: usize,
    pub vandals: usize,
    /// Clients that consume through groups.
    pub group_consumers: usize,
    /// Usual longest time of a message on its way, µs.
    pub network_us: u64,
    /// Starts of the broker.
    pub lives: u64,
    /// Answers in one life, at most.
    pub answers: u64,
    /// A connection is lost after one in so many answers; 0 for never.
    pub loses_one_in: u64,
    /// The disk becomes full after one in so many answers; 0 for never.
    pub fills_one_in: u64,
    /// The wall clock jumps after one in so many answers; 0 for never.
    pub jumps_one_in: u64,
    /// Lives in ten that end because a write fails.
    pub fails_in_ten: u64,
    /// Lives in ten that end in order.
    pub stops_in_ten: u64,
}

impl Profile {
    pub fn draw(rng: &mut Rng) -> Profile {
        let segment_len = MIN_SEGMENT_LEN;
        let retained = rng.between(2, 5) * segment_len;
        let kept = rng.percent(50);
        Profile {
            shards: rng.pick(&[1, 1, 2, 3]),
            segment_len,
            chunks: rng.between(6, 16) as usize,
            commits_in_flight: rng.between(1, 16) as usize,
            commit_delay_us: rng.pick(&[0, 0, 0, 300]),
            retention_bytes: kept.then_some(retained),
            retention_us: rng.one_in(6).then_some(400_000),
            tail_cache_bytes: rng.pick(&[0, 1 << 20, 4 << 20]),
            page_cache_bytes: rng.pick(&[0, 4 << 20, 12 << 20]),
            max_delayed: 10_000,
            disk: DiskHabits {
                write_us: rng.pick(&[20, 100, 1_000]),
                slow_one_in: rng.pick(&[20, 200, 5_000]),
                read_fails_one_in: rng.pick(&[0, 0, 0, 300]),
            },
            habits: Self::habits(rng),
            nameless: rng.below(3) as usize,
            named: rng.between(1, 4) as usize,
            rivals: rng.pick(&[0, 0, 2, 3]),
            consumers: rng.between(1, 5) as usize,
            vandals: rng.below(2) as usize,
            group_consumers: 0,
            network_us: rng.pick(&[5, 50, 500]),
            lives: rng.between(3, 9),
            answers: rng.pick(&[40, 150, 500]),
            loses_one_in: rng.pick(&[0, 30, 100]),
            fills_one_in: rng.pick(&[0, 0, 100]),
            jumps_one_in: rng.pick(&[0, 50]),
            fails_in_ten: rng.pick(&[0, 0, 2]),
            stops_in_ten: rng.pick(&[0, 2, 5]),
        }
    }

    fn habits(rng: &mut Rng) -> Habits {
        let sizes = rng.pick(&[
            vec![Size::Tiny],
            vec![Size::Tiny, Size::Small, Size::Medium],
            vec![Size::Small, Size::Medium, Size::Large],
            vec![Size::Medium, Size::Large, Size::Large],
        ]);
        let forms = rng.pick(&[
            vec![Form::Borrowed],
            vec![Form::Borrowed, Form::Shared],
            vec![Form::Aligned],
            vec![Form::Borrowed, Form::Shared, Form::Aligned],
        ]);
        Habits {
            window: rng.pick(&[1, 4, 12]),
            think_us: rng.pick(&[5, 100, 2_000]),
            sizes,
            forms,
            topics: rng.between(1, 3) as usize,
            partitions: rng.between(1, 4) as u32,
            churn: rng.percent(30),
            groups: 0,
            keys: 0,
            dated: false,
        }
    }

    /// A simulation in which consumer groups are what matters.
    pub fn draw_with_groups(rng: &mut Rng) -> Profile {
        let drawn = Profile::draw(rng);
        let sizes = rng.pick(&[
            vec![Size::Tiny],
            vec![Size::Tiny],
            vec![Size::Tiny, Size::Tiny, Size::Small],
            vec![Size::Tiny, Size::Small, Size::Medium],
            vec![Size::Small, Size::Medium, Size::Large],
        ]);
        let habits = Habits {
            window: rng.pick(&[1, 3]),
            think_us: rng.pick(&[100, 2_000, 10_000]),
            sizes,
            topics: rng.between(1, 2) as usize,
            partitions: rng.between(1, 3) as u32,
            churn: rng.percent(20),
            groups: rng.between(1, 3) as usize,
            keys: rng.pick(&[0, 2, 7]),
            dated: rng.percent(50),
            ..drawn.habits
        };
        Profile {
            disk: DiskHabits { read_fails_one_in: 0, ..drawn.disk },
            habits,
            nameless: 0,
            named: rng.between(1, 2) as usize,
            rivals: 0,
            consumers: rng.below(2) as usize,
            vandals: 0,
            group_consumers: rng.between(2, 5) as usize,
            max_delayed: rng.pick(&[1, 10, 10_000]),
            lives: rng.between(2, 5),
            answers: rng.pick(&[100, 300, 800]),
            ..drawn
        }
    }
}
