//! The figures that are measured, and their names.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::{Cores, Options};
use crate::io::echo::Wait;
use crate::io::floor::{Conditions, DiskFloor, FloorError, Latency, Shape, measure_echo};

/// Connections and messages in flight that can be asked for: what one client
/// thread and its buffers are good for.
const MAX_CONNECTIONS: usize = 8192;
const MAX_IN_FLIGHT: usize = 4096;

/// Length of the file that is written to: long enough for a second of the
/// fastest writes before the same blocks come round again.
const FILE_LEN: u64 = 256 << 20;
/// As above, where only latencies are measured, or only briefly.
const SHORT_FILE_LEN: u64 = 32 << 20;

/// The shapes whose echo rate is reported.
const SHAPES: [Shape; 3] = [
    Shape { connections: 64, in_flight: 1 },
    Shape { connections: 64, in_flight: 16 },
    Shape { connections: 1, in_flight: 256 },
];

/// Something that can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Figure {
    /// One durable 4 KiB write at a time.
    Dsync4k,
    /// One durable 64 KiB write at a time.
    Dsync64k,
    /// One 4 KiB write at a time that is not flushed.
    Write4k,
    /// Durable 256 KiB writes, four in flight.
    SeqDsync,
    /// One message at a time to the echo peer and back, both sides sleeping.
    LoopbackRtt,
    /// The same with both sides spinning.
    LoopbackBusyRtt,
    /// Echoes per second.
    LoopbackEcho(Shape),
}

/// The figures that one name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FigureSet(Vec<Figure>);

impl FigureSet {
    /// Everything that is reported without a choice.
    pub fn all() -> Self {
        let mut all = vec![
            Figure::Dsync4k,
            Figure::Write4k,
            Figure::Dsync64k,
            Figure::SeqDsync,
            Figure::LoopbackRtt,
            Figure::LoopbackBusyRtt,
        ];
        all.extend(SHAPES.map(Figure::LoopbackEcho));
        FigureSet(all)
    }

    /// The figures of several names, each once.
    pub fn union(sets: impl IntoIterator<Item = FigureSet>) -> Self {
        let mut union = Vec::new();
        for figure in sets.into_iter().flat_map(|set| set.0) {
            if !union.contains(&figure) {
                union.push(figure);
            }
        }
        FigureSet(union)
    }
}

/// The name is none of those that are measured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not measured; choose from dsync_4k_us, dsync_64k_us, write_4k_us, seq_dsync_mb_per_s, \
     loopback_rtt_us, loopback_busy_rtt_us, loopback_echo_per_s, or a shape like 64x16 (at most \
     {MAX_CONNECTIONS} connections x {MAX_IN_FLIGHT} in flight)"
)]
pub struct UnknownFigure(String);

impl FromStr for FigureSet {
    type Err = UnknownFigure;

    fn from_str(name: &str) -> Result<Self, UnknownFigure> {
        let one = |figure| Ok(FigureSet(vec![figure]));
        match name {
            "dsync_4k_us" => one(Figure::Dsync4k),
            "dsync_64k_us" => one(Figure::Dsync64k),
            "write_4k_us" => one(Figure::Write4k),
            "seq_dsync_mb_per_s" => one(Figure::SeqDsync),
            "loopback_rtt_us" => one(Figure::LoopbackRtt),
            "loopback_busy_rtt_us" => one(Figure::LoopbackBusyRtt),
            "loopback_echo_per_s" => Ok(FigureSet(SHAPES.map(Figure::LoopbackEcho).to_vec())),
            shape => match parse_shape(shape) {
                Some(shape) => one(Figure::LoopbackEcho(shape)),
                None => Err(UnknownFigure(name.to_owned())),
            },
        }
    }
}

fn parse_shape(text: &str) -> Option<Shape> {
    let (connections, in_flight) = text.split_once('x')?;
    let (connections, in_flight) = (connections.parse().ok()?, in_flight.parse().ok()?);
    let fits = (1..=MAX_CONNECTIONS).contains(&connections) && (1..=MAX_IN_FLIGHT).contains(&in_flight);
    fits.then_some(Shape { connections, in_flight })
}

/// What was measured; what was not is absent.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Figures {
    /// One durable 4 KiB write at a time, in µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsync_4k_us: Option<Latency>,
    /// One durable 64 KiB write at a time, in µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsync_64k_us: Option<Latency>,
    /// One 4 KiB write at a time without a flush, in µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_4k_us: Option<Latency>,
    /// Durable 256 KiB writes, four in flight, in 10^6 bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_dsync_mb_per_s: Option<f64>,
    /// One 1 KiB message at a time to the echo peer and back, in µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loopback_rtt_us: Option<Latency>,
    /// The same with both sides spinning instead of sleeping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loopback_busy_rtt_us: Option<Latency>,
    /// Echoes of 1 KiB per second, by connections x in flight.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub loopback_echo_per_s: BTreeMap<String, f64>,
    /// Their round trips, in µs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub loopback_echo_rtt_us: BTreeMap<String, Latency>,
    /// The least that an acknowledgement can take: a durable 4 KiB write and
    /// a round trip, medians, in µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_ack_us: Option<f64>,
}

