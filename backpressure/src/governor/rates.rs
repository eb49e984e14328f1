//! Rates and predictions of one buffer from its counters alone.
//!
//! An exponential mean with time constant `T` over irregular steps: `rate += (1 - exp(-dt/T)) (delta/dt - rate)`, divided by
//! the weight gathered so far, so that the first minutes are not biased towards zero. Bytes per second.

use super::Reading;

/// What is remembered of one buffer.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    in_total: u64,
    out_total: u64,
    in_mean: f64,
    out_mean: f64,
    weight: f64,
    /// Rate of arrival when nothing was done to it.
    free: Option<f64>,
}

impl Buffer {
    pub(crate) fn new(reading: &Reading) -> Self {
        Self {
            in_total: reading.in_total,
            out_total: reading.out_total,
            in_mean: 0.0,
            out_mean: 0.0,
            weight: 0.0,
            free: None,
        }
    }

    /// Takes the counters in after `dt` seconds; `None` is a step of unknown length, which moves no rate. Counters that
    /// went backward belong to a process that started again.
    pub(crate) fn observe(&mut self, reading: &Reading, dt: Option<f64>, rate_seconds: f64) {
        let arrived = reading.in_total.checked_sub(self.in_total);
        let left = reading.out_total.checked_sub(self.out_total);
        if let (Some(dt), Some(arrived), Some(left)) = (dt, arrived, left) {
            // Two lumps at the present rate; a flow that ends is forgotten as 1 / t.
            let lumps = 2.0 * reading.lump as f64 / self.in_rate().max(self.out_rate()).max(1.0);
            let lumps = if reading.lump > 0 && self.in_mean + self.out_mean > 0.0 { lumps } else { 0.0 };
            // What is full in seconds cannot wait longer than an eighth of them to be judged.
            let eighth = reading.capacity as f64 / (8.0 * self.in_rate().max(1.0));
            let share = 1.0 - (-dt / rate_seconds.min(eighth).max(lumps)).exp();
            self.in_mean += share * (arrived as f64 / dt - self.in_mean);
            self.out_mean += share * (left as f64 / dt - self.out_mean);
            self.weight += share * (1.0 - self.weight);
        }
        self.in_total = reading.in_total;
        self.out_total = reading.out_total;
    }

    /// Remembers the present rate of arrival as that of an instrument left alone.
    pub(crate) fn note_free(&mut self) {
        if self.is_warm() {
            self.free = Some(self.in_rate());
        }
    }

    /// Whether the rates rest on at least one time constant.
    pub(crate) fn is_warm(&self) -> bool {
        self.weight > 0.63
    }

    /// What arrives from an instrument that is left alone.
    pub(crate) fn free_rate(&self) -> f64 {
        self.free.unwrap_or(0.0).max(self.in_rate())
    }

    pub(crate) fn in_rate(&self) -> f64 {
        if self.weight > 0.0 { self.in_mean / self.weight } else { 0.0 }
    }

    pub(crate) fn out_rate(&self) -> f64 {
        if self.weight > 0.0 { self.out_mean / self.weight } else { 0.0 }
    }

    /// Seconds until overflow at these rates; infinite where it does not fill, zero where it is full.
    pub(crate) fn overflow_in(&self, reading: &Reading) -> f64 {
        let room = reading.capacity.saturating_sub(reading.held) as f64;
        let net = self.in_rate() - self.out_rate();
        match () {
            () if room == 0.0 => 0.0,
            () if net > 0.0 => room / net,
            () => f64::INFINITY,
        }
    }
}
