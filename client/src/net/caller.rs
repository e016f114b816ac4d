//! Requests with answers over a connection that is made when it is needed and
//! made again when it is lost.

use std::time::Duration;

use bytes::Bytes;
use ringbolt_wire::message::{ErrorResponse, ProduceAck};
use ringbolt_wire::{Request, Response};
use tokio::sync::{mpsc, oneshot};

use super::link::{Dialer, Link};
use crate::error::Error;
use crate::session::{SendRefusal, SessionEvent};

/// Calls that may wait for the connection's task.
const QUEUE: usize = 64;

/// An answer that is not a refusal, and its payload.
pub(crate) type Answer = (Response, Bytes);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Nothing was sent.
    NotSent(Error),
    /// It was sent, and the answer was lost.
    Lost(Error),
    /// The broker refused.
    Refused(ErrorResponse),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        match error {
            CallError::NotSent(error) | CallError::Lost(error) => error,
            CallError::Refused(refusal) => Error::Refused(refusal),
        }
    }
}

type Reply = oneshot::Sender<Result<Answer, CallError>>;

enum Command {
    Call(Request, Reply),
    /// A batch, and how many copies its acknowledgement is to stand for.
    Produce(Bytes, u8, Reply),
    /// The connection does not answer: give it up.
    Reset,
}

/// A handle to one connection; its task ends with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    commands: mpsc::Sender<Command>,
}

impl Caller {
    /// Starts the task; it connects at the first call.
    pub fn spawn(dialer: Dialer) -> Caller {
        let (commands, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(dialer, queue));
        Caller { commands }
    }

    /// Makes a request and awaits its answer.
    pub async fn call(&self, request: Request, timeout: Duration) -> Result<Answer, CallError> {
        self.command(|reply| Command::Call(request, reply), timeout).await
    }

    /// Produces a batch and awaits its answer.
    pub async fn produce(
        &self,
        batch: Bytes,
        min_copies: u8,
        timeout: Duration,
    ) -> Result<ProduceAck, CallError> {
        match self.command(|reply| Command::Produce(batch, min_copies, reply), timeout).await? {
            (Response::Produced(ack), _) => Ok(ack),
            // The session pairs answers with requests by operation.
            _ => Err(CallError::Lost(Error::ConnectionLost)),
        }
    }

    async fn command(
        &self,
        command: impl FnOnce(Reply) -> Command,
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            return Err(CallError::NotSent(Error::ConnectionLost));
        }
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CallError::Lost(Error::ConnectionLost)),
            Err(_) => {
                // If the task is gone, so is the connection.
                let _ = self.commands.send(Command::Reset).await;
                Err(CallError::Lost(Error::Timeout(timeout)))
            }
        }
    }
}

async fn run(dialer: Dialer, mut commands: mpsc::Receiver<Command>) {
    let mut link: Option<Link<Reply>> = None;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Reset) => link = None,
                Some(command) => link = asked(&dialer, link, command).await,
            },
            event = next_event(&mut link) => match event {
                Ok(event) => link = link.and_then(|link| answered(link, event)),
                Err(error) => {
                    tracing::debug!(%error, "connection lost");
                    // Dropping the session drops every reply: their callers see it.
                    link = None;
                }
            },
        }
    }
}

async fn next_event(link: &mut Option<Link<Reply>>) -> Result<SessionEvent<Reply>, Error> {
    match link {
        Some(link) => link.next_event().await,
        None => std::future::pending().await,
    }
}

async fn dial_if_down(dialer: &Dialer, link: Option<Link<Reply>>) -> Result<Link<Reply>, Error> {
    match link {
        Some(link) => Ok(link),
        None => dialer.dial().await,
    }
}

/// Makes a request, over a new connection if there is none.
async fn asked(dialer: &Dialer, link: Option<Link<Reply>>, command: Command) -> Option<Link<Reply>> {
    let dialled = dial_if_down(dialer, link).await;
    let (mut link, sent) = match (dialled, command) {
        (_, Command::Reset) => return None,
        (Err(error), Command::Call(_, reply) | Command::Produce(_, _, reply)) => {
            // A caller that went away needs no answer.
            let _ = reply.send(Err(CallError::NotSent(error)));
            return None;
        }
        (Ok(mut link), Command::Call(request, reply)) => {
            let sent = link.session().request(&request, reply);
            (link, sent)
        }
        (Ok(mut link), Command::Produce(batch, min_copies, reply)) => {
            let sent = link.session().produce_bytes(&batch, min_copies, reply);
            (link, sent)
        }
    };
    if let Err(refused) = sent {
        let error = match refused.why {
            why @ SendRefusal::TooLong { .. } => Error::InvalidSetting(why.to_string()),
            _ => Error::ConnectionLost,
        };
        let _ = refused.tag.send(Err(CallError::NotSent(error)));
    }
    (!link.session().is_done()).then_some(link)
}

/// Hands an answer on; `None` if the connection has served its time.
fn answered(mut link: Link<Reply>, event: SessionEvent<Reply>) -> Option<Link<Reply>> {
    match event {
        SessionEvent::Answer { tag, response: Response::Error(refusal), .. } => {
            let _ = tag.send(Err(CallError::Refused(refusal)));
        }
        SessionEvent::Answer { tag, response, payload } => {
            let _ = tag.send(Ok((response, payload)));
        }
        SessionEvent::Produced { tag, ack } => {
            let _ = tag.send(Ok((Response::Produced(ack), Bytes::new())));
        }
        SessionEvent::Goodbye(reason) => tracing::debug!(%reason, "the broker said goodbye"),
        // Nobody is attached here, and the handshake is over.
        SessionEvent::Delivered { .. } | SessionEvent::Connected(_) => return None,
    }
    (!link.session().is_done()).then_some(link)
}
