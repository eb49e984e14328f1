//! I4: shuffled arrival, other worker counts, other batch sizes: the same bytes out.

use crate::harness::{Place, SITE, assert_same};

#[test]
fn arrival_order_workers_and_batch_size_do_not_change_a_byte() {
    let place = Place::new();
    let ordered = SITE.replace("duplicated = 0.1\nlate = 0.1", "shuffle = false");
    place.run(&ordered, "ordered", &["--workers", "1"]).expect(0);
    place.run(SITE, "shuffled", &["--workers", "2", "--batch", "3"]).expect(0);
    assert_same(&place.path("ordered"), &place.path("shuffled"));
    let sections = SITE.replace("mfovs = 1", "mfovs = 1\nshuffle_sections = true");
    place.run(&sections, "sections", &["--workers", "2"]).expect(0);
    assert_same(&place.path("ordered"), &place.path("sections"));
}
