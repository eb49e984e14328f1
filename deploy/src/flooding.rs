//! The line that says how far a flood is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kinesin_stages::pipeline::FloodMeter;
use kinesin_stream::geometry::Zyx;

/// One line of progress. The time left follows from the share of start points that were looked at, or of voxels labelled where
/// that is more; it is a guess, and too long at first, because the first objects are the large ones.
pub(crate) fn line(meter: &FloodMeter, seconds: f64, labels: usize, (shape, window): (Zyx<usize>, usize)) -> String {
    let n = |v: &AtomicU64| v.load(Relaxed) as f64;
    let total = shape.z.max(1) as f64;
    let share = |a: f64, b: f64| if b > 0.0 { (a / b).min(1.0) } else { 0.0 };
    let held = share((labels + window) as f64, total);
    let done = share(n(&meter.seeds), n(&meter.listed)) * held;
    let usual = 0.85 * (shape.z * shape.y * shape.x) as f64;
    let done = done.max(share(n(&meter.flooded), usual).min(0.95)).max(labels as f64 / total);
    let left = if done > 0.02 { left(seconds * (1.0 - done) / done) } else { "time left not known yet".into() };
    format!(
        "{} objects · {} evaluations ({:.0}/s) · {:.1} million voxels labelled · labels of {labels} of {} sections · {left}",
        n(&meter.objects),
        n(&meter.evaluations),
        n(&meter.evaluations) / seconds.max(1e-9),
        n(&meter.flooded) / 1e6,
        shape.z
    )
}

fn left(seconds: f64) -> String {
    match seconds.round() as u64 {
        s @ 0..120 => format!("about {s} s left"),
        s @ 120..7200 => format!("about {} min left", s.div_ceil(60)),
        s => format!("about {:.1} h left", s as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Zyx<usize> = Zyx::new(100, 100, 100);

    #[test]
    fn the_line_says_objects_speed_voxels_and_the_time_left() {
        let meter = FloodMeter::default();
        assert!(line(&meter, 0.0, 0, (SHAPE, 100)).contains("not known yet"));
        meter.objects.store(7, Relaxed);
        meter.evaluations.store(500, Relaxed);
        meter.flooded.store(300_000, Relaxed);
        meter.listed.store(1000, Relaxed);
        meter.seeds.store(500, Relaxed);
        // half of the start points in 10 s
        let said = line(&meter, 10.0, 0, (SHAPE, 100));
        assert_eq!(
            said,
            "7 objects · 500 evaluations (50/s) · 0.3 million voxels labelled · labels of 0 of 100 sections · about 10 s left"
        );
        // of a window of 20 sections they are half of a fifth
        assert!(line(&meter, 10.0, 0, (Zyx::new(1000, 100, 100), 200)).ends_with("about 90 s left"));
        // 90 of 100 sections written
        assert!(line(&meter, 900.0, 90, (SHAPE, 100)).ends_with("about 100 s left"));
    }

    #[test]
    fn long_times_are_told_in_minutes_and_hours() {
        assert_eq!(
            [left(119.0), left(121.0), left(9000.0)],
            ["about 119 s left", "about 3 min left", "about 2.5 h left"]
        );
    }
}
