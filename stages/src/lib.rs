//! One folder per stage in flow order, and pipeline.rs, the only wiring.
