//! No two live pieces overlap, everything returns, on any thread.

use std::collections::BTreeMap;
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;

const BLOCKS: usize = CHUNK_LEN / BLOCK_LEN;

fn pool(chunks: usize) -> Pool {
    Pool::new(chunks * CHUNK_LEN).unwrap()
}

#[test]
fn chunks_are_aligned_bounded_and_come_back() {
    let mut pool = pool(3);
    let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    assert_eq!(taken.len(), 3);
    assert_eq!(pool.available(), 0);
    for buffer in &taken {
        assert_eq!(buffer.as_ptr() as usize % CHUNK_LEN, 0);
        assert_eq!(buffer.len(), CHUNK_LEN);
    }
    drop(taken);
    assert_eq!(pool.available(), 3);
}

#[test]
fn a_chunk_is_free_only_when_its_last_piece_is_gone() {
    let mut pool = pool(1);
    let mut first = pool.take().unwrap();
    let second = first.split_off(BLOCK_LEN).freeze();
    let third = second.slice(5..9);
    drop(first);
    assert_eq!(pool.available(), 0);
    drop(second);
    assert_eq!(pool.available(), 0, "a slice of shared bytes still holds the chunk");
    drop(third);
    assert_eq!(pool.available(), 1);
}

#[test]
fn a_piece_outlives_every_handle_on_the_pool() {
    let mut pool = pool(1);
    let mut piece = pool.take().unwrap();
    drop(pool);
    piece[CHUNK_LEN - 1] = 7;
    assert_eq!(piece.freeze()[CHUNK_LEN - 1], 7);
}

#[test]
fn pieces_know_their_registered_buffer_and_strangers_do_not() {
    let mut pool = pool(2);
    let mut piece = pool.take().unwrap();
    let rest = piece.split_off(CHUNK_LEN / 2);
    assert_eq!(pool.fixed_index(&piece), Some(0));
    assert_eq!(pool.fixed_index(&rest), Some(0));
    assert_eq!(pool.fixed_index(&rest.freeze().slice(100..101)), Some(0));
    assert_eq!(pool.fixed_index(&[]), None);
    assert_eq!(pool.fixed_index(&[0; 100]), None);
}

#[test]
fn every_slice_of_the_pool_has_a_number_of_its_own() {
    let mut pool = pool(2 * SLICE_LEN / CHUNK_LEN + 3);
    pool.prefault();
    let mut counts = BTreeMap::new();
    let mut all = Vec::new();
    while all.len() < pool.chunks() {
        // One may be with the thread that warms it at this moment.
        if let Some(piece) = pool.take() {
            *counts.entry(pool.fixed_index(&piece).unwrap()).or_insert(0) += 1;
            all.push(piece);
        }
    }
    assert_eq!(counts, BTreeMap::from([(0, 16), (1, 16), (2, 3)]));
}

