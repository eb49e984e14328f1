//! What a monitoring system reads: `http://ADDRESS/metrics`, in the text format of Prometheus. Every name is here, with its
//! unit and help; labels are edges, buffers, stages, states and modes, never a tile or a section.
//!
//! Served only where `[metrics] address` is set; nothing is counted otherwise.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use kinesin_backpressure::Budget;
use kinesin_backpressure::governor::{Figures, Rung};
use kinesin_stages::pipeline::{Gate, Moment, Telemetry};
use kinesin_stream::ledger::Counts;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::{Deserialize, Serialize};

use crate::outcome::Failure;

/// `[metrics]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where metrics are served, such as "127.0.0.1:9464". Default: nowhere.
    pub address: Option<SocketAddr>,
}

/// Serves the metrics of this process from now on; gives the address that was bound.
///
/// # Errors
/// Where the address is taken, or the process serves metrics already.
pub(crate) fn serve(address: SocketAddr, tokio: &tokio::runtime::Handle) -> Result<SocketAddr, Failure> {
    let bad = |e: &dyn std::fmt::Display| {
        Failure::Input(format!("metrics.address = {address}: {e}; give another address, or leave it out"))
    };
    let listener = tokio.block_on(tokio::net::TcpListener::bind(address)).map_err(|e| bad(&e))?;
    let bound = listener.local_addr().map_err(|e| bad(&e))?;
    let handle = PrometheusBuilder::new().install_recorder().map_err(|e| bad(&e))?;
    describe();
    let routes = Router::new().route("/metrics", get(move || std::future::ready(handle.render())));
    tokio.spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("metrics are no longer served: {error}");
        }
    });
    Ok(bound)
}

fn describe() {
    for (name, unit, help) in GAUGES {
        describe_gauge!(*name, *unit, *help);
    }
    for (name, unit, help) in COUNTERS {
        describe_counter!(*name, *unit, *help);
    }
}

const GAUGES: &[(&str, Unit, &str)] = &[
    ("edge_capacity_bytes", Unit::Bytes, "What a line of the memory budget may hold"),
    ("edge_held_bytes", Unit::Bytes, "What a line of the memory budget holds"),
    ("edge_wait_seconds", Unit::Seconds, "Time that senders waited for room, since the start"),
    ("governor_mode", Unit::Count, "1 for the mode that the head is in, 0 for the others"),
    ("buffer_held_bytes", Unit::Bytes, "What waits in a buffer that the governor watches"),
    ("buffer_capacity_bytes", Unit::Bytes, "What such a buffer may hold"),
    ("buffer_in_bytes_per_second", Unit::Bytes, "Rate at which it fills"),
    ("buffer_out_bytes_per_second", Unit::Bytes, "Rate at which it drains"),
    ("buffer_overflow_seconds", Unit::Seconds, "Time until it overflows at these rates; +Inf where it does not"),
    ("scope_pace_ratio", Unit::Count, "Share of its own speed at which the instrument may go; 0 is held"),
    ("tiles", Unit::Count, "Tiles in each state of the ledger"),
    ("sections", Unit::Count, "Sections that reached each moment"),
    ("sections_waiting", Unit::Count, "Sections that wait for their full labels"),
    ("stage_busy_seconds", Unit::Seconds, "Thread time at work, since the start"),
];

const COUNTERS: &[(&str, Unit, &str)] = &[
    ("edge_in_bytes_total", Unit::Bytes, "Bytes that went into an edge"),
    ("edge_out_bytes_total", Unit::Bytes, "Bytes that left an edge"),
    ("governor_changes_total", Unit::Count, "Changes of mode, by the mode entered"),
    ("quality_faults_total", Unit::Count, "Faults of tiles and overlaps recorded as they were seen"),
    ("sections_provisional_total", Unit::Count, "Sections that got provisional labels"),
    ("stage_items_total", Unit::Count, "Items that a stage has done"),
];

/// The mode now.
pub(crate) fn mode(now: Rung) {
    for rung in Rung::ALL {
        gauge!("governor_mode", "mode" => rung.name()).set(f64::from(u8::from(rung == now)));
    }
}

/// A change of mode.
pub(crate) fn changed(to: Rung) {
    counter!("governor_changes_total", "to" => to.name()).increment(1);
}

/// A buffer that the governor watches.
pub(crate) fn buffer(name: &str, figures: &Figures) {
    let of = |metric: &'static str, value: f64| gauge!(metric, "buffer" => name.to_owned()).set(value);
    of("buffer_held_bytes", figures.held as f64);
    of("buffer_capacity_bytes", figures.capacity as f64);
    of("buffer_in_bytes_per_second", figures.in_per_second);
    of("buffer_out_bytes_per_second", figures.out_per_second);
    of("buffer_overflow_seconds", figures.overflow_seconds.unwrap_or(f64::INFINITY));
}

/// Lines of the budget, stages and sections.
pub(crate) fn line(budget: &Budget, telemetry: &Telemetry, gate: &Gate) {
    for line in budget.lines() {
        let edge = [("edge", line.name)];
        gauge!("edge_capacity_bytes", &edge).set(line.capacity.0 as f64);
        gauge!("edge_held_bytes", &edge).set(line.held.0 as f64);
        gauge!("edge_wait_seconds", &edge).set(line.wait_seconds_total);
        counter!("edge_in_bytes_total", &edge).absolute(line.in_bytes_total);
        counter!("edge_out_bytes_total", &edge).absolute(line.out_bytes_total);
    }
    for row in telemetry.rows() {
        let stage = row.stage.name();
        gauge!("stage_busy_seconds", "stage" => stage).set(row.busy_seconds);
        counter!("stage_items_total", "stage" => stage).absolute(row.items);
    }
    for (name, moment) in [("complete", Moment::LastTile), ("drawn", Moment::Image), ("labelled", Moment::Labels)] {
        gauge!("sections", "moment" => name).set(telemetry.reached(moment) as f64);
    }
    gauge!("sections_waiting").set(gate.waiting() as f64);
    counter!("quality_faults_total").absolute(telemetry.quality_faults());
    counter!("sections_provisional_total").absolute(telemetry.provisional_sections());
}

/// The instrument's pace, a share of its own speed.
pub(crate) fn pace(share: f64) {
    gauge!("scope_pace_ratio").set(share);
}

/// Tiles in each state.
pub(crate) fn tiles(counts: &Counts) {
    let states = [
        ("expected", counts.expected),
        ("seen", counts.seen),
        ("spooled", counts.spooled),
        ("sent", counts.sent),
        ("durable", counts.durable),
        ("placed", counts.placed),
        ("published", counts.published),
        ("superseded", counts.superseded),
        ("lost", counts.lost),
    ];
    for (state, count) in states {
        gauge!("tiles", "state" => state).set(count as f64);
    }
}
