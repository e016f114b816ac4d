//! What this machine offers Ringbolt: checks and measured floors.
