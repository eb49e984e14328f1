//! The kinesin program: command line, site files, plans, reports.
