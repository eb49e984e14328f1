//! Promises of the link.
