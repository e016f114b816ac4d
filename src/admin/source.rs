//! What the broker says of itself, asked over one connection of the client,
//! which is made again when it breaks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ringbolt_client::{Client, ClientConfig, Error};
use tokio::sync::Mutex;

/// How long the broker has for an answer before it is taken for unwell.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an answer also serves others who ask: several monitors cost the
/// broker no more than one.
const SHARED_FOR: Duration = Duration::from_millis(100);

/// Why there are no counters; the message is one line.
#[derive(thiserror::Error, Clone, Debug)]
pub(super) enum Unwell {
    /// It was just started.
    #[error("recovering: the broker looks through its logs, and does not listen yet")]
    Recovering,
    /// It was told to stop, or a core has failed.
    #[error("the broker is stopping")]
    Stopping,
    /// Nothing came.
    #[error("the broker has not answered within {PATIENCE:?}")]
    Silent,
    /// It cannot be reached, or has refused.
    #[error("the broker does not answer: {0}")]
    Failed(Error),
}

/// The counters by name.
pub(super) type Stats = BTreeMap<String, u64>;

/// The counters, or why there are none.
pub(super) type Answer = Result<Arc<Stats>, Unwell>;

/// A broker that has recovered.
pub(super) struct BrokerAt {
    addr: SocketAddr,
    is_stopping: Box<dyn Fn() -> bool + Send + Sync>,
}

impl BrokerAt {
    pub(super) fn new(listens_on: SocketAddr, is_stopping: Box<dyn Fn() -> bool + Send + Sync>) -> BrokerAt {
        BrokerAt { addr: over_loopback(listens_on), is_stopping }
    }
}

impl fmt::Debug for BrokerAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerAt").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// Where the counters come from.
pub(super) struct Source {
    /// Empty while it recovers.
    broker: Arc<OnceLock<BrokerAt>>,
    /// Locked while the broker is asked: others wait for the same answer.
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// `None` after a failure.
    client: Option<Client>,
    answer: Option<(Instant, Answer)>,
}

impl Source {
    pub(super) fn new(broker: Arc<OnceLock<BrokerAt>>) -> Source {
        Source { broker, last: Mutex::default() }
    }

    /// The counters as they were at most [`SHARED_FOR`] ago.
    pub(super) async fn stats(&self) -> Answer {
        let broker = self.broker.get().ok_or(Unwell::Recovering)?;
        if (broker.is_stopping)() {
            return Err(Unwell::Stopping);
        }
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &last.answer
            && at.elapsed() < SHARED_FOR
        {
            return answer.clone();
        }
        let asked = tokio::time::timeout(PATIENCE, ask(broker.addr, &mut last.client)).await;
        let answer = match asked {
            Ok(Ok(stats)) => Ok(Arc::new(stats)),
            // Told to stop in the meantime.
            _ if (broker.is_stopping)() => Err(Unwell::Stopping),
            Ok(Err(error)) => Err(Unwell::Failed(error)),
            Err(_) => Err(Unwell::Silent),
        };
        if answer.is_err() {
            last.client = None;
        }
        last.answer = Some((Instant::now(), answer.clone()));
        answer
    }
}

async fn ask(broker: SocketAddr, client: &mut Option<Client>) -> Result<Stats, Error> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(config(broker)).await?),
    };
    client.admin().stats().await
}

fn config(broker: SocketAddr) -> ClientConfig {
    ClientConfig {
        client_name: "ringbolt-admin".to_owned(),
        // Who asks bounds both.
        connect_timeout: 2 * PATIENCE,
        request_timeout: 2 * PATIENCE,
        // A lost connection is made again within one question.
        operation_timeout: PATIENCE / 2,
        ..ClientConfig::new(broker.to_string())
    }
}

/// Where a broker on this machine that listens on `addr` is reached.
fn over_loopback(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_listens_on_all_addresses_is_asked_over_loopback() {
        let cases = [
            ("0.0.0.0:7411", "127.0.0.1:7411"),
            ("[::]:7411", "[::1]:7411"),
            ("127.0.0.5:1", "127.0.0.5:1"),
            ("[fe80::1]:2", "[fe80::1]:2"),
        ];
        for (listens_on, reached_at) in cases {
            assert_eq!(over_loopback(listens_on.parse().unwrap()), reached_at.parse().unwrap());
        }
    }
}