/// While a thread warms the memory, others take and drop chunks of it: nobody
/// gets one twice, and none is lost.
#[test]
fn chunks_can_be_taken_while_the_memory_gets_warm() {
    let pool = pool(if cfg!(miri) { 20 } else { 100 });
    let taken = std::thread::scope(|scope| {
        let take_all = |_| {
            let mut pool = pool.clone();
            scope.spawn(move || {
                (0..1000).for_each(|_| drop(pool.take()));
                std::iter::from_fn(|| pool.take()).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..2).map(take_all).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    // One may be with the thread that warms it at this moment.
    assert!(taken.len() + 1 >= pool.chunks());
    assert!(!overlap(&taken));
    drop(taken);
    let start = std::time::Instant::now();
    while pool.available() < pool.chunks() || pool.warm_slices() * SLICE_LEN < pool.len() {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{pool:?}");
        std::thread::yield_now();
    }
}

/// Ends those who look at it, also when the test fails.
struct StopAtDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The thread that warms the memory hardly ever gets a processor here. Nobody
/// waits for what it holds meanwhile, least of all who needs memory.
#[test]
#[cfg_attr(miri, ignore = "the kernel's locks")]
fn a_warming_that_gets_no_processor_holds_up_nobody() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let worst = std::thread::scope(|scope| {
        for cpu in crate::io::pin::available_cpus().unwrap() {
            let stop = &stop;
            scope.spawn(move || {
                crate::io::pin::pin_thread(cpu).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let _stop = StopAtDrop(&stop);
        let _pool = pool(600);
        let start = std::time::Instant::now();
        let mut worst = std::time::Duration::ZERO;
        while start.elapsed() < std::time::Duration::from_secs(1) {
            let asked = std::time::Instant::now();
            // More than an allocator keeps: mapped and unmapped each time.
            drop(std::hint::black_box(Vec::<u8>::with_capacity(64 << 20)));
            worst = worst.max(asked.elapsed());
        }
        worst
    });
    assert!(worst < std::time::Duration::from_millis(250), "waited {worst:?} for memory");
}

#[test]
fn a_prefetch_changes_nothing_and_does_not_care_where_the_piece_ends() {
    let mut piece = pool(1).take().unwrap();
    piece.fill(7);
    let len = piece.len();
    for bytes in [0..len, len - 1..len + 4096, len..len, len + 1..usize::MAX, usize::MAX..usize::MAX] {
        piece.prefetch(bytes);
    }
    assert!(piece.iter().all(|byte| *byte == 7));
}

#[test]
fn sizes_out_of_range_are_refused() {
    for bytes in [0, CHUNK_LEN - 1, usize::MAX] {
        assert!(matches!(Pool::new(bytes), Err(PoolError::Size { .. })), "{bytes}");
    }
}

#[test]
#[should_panic(expected = "cut at 100")]
fn a_cut_off_the_grid_is_refused() {
    pool(1).take().unwrap().split_off(100);
}

/// Pieces that are handed from thread to thread, cut, filled, shared and
/// dropped there still hold what was written to them, and all return.
#[test]
fn pieces_keep_their_contents_across_threads_and_all_return() {
    let rounds = if cfg!(miri) { 4 } else { 20_000 };
    let pool = pool(4);
    let threads = 3;
    type Marked = (u8, Bytes);
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::channel::<Marked>()).unzip();
    std::thread::scope(|scope| {
        for (me, receiver) in receivers.into_iter().enumerate() {
            let (mut pool, senders) = (pool.clone(), senders.clone());
            scope.spawn(move || {
                for round in 0..rounds {
                    if let Some(mut piece) = pool.take() {
                        let rest = piece.split_off(BLOCK_LEN * (1 + (round % 3)));
                        for (n, mut part) in [piece, rest].into_iter().enumerate() {
                            let mark = (me * 80 + round % 40 * 2 + n) as u8;
                            // Both ends of the part: where a neighbour would reach.
                            let len = part.len();
                            part[..64].fill(mark);
                            part[len - 64..].fill(mark);
                            let _ = senders[(me + round) % threads].send((mark, part.freeze()));
                        }
                    }
                    for (mark, part) in receiver.try_iter() {
                        assert!(part[..64].iter().chain(&part[part.len() - 64..]).all(|&b| b == mark));
                    }
                }
                drop(senders);
                for (mark, part) in receiver.iter() {
                    assert!(part[..64].iter().chain(&part[part.len() - 64..]).all(|&b| b == mark));
                }
            });
        }
        drop(senders);
    });
    assert_eq!(pool.available(), pool.chunks());
}

#[derive(Debug, Clone)]
enum Step {
    Take,
    Cut { piece: usize, blocks: usize },
    Drop { piece: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Take),
        (any::<usize>(), 0..=BLOCKS).prop_map(|(piece, blocks)| Step::Cut { piece, blocks }),
        any::<usize>().prop_map(|piece| Step::Drop { piece }),
    ]
}

fn overlap(pieces: &[PoolBuffer]) -> bool {
    let mut ranges: Vec<_> = pieces
        .iter()
        .filter(|p| !p.is_empty())
        .map(|p| (p.as_ptr() as usize, p.as_ptr() as usize + p.len()))
        .collect();
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| pair[0].1 > pair[1].0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 256 }))]

    #[test]
    fn live_pieces_never_overlap(steps in prop::collection::vec(step(), 0..200)) {
        let mut pool = pool(4);
        let mut live: Vec<PoolBuffer> = Vec::new();
        for step in steps {
            match step {
                Step::Take => live.extend(pool.take()),
                Step::Cut { piece, blocks } if !live.is_empty() => {
                    let at = piece % live.len();
                    let cut = blocks.min(live[at].len() / BLOCK_LEN) * BLOCK_LEN;
                    let rest = live[at].split_off(cut);
                    live.push(rest);
                }
                Step::Drop { piece } if !live.is_empty() => drop(live.swap_remove(piece % live.len())),
                _ => {}
            }
            prop_assert!(!overlap(&live));
            let mut chunks: Vec<_> = live.iter().map(|p| p.chunk).collect();
            chunks.sort_unstable();
            chunks.dedup();
            prop_assert_eq!(pool.available(), pool.chunks() - chunks.len());
        }
        drop(live);
        prop_assert_eq!(pool.available(), 4);
    }
}
