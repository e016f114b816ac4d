//! Standard input in pieces, as it comes.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Bytes that one read of standard input asks for.
const READ_LEN: usize = 256 << 10;

/// Pieces of input that wait to be taken.
const PIECES: usize = 4;

/// Reads standard input on a thread of its own: a terminal cannot be waited for
/// otherwise. What one read brings is passed on at once.
pub fn read_input() -> mpsc::Receiver<std::io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut buffer = BytesMut::zeroed(READ_LEN);
            let piece = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => {
                    buffer.truncate(len);
                    Ok(buffer.freeze())
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let ended = piece.is_err();
            if sender.blocking_send(piece).is_err() || ended {
                return;
            }
        }
    });
    receiver
}
