//! No bytes make a record of the ledger panic, take much memory, or be refused without a word.

use super::super::record::{self, Contents, Qualities, Standing, Standpoint};
use super::super::row::{ContentHash, Place};
use super::super::state::{State, Times};
use crate::fuzz::fuzz;
use crate::tile::Reason;

#[test]
fn no_bytes_make_a_record_of_states_or_names_panic() {
    let mut times = Times::default();
    times.enter(State::Expected, 1_700_000_000_000);
    let tile = |beam| {
        let reason = (beam == 2).then(|| Reason::NotAcquired("beam off".into()));
        Standpoint { beam, state: State::Expected, reason, times }
    };
    let standing = Standing { since: 3, tiles: (0..7).map(tile).collect() };
    let seeds = [standing.encode().expect("encodes")];
    fuzz("ledger standings", 64.0, &seeds, |bytes| {
        let settled = Standing::is_settled(bytes);
        let read = Standing::decode(bytes)?;
        settled?;
        Standing::since(bytes)?;
        // What is taken is written as well.
        Standing::decode(&read.encode()?).map(drop)
    });
    let names = ["013_000001_001.bmp", "013_000001_002.bmp", "\u{e9}"];
    let seeds = [record::encode_names(names.into_iter()).expect("encodes")];
    fuzz("ledger names", 64.0, &seeds, |bytes| record::decode_names(bytes).map(drop));
}

#[test]
fn no_bytes_make_a_record_of_contents_or_qualities_panic() {
    let mut contents = Contents::default();
    contents.insert(5, ContentHash([9; 32]), Place { offset: 1 << 40, width: 8, height: 6 });
    let seeds = [record::encode(&contents).expect("encodes")];
    fuzz("ledger contents", 64.0, &seeds, |bytes| record::decode::<Contents>(bytes).map(|c| _ = c.get(5)));
    let mut qualities = Qualities::default();
    qualities.insert(5, &serde_json::json!({"mean": 12.5}));
    let seeds = [record::squeeze(&record::encode(&qualities).expect("encodes")).expect("squeezes")];
    fuzz("ledger qualities", 32.0, &seeds, |bytes| {
        record::decode::<Qualities>(&record::unsqueeze(bytes)?)?.get(5).map(drop)
    });
}
