//! `kinesin check`: all faults of a site file, and the memory that a run will take, without side effects.

use kinesin_acquire::admit;
use kinesin_backpressure::{Budget, Bytes};
use kinesin_stages::pipeline::Line;
use kinesin_stream::link::Role;
use kinesin_stream::plan::RunPlan;
use serde_json::json;

use crate::cli::CheckArgs;
use crate::outcome::{Failure, Outcome};
use crate::site::{SiteFile, told};
use crate::{faults::Problem, instrument, prepare};

/// See the module.
pub fn check(args: &CheckArgs, as_json: bool) -> Result<Outcome, Failure> {
    let site = SiteFile::load(&args.site, &args.tune)?;
    let plan = instrument::plan(&site)?;
    let budget = Budget::new();
    let line = prepare::line(&site, &plan, std::path::Path::new("."), &args.nominal)?;
    prepare::room(&site, &plan)?;
    let line = Line::open(line, &budget).map_err(|faults| {
        let problems: Vec<Problem> = faults.into_iter().map(|text| Problem { place: "stages".into(), text }).collect();
        Failure::Input(told(&args.site, &problems))
    })?;
    enter_scope(&site, &plan, &budget);
    let layout = line.layout();
    let shape = layout.image.shape;
    if as_json {
        let report = json!({
            "plan": plan,
            "volume": {"shape_zyx": shape, "voxel_size_nm_zyx": layout.image.voxel_size, "levels": layout.image.levels},
            "labels": layout.labels().map(|(shape, size)| json!({"shape_zyx": shape, "voxel_size_nm_zyx": size})),
            "budget_bytes": budget.total().0,
            "lines": budget.lines(),
            "spool_bytes": site.spool.capacity.0,
        });
        println!("{report:#}");
        return Ok(Outcome::Complete);
    }
    println!(
        "{}: {} sections of up to {} mFOVs of {} beams, tiles {} x {} px of {} nm",
        plan.name,
        plan.sections,
        plan.mfovs_per_section,
        plan.beams,
        plan.tile_px.x,
        plan.tile_px.y,
        plan.pixel_size_nm
    );
    println!("image volume {} x {} x {} voxels (z, y, x), {} levels", shape.z, shape.y, shape.x, layout.image.levels);
    if let Some((shape, size)) = layout.labels() {
        let nm = size.0;
        println!("label volume {} x {} x {} voxels of {} x {} x {} nm", shape.z, shape.y, shape.x, nm.z, nm.y, nm.x);
    }
    println!("\nmemory budget");
    for line in budget.lines() {
        println!("  {:<28} {:>12}", line.name, line.capacity.to_string());
    }
    println!("  {:<28} {:>12}", "total", budget.total().to_string());
    println!("\nat full rate {}", ingest(&plan));
    println!("spool on disk {}{}", site.spool.capacity, outage(&site, &plan));
    Ok(Outcome::Complete)
}

/// The lines of the link and of admission, as `run` enters them when it opens the two.
fn enter_scope(site: &SiteFile, plan: &RunPlan, budget: &Budget) {
    for role in [Role::Head, Role::Scope] {
        for (name, bytes) in site.link.settings.budget_lines(role) {
            budget.fixed(name, bytes);
        }
    }
    if let Some(throttle) = &site.instrument.throttle {
        throttle.enter(budget);
    }
    for (name, bytes) in admit::budget_lines(plan, site.spool.capacity) {
        budget.fixed(name, bytes);
    }
}

/// How long the scope can go on without the head.
fn outage(site: &SiteFile, plan: &RunPlan) -> String {
    let mfovs = plan.peak_tiles_per_second / f64::from(plan.beams.max(1));
    let rate = mfovs * admit::mfov_bytes(plan).0 as f64;
    if rate <= 0.0 {
        return String::new();
    }
    format!(", an outage of {:.0} s at full rate", site.spool.capacity.0 as f64 / rate)
}

fn ingest(plan: &RunPlan) -> String {
    let tile = f64::from(plan.tile_px.x) * f64::from(plan.tile_px.y);
    if plan.peak_tiles_per_second <= 0.0 {
        return "tiles come as fast as they are taken".into();
    }
    let rate = Bytes((tile * plan.peak_tiles_per_second) as u64);
    format!("{:.0} tiles, {rate} a second", plan.peak_tiles_per_second)
}
