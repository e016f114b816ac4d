//! A connection that comes back: dials, waits between attempts, and says when
//! it is up or lost.

use std::future::Future;
use std::pin::Pin;

use tokio::time::{Instant, sleep_until};

use super::link::{Dialer, Link};
use crate::backoff::Backoff;
use crate::error::Error;
use crate::session::{Session, SessionEvent};

/// What [`Connection::next`] found.
#[derive(Debug)]
pub(crate) enum ConnectionEvent<T> {
    /// Requests may be made.
    Up,
    /// The broker could not be reached; the next attempt follows by itself.
    Failed(Error),
    /// The connection is gone; a new one follows by itself.
    Lost(Error),
    /// Something from the broker.
    Session(SessionEvent<T>),
}

type Dialling<T> = Pin<Box<dyn Future<Output = Result<Link<T>, Error>> + Send>>;

enum State<T> {
    Down { until: Instant },
    Dialling(Dialling<T>),
    Up(Box<Link<T>>),
}

pub(crate) struct Connection<T> {
    dialer: Dialer,
    backoff: Backoff,
    state: State<T>,
}

impl<T: Send + 'static> Connection<T> {
    /// Connects at the first call of [`next`](Self::next).
    pub fn new(dialer: Dialer, backoff: Backoff) -> Self {
        Connection { dialer, backoff, state: State::Down { until: Instant::now() } }
    }

    /// The session, while the connection is up.
    pub fn session(&mut self) -> Option<&mut Session<T>> {
        match &mut self.state {
            State::Up(link) => Some(link.session()),
            _ => None,
        }
    }

    /// Whether the connection is up.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Gives the connection up; a new one follows.
    pub fn reset(&mut self) {
        self.state = State::Down { until: Instant::now() + self.backoff.next_wait() };
    }

    /// Something was answered: the broker is well.
    pub fn is_well(&mut self) {
        self.backoff.reset();
    }

    /// The next thing that happens. Dropping the future loses nothing.
    pub async fn next(&mut self) -> ConnectionEvent<T> {
        loop {
            match &mut self.state {
                State::Down { until } => {
                    sleep_until(*until).await;
                    let dialer = self.dialer.clone();
                    self.state = State::Dialling(Box::pin(async move { dialer.dial().await }));
                }
                State::Dialling(dialling) => match dialling.await {
                    Ok(link) => {
                        self.state = State::Up(Box::new(link));
                        return ConnectionEvent::Up;
                    }
                    Err(error) => {
                        self.reset();
                        return ConnectionEvent::Failed(error);
                    }
                },
                State::Up(link) => match link.next_event().await {
                    Ok(event) => return ConnectionEvent::Session(event),
                    Err(error) => {
                        self.reset();
                        return ConnectionEvent::Lost(error);
                    }
                },
            }
        }
    }

    /// What happened already, without waiting: as [`next`](Self::next), of what
    /// was received with the last event.
    pub fn next_buffered(&mut self) -> Option<ConnectionEvent<T>> {
        let State::Up(link) = &mut self.state else { return None };
        match link.buffered_event() {
            Ok(event) => event.map(ConnectionEvent::Session),
            Err(error) => {
                self.reset();
                Some(ConnectionEvent::Lost(error))
            }
        }
    }
}
