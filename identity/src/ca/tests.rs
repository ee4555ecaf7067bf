//! Tests to come in this commit series.
