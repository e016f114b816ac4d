//! experiment
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use io_uring::{IoUring, cqueue, opcode, types::Fixed};

use crate::io::echo::RecvPool;

struct Conn {
    _stream: TcpStream,
    rx: usize,
    done: u64,
    due: u32,
    sending: usize,
    dirty: bool,
    stamps: VecDeque<(u64, u32)>,
}

/// x
pub fn run(addr: SocketAddr, core: Option<usize>, conns_n: usize, in_flight: u32, size: usize, secs: f64, spin: bool) -> io::Result<(f64, f64, f64)> {
    if let Some(c) = core { crate::io::echo::pin(c)?; }
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all().setup_cqsize(8192).build(1024)?;
    let (mut submitter, mut sq, mut cq) = ring.split();
    submitter.register_ring_fd()?;
    let entries = std::env::var("C_ENTRIES").ok().and_then(|v| v.parse().ok()).unwrap_or(64u16);
    let len = std::env::var("C_LEN").ok().and_then(|v| v.parse().ok()).unwrap_or(65536usize);
    let want0 = std::env::var("C_WANT").ok().and_then(|v| v.parse().ok()).unwrap_or(1usize);
    let mut pool = RecvPool::register(&submitter, 0, entries, len)?;
    let pattern: Vec<u8> = (0..size * in_flight as usize).map(|i| ((i % size) * 7 % 251) as u8).collect();
    let mut conns = Vec::new();
    let mut fds = Vec::new();
    for _ in 0..conns_n {
        let s = TcpStream::connect(addr)?;
        crate::io::echo::set_opts(s.as_raw_fd());
        fds.push(s.as_raw_fd());
        conns.push(Conn { _stream: s, rx: 0, done: 0, due: in_flight, sending: 0, dirty: true, stamps: VecDeque::new() });
    }
    submitter.register_files(&fds)?;
    let mut dirty: Vec<u32> = (0..conns_n as u32).collect();
    for i in 0..conns_n as u32 {
        let e = opcode::RecvMulti::new(Fixed(i), 0).build().user_data(u64::from(i));
        // SAFETY: exp
        unsafe { sq.push(&e).unwrap(); }
    }
    let mut h = Histogram::<u64>::new(3).unwrap();
    let start = Instant::now();
    let warm = (secs * 2e8) as u64;
    let end = warm + (secs * 1e9) as u64;
    let mut count = 0u64;
    let mut turns = 0u64;
    let mut t0 = 0;
    let now = |s: &Instant| s.elapsed().as_nanos() as u64;
    loop {
        let stamp = now(&start);
        for i in dirty.drain(..) {
            let c = &mut conns[i as usize];
            c.dirty = false;
            if c.sending == 0 && c.due > 0 {
                let len = c.due as usize * size;
                c.stamps.push_back((stamp, c.due));
                c.due = 0;
                c.sending = len;
                let e = opcode::Send::new(Fixed(i), pattern.as_ptr(), len as u32).flags(libc::MSG_WAITALL).build().user_data(u64::from(i) | 1 << 32);
                // SAFETY: exp
                unsafe { while sq.push(&e).is_err() { sq.sync(); submitter.submit()?; sq.sync(); } }
            }
        }
        pool.publish();
        sq.sync();
        if spin {
            submitter.submit()?;
            sq.sync();
            cq.sync();
            while cq.is_empty() && !sq.taskrun() { std::hint::spin_loop(); cq.sync(); }
            if cq.is_empty() { submitter.submit()?; }
        } else {
            submitter.submit_and_wait(want0)?;
        }
        sq.sync();
        cq.sync();
        turns += 1;
        let t = now(&start);
        for cqe in &mut cq {
            let ud = cqe.user_data();
            let i = ud as u32;
            let c = &mut conns[i as usize];
            if ud >> 32 == 1 {
                assert_eq!(cqe.result() as usize, c.sending, "short");
                c.sending = 0;
                if c.due > 0 && !c.dirty { c.dirty = true; dirty.push(i); }
                continue;
            }
            if cqe.result() > 0 {
                let id = cqueue::buffer_select(cqe.flags()).unwrap();
                let n = cqe.result() as usize;
                let b = pool.bytes(id, n);
                assert_eq!(b[0], ((c.rx % size) * 7 % 251) as u8);
                assert_eq!(b[n - 1], (((c.rx + n - 1) % size) * 7 % 251) as u8);
                pool.taken();
                pool.give_back(id);
                c.rx += n;
                let done = (c.rx / size) as u64;
                let mut new = (done - c.done) as u32;
                c.done = done;
                count += u64::from(new);
                c.due += new;
                while new > 0 {
                    let f = c.stamps.front_mut().unwrap();
                    let k = f.1.min(new);
                    h.record_n(t - f.0, u64::from(k)).unwrap();
                    f.1 -= k;
                    new -= k;
                    if f.1 == 0 { c.stamps.pop_front(); }
                }
                if c.due > 0 && !c.dirty { c.dirty = true; dirty.push(i); }
            } else if cqe.result() != -libc::ENOBUFS {
                return Err(io::Error::from_raw_os_error(-cqe.result()));
            }
            if !cqueue::more(cqe.flags()) {
                let e = opcode::RecvMulti::new(Fixed(i), 0).build().user_data(u64::from(i));
                // SAFETY: exp
                unsafe { sq.push(&e).unwrap(); }
            }
        }
        if t0 == 0 && t > warm { t0 = t; count = 0; h.clear(); turns = 0; }
        if t > end {
            if std::env::var("C_V").is_ok() { eprintln!("msgs/turn {:.1}", count as f64 / turns as f64); }
            let rate = count as f64 / ((t - t0) as f64 / 1e9);
            return Ok((rate, h.value_at_quantile(0.5) as f64 / 1e3, h.value_at_quantile(0.99) as f64 / 1e3));
        }
    }
}
