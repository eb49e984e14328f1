//! How a command ends: decided in one place, as scripts rely on it.

/// The exit status of a command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything promised is there.
    Complete,
    /// It ended, and some tiles were lost with a reason.
    WithLosses,
}

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Bad input or configuration: the user can mend it.
    #[error("{0}")]
    Input(String),
    /// A fault stopped it: what was accepted is kept, the same command continues.
    #[error("{0}")]
    Fault(String),
}

impl Failure {
    /// Bad input, from any error.
    pub fn input(error: impl std::fmt::Display) -> Self {
        Self::Input(error.to_string())
    }

    /// A fault, from any error.
    pub fn fault(error: impl std::fmt::Display) -> Self {
        Self::Fault(error.to_string())
    }
}

/// 0 complete, 1 complete with losses, 2 bad input or configuration, 3 stopped by a fault.
pub fn exit_code(result: &Result<Outcome, Failure>) -> u8 {
    match result {
        Ok(Outcome::Complete) => 0,
        Ok(Outcome::WithLosses) => 1,
        Err(Failure::Input(_)) => 2,
        Err(Failure::Fault(_)) => 3,
    }
}