/// Measures what the options choose into `figures`, one after the other;
/// `progress` is told each one's name before it begins. What was measured before
/// an error stays.
pub(super) fn measure(
    options: &Options,
    dir: &std::path::Path,
    cores: &Cores,
    figures: &mut Figures,
    progress: &mut dyn FnMut(&str),
) -> Result<(), FloorError> {
    let conditions =
        Conditions { duration: options.duration, server_core: cores.server, client_core: cores.client };
    let chosen = &options.figures.0;
    let long = chosen.contains(&Figure::SeqDsync) && options.duration >= Duration::from_millis(500);
    let mut disk = None;
    for &figure in chosen {
        let on_disk =
            matches!(figure, Figure::Dsync4k | Figure::Dsync64k | Figure::Write4k | Figure::SeqDsync);
        if on_disk && disk.is_none() {
            progress("zeroing a file");
            disk = Some(DiskFloor::create(dir, if long { FILE_LEN } else { SHORT_FILE_LEN })?);
        }
        match (figure, &disk) {
            (Figure::LoopbackEcho(shape), _) => {
                progress(&format!("loopback_echo_per_s {shape}"));
                let echo = measure_echo(shape, Wait::Sleep, &conditions)?;
                figures.loopback_echo_per_s.insert(shape.to_string(), echo.per_s.round());
                figures.loopback_echo_rtt_us.insert(shape.to_string(), echo.round_trip);
            }
            (Figure::LoopbackRtt, _) => {
                progress("loopback_rtt_us");
                figures.loopback_rtt_us = Some(round_trip(Wait::Sleep, &conditions)?);
            }
            (Figure::LoopbackBusyRtt, _) => {
                progress("loopback_busy_rtt_us");
                figures.loopback_busy_rtt_us = Some(round_trip(Wait::BusyPoll, &conditions)?);
            }
            (figure, Some(disk)) => measure_disk(figure, disk, &conditions, figures, progress)?,
            (_, None) => unreachable!("the file is made above for every figure of the disk"),
        }
    }
    let ack = figures.dsync_4k_us.zip(figures.loopback_rtt_us);
    figures.expected_ack_us = ack.map(|(disk, wire)| ((disk.p50 + wire.p50) * 10.0).round() / 10.0);
    Ok(())
}

fn measure_disk(
    figure: Figure,
    disk: &DiskFloor,
    conditions: &Conditions,
    figures: &mut Figures,
    progress: &mut dyn FnMut(&str),
) -> Result<(), FloorError> {
    match figure {
        Figure::Dsync4k => {
            progress("dsync_4k_us");
            figures.dsync_4k_us = Some(disk.durable_write(4096, conditions)?);
        }
        Figure::Dsync64k => {
            progress("dsync_64k_us");
            figures.dsync_64k_us = Some(disk.durable_write(64 << 10, conditions)?);
        }
        Figure::Write4k => {
            progress("write_4k_us");
            figures.write_4k_us = Some(disk.plain_write(4096, conditions)?);
        }
        Figure::SeqDsync => {
            progress("seq_dsync_mb_per_s");
            let rate = disk.durable_mb_per_s(256 << 10, 4, conditions)?;
            figures.seq_dsync_mb_per_s = Some((rate * 10.0).round() / 10.0);
        }
        Figure::LoopbackRtt | Figure::LoopbackBusyRtt | Figure::LoopbackEcho(_) => {
            unreachable!("not a figure of the disk")
        }
    }
    Ok(())
}

fn round_trip(wait: Wait, conditions: &Conditions) -> Result<Latency, FloorError> {
    let one = Shape { connections: 1, in_flight: 1 };
    Ok(measure_echo(one, wait, conditions)?.round_trip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_figures_and_each_is_measured_once() {
        let set = |names: &[&str]| FigureSet::union(names.iter().map(|name| name.parse().unwrap())).0;
        assert_eq!(set(&["dsync_4k_us", "dsync_4k_us"]), [Figure::Dsync4k]);
        assert_eq!(set(&["64x16", "loopback_echo_per_s"]).len(), 3);
        let custom = Shape { connections: 128, in_flight: 4 };
        assert_eq!(set(&["128x4"]), [Figure::LoopbackEcho(custom)]);
    }

    #[test]
    fn a_name_that_is_not_measured_is_refused_with_those_that_are() {
        for name in ["", "dsync", "0x1", "1x0", "99999x1", "1x99999", "64x", "x16", "-1x1"] {
            let error = name.parse::<FigureSet>().unwrap_err().to_string();
            assert!(error.contains("dsync_4k_us"), "{error}");
        }
    }

    #[test]
    fn what_was_not_measured_is_absent_from_the_json() {
        assert_eq!(serde_json::to_string(&Figures::default()).unwrap(), "{}");
    }
}
