//! Each kind of fault has its promise: whatever breaks, the same commands again leave the same bytes, nothing that the scope was
//! told is safe is gone, and the sums agree. Which fault, when and how, is in `sim/scenarios`.

pub(crate) mod acquisition;
pub(crate) mod disk;
pub(crate) mod drive;
mod relay;
mod verdict;
mod wire;

use std::path::PathBuf;

use kinesin_sim::scenario::Scenario;

use acquisition::Acquisition;
use drive::{Broken, Story, drive, drive_over};
use wire::Wire;

use crate::harness::Place;

/// A scenario of this repository.
fn scenario(name: &str) -> Scenario {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../sim/scenarios")).join(format!("{name}.toml"));
    Scenario::load(&path).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn kept(name: &str, outcome: Result<Story, Broken>) -> Story {
    match outcome {
        Ok(story) => story,
        Err(Broken(what)) => panic!("sim/scenarios/{name}.toml: {what}"),
    }
}

/// Drives the troubled acquisition, with doubled, late and lost tiles of its own, through a scenario.
#[track_caller]
fn survives(name: &str) -> Story {
    kept(name, drive(Acquisition::troubled(), &scenario(name)))
}

impl Story {
    /// How often something was told that holds these words.
    fn tells(&self, words: &str) -> usize {
        self.told.iter().filter(|line| line.contains(words)).count()
    }
}

#[test]
fn without_faults_two_processes_leave_what_one_leaves() {
    survives("none");
}

#[test]
fn a_killed_head_goes_on_where_it_was_and_the_scope_sends_what_has_no_receipt() {
    let story = survives("kill_head");
    assert_eq!(story.tells("head starts"), 4, "{:#?}", story.told);
}

#[test]
fn a_killed_scope_is_started_again_and_every_tile_comes_once() {
    let story = survives("kill_scope");
    assert_eq!(story.tells("scope starts"), 3, "{:#?}", story.told);
}

#[test]
fn a_head_that_is_killed_while_it_writes_its_report_writes_it_again() {
    survives("kill_at_report");
}

#[test]
fn a_head_that_comes_back_at_another_port_is_found_behind_the_same_address() {
    let story = survives("head_moves");
    assert_eq!(story.tells("head starts"), 2, "{:#?}", story.told);
}

#[test]
fn what_the_scope_was_told_is_durable_survives_a_power_cut_of_the_head() {
    let story = survives("power_cut_head");
    assert!(story.tells("receipts hold") > 0, "{:#?}", story.told);
    if story.tells("a kill only") > 0 {
        println!("skipped in part: only root may mount a file system in a file, so these were kills");
    }
}

#[test]
fn a_scope_that_loses_power_comes_back_and_nothing_is_missing() {
    survives("power_cut_scope");
}

#[test]
fn a_link_that_is_cut_longer_than_its_patience_is_made_again() {
    let story = survives("cut");
    assert!(story.said.contains("lost; calling again"), "{}", story.said);
}

#[test]
fn lost_late_doubled_and_overtaking_packets_change_nothing() {
    survives("weather");
}

#[test]
fn bytes_that_change_on_the_line_are_not_taken_for_pixels() {
    survives("spoiled_packets");
}

#[test]
fn a_process_that_stands_still_for_a_while_is_waited_for() {
    survives("freeze");
}

#[test]
fn a_slow_stage_slows_the_scope_and_loses_nothing() {
    survives("slow_stage");
}

#[test]
fn slow_disks_slow_the_scope_and_lose_nothing() {
    survives("slow_disk");
}

#[test]
fn a_head_whose_disk_is_full_stops_with_one_message_and_goes_on_when_there_is_room() {
    for name in ["full_disk_head", "full_disk_early"] {
        let story = survives(name);
        assert_eq!(story.tells("head ended with Some(3)"), 1, "{:#?}", story.told);
    }
}

#[test]
fn a_clock_that_jumps_changes_no_result() {
    survives("clock_steps");
}

#[test]
fn pixels_that_changed_at_rest_are_named_before_anything_is_made_of_them() {
    let story = survives("damaged_archive");
    assert_eq!(story.tells("is restored"), 1, "the damage was seen: {:#?}", story.told);
}

#[test]
fn tiles_that_changed_on_the_scopes_disk_are_named_as_lost_or_taken_again_never_passed_on() {
    let story = survives("damaged_spool");
    assert_eq!(story.tells("bits of"), 1, "{:#?}", story.told);
}

#[test]
fn a_scope_whose_disk_is_full_waits_for_room() {
    survives("full_disk_scope");
}

#[test]
fn a_head_that_is_killed_after_the_scope_has_gone_home_ends_alone() {
    let story = survives("kill_after_goodbye");
    assert_eq!((story.tells("head starts"), story.tells("scope starts")), (2, 1), "{:#?}", story.told);
}

#[test]
fn a_torn_last_line_of_a_log_is_done_again() {
    let story = survives("torn_log");
    assert_eq!(story.tells("loses its last"), 1, "{:#?}", story.told);
}

#[test]
fn a_stage_that_panics_is_named_with_its_item_and_the_mended_program_goes_on() {
    let story = survives("panic");
    assert!(story.said.contains("match panicked at"), "{}", story.said);
    assert_eq!(story.tells("head ended with Some(3)"), 1, "{:#?}", story.told);
}

#[test]
fn one_process_takes_a_scenario_too_and_the_same_command_without_it_goes_on() {
    let place = Place::new();
    let file = |name: &str| format!("{}/../sim/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let site = Acquisition::troubled().site(&place.path("disk"));
    place.run(&site, "out", &["--scenario", &file("panic")]).expect(3).says(&["match panicked at", "scenario"]);
    place.run(&site, "out", &["--scenario", &file("slow_disk")]).expect(1);
    assert!(crate::harness::result_bytes(&place.path("out")) == Acquisition::troubled().files, "the same bytes");
    std::fs::write(place.path("wrong.toml"), "[[event]]\nwhat = \"panic\"\nstage = \"mach\"\nitem = 1\n")
        .expect("writable");
    let wrong = place.path("wrong.toml");
    place.run(&site, "other", &["--scenario", crate::harness::text(&wrong)]).expect(2).says(&["mach", "montage"]);
}

#[test]
fn a_scope_that_is_started_before_its_head_waits_for_it() {
    survives("scope_first");
}

#[test]
fn many_faults_at_once_break_no_promise() {
    for name in ["bad_night", "power_cuts", "both_killed"] {
        survives(name);
    }
}

#[test]
fn a_labelled_volume_survives_kills_of_both_sides_and_a_torn_table_of_merges() {
    kept("labels", drive(Acquisition::labelled(), &scenario("labels")));
}

#[test]
fn over_real_interfaces_cut_links_and_kills_break_no_promise_either() {
    for name in ["cut", "kill_head", "weather", "head_moves"] {
        let Some(wire) = Wire::interfaces(scenario(name).seed) else {
            println!("skipped: network namespaces need root and iproute2; the relay on loopback is used elsewhere");
            return;
        };
        println!("{name}: {}", wire.kind());
        let story = kept(name, drive_over(wire, Acquisition::plain(), &scenario(name)));
        assert!(story.packets > 0, "nothing went over the interfaces");
    }
}

#[test]
fn every_scenario_of_the_repository_can_be_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../sim/scenarios");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("readable").path();
        Scenario::load(&path).unwrap_or_else(|e| panic!("{e}"));
        seen += 1;
    }
    assert!(seen >= 20, "{seen} scenarios");
}
