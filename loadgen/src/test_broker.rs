//! What brokers of a few lines, made by tests, have in common.

use ringbolt_wire::Response;
use ringbolt_wire::message::HelloAck;

/// What such a broker answers a hello with.
pub fn greeting(max_batch_len: u32) -> Response {
    Response::Hello(HelloAck {
        version: 1,
        copies: 1,
        shards: 1,
        features: 0,
        max_frame_len: 64 << 20,
        max_batch_len,
        max_in_flight: 5,
        boot: 1,
        broker_id: [0; 16],
    })
}
