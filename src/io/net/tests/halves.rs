//! Half-received frames, and the memory that they take.

use super::crowds::greeted;
use super::*;

/// What the sessions keep is what is counted, and within its bound.
fn check_memory(f: &mut Fixture) {
    let connections = f.net.slots.iter().filter_map(|slot| slot.connection.as_deref());
    let kept: usize = connections.map(|connection| connection.session.stash_memory()).sum();
    assert_eq!(f.net.stashed, Stashed { half: kept, whole: 0 });
    assert!(kept <= f.net.config.max_stashed, "{kept} bytes");
}

/// Those that hold next to nothing do not shield those that hold much.
#[test]
fn old_small_halves_do_not_let_large_ones_exceed_the_bound() {
    let mut f = Fixture::new(|_| {});
    let mut small = greeted(&mut f, 300);
    let mut large = greeted(&mut f, 40);
    small.iter_mut().for_each(|peer| peer.send(&frame(10)[..1]));
    f.settle();
    f.host.now.mono_us += 1_000;
    let bytes = frame(70_000);
    for peer in &mut large {
        for part in bytes[..60_000].chunks(20_000) {
            peer.send(part);
            f.turns(1, 1_000);
            check_memory(&mut f);
        }
    }
    f.settle();
    let told: Vec<_> = large.iter_mut().map(Peer::answers).collect();
    let goes_on = told.iter().position(Vec::is_empty).unwrap();
    assert!(told[..goes_on].iter().all(|told| *told == [goodbye(ErrorCode::Overloaded)]));
    assert!(told[goes_on..].iter().all(Vec::is_empty), "the oldest were closed");
    assert!((20..30).contains(&goes_on), "{goes_on} were closed");
    for peer in &mut small {
        peer.send(&frame(10)[1..]);
        f.turn();
    }
    f.settle();
    f.acknowledge();
    f.settle();
    assert!(small.iter_mut().all(|peer| peer.answers() == [PRODUCED]));
}

/// A few are closed for one that grows; if that is not enough, it is one too many.
#[test]
fn a_half_that_grows_beyond_the_bound_closes_few_others() {
    let mut f = Fixture::new(|config| config.max_stashed = 260 << 10);
    let mut small = greeted(&mut f, 680);
    let mut large = greeted(&mut f, 1).remove(0);
    let bytes = frame(1_000);
    for peer in &mut small {
        peer.send(&bytes[..bytes.len() / 3]);
        f.turn();
        check_memory(&mut f);
    }
    f.settle();
    assert_eq!(f.net.session_config().counters.violations.get(), 0);
    large.send(&frame(70_000)[..65_000]);
    f.settle();
    check_memory(&mut f);
    assert_eq!(large.answers(), [goodbye(ErrorCode::Overloaded)]);
    let closed = small.iter_mut().flat_map(Peer::answers).count();
    assert!(closed <= 64, "{closed} were closed, and for nothing");
}

/// A frame's vector is let go with it: a short half behind it takes no more than it
/// needs.
#[test]
fn a_short_half_behind_a_long_frame_takes_little_memory() {
    let mut f = Fixture::new(|_| {});
    let mut peers = greeted(&mut f, 20);
    let (long, short) = (frame(60_000), frame(1_000));
    for peer in &mut peers {
        peer.send(&long[..30_000]);
        f.settle();
        peer.send(&[&long[30_000..], &short[..100]].concat());
        f.settle();
        f.acknowledge();
        f.settle();
        check_memory(&mut f);
        assert_eq!(peer.answers(), [PRODUCED]);
    }
    assert!(f.net.stashed.half <= 20 * 400, "{} bytes", f.net.stashed.half);
}
