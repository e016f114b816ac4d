//! Settings of TCP.

use crate::doctor::check::{Check, Verdict};
use crate::io::probe::Sys;

/// Connections that wait to be accepted; the kernel's default since 5.4.
const QUEUED_CONNECTIONS: u64 = 4096;
/// Connections half way through their handshake.
const HALF_OPEN: u64 = 1024;
/// Bytes that a socket's buffer may grow to: 1 MiB holds a response of 256 KiB
/// and what is under way on a network of 10 Gbit/s and 0.5 ms.
const SOCKET_BUFFER: u64 = 1 << 20;

pub(super) fn checks(sys: &Sys) -> Vec<Check> {
    let number = |name: &str| sys.sysctl(name)?.parse().ok();
    vec![
        Check::at_least("net.core.somaxconn", number("net.core.somaxconn"), QUEUED_CONNECTIONS)
            .why(
                "caps the queue of connections to be accepted; when it is full, clients that connect \
                  at once wait a second and try again",
            )
            .how("sysctl -w net.core.somaxconn=4096"),
        Check::at_least("net.ipv4.tcp_max_syn_backlog", number("net.ipv4.tcp_max_syn_backlog"), HALF_OPEN)
            .why("as above, for connections half way through their handshake")
            .how("sysctl -w net.ipv4.tcp_max_syn_backlog=4096"),
        Check::at_least("net.core.rmem_max", number("net.core.rmem_max"), SOCKET_BUFFER)
            .why(
                "largest receive buffer that a program can ask for; those that it does not ask for \
                  grow up to the third number of net.ipv4.tcp_rmem instead",
            )
            .how("sysctl -w net.core.rmem_max=4194304"),
        Check::at_least("net.core.wmem_max", number("net.core.wmem_max"), SOCKET_BUFFER)
            .why("largest send buffer that a program can ask for")
            .how("sysctl -w net.core.wmem_max=4194304"),
        autotuned(sys, "net.ipv4.tcp_rmem", "receive"),
        autotuned(sys, "net.ipv4.tcp_wmem", "send"),
        congestion_control(sys),
    ]
}

/// Three numbers: least, at first, most.
fn autotuned(sys: &Sys, name: &str, kind: &str) -> Check {
    let found = sys.sysctl(name).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let most = found.as_deref().and_then(|text| text.split(' ').nth(2)?.parse().ok());
    let good = most.is_some_and(|most: u64| most >= SOCKET_BUFFER);
    Check::new(name, format!("third number {SOCKET_BUFFER} or more"))
        .found(found, Verdict::advice_unless(good))
        .why(format!("how far the kernel lets a connection's {kind} buffer grow"))
        .how(format!("sysctl -w {name}=\"4096 131072 6291456\""))
}

fn congestion_control(sys: &Sys) -> Check {
    let found = sys.sysctl("net.ipv4.tcp_congestion_control");
    let paces = found.as_deref().is_some_and(|name| name.starts_with("bbr"));
    Check::new("net.ipv4.tcp_congestion_control", "cubic or reno, if clients are near")
        .found(found, Verdict::advice_unless(!paces))
        .why(
            "bbr spaces packets out with timers, which slows large batches where nothing is congested; \
              on loopback the broker does without it by itself",
        )
        .how("sysctl -w net.ipv4.tcp_congestion_control=cubic; applies to new connections")
}
